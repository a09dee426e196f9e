"""How fast records become rows of tokens, against the floor: the fast tokenizer's own `encode_batch` on the same text.

    python benchmarks/tokenise.py --model_path quickstart-run/model

Ours is all that the scripts of training/datasets do between loading and publishing: checking and formatting the
records, tokenising, cutting rows and writing them. The floor encodes the finished texts, which lie in memory, and keeps
nothing. Both use every core. They take turns in one process, so that whatever else the machine does meets both.
`--memory` instead measures peak memory against the number of records.

The text is Python's own standard library, cut into conversations as long as those of LMSYS-Chat-1M, and into documents
as long as those of OpenThoughts-114k.
"""

from __future__ import annotations

import os
import statistics
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training" / "datasets"))

from transformer_lens_r1.chat_format import format_lmsys
from transformer_lens_r1.shared.arguments import ArgumentParser, positive_int
from transformer_lens_r1.shared.errors import run

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CHARACTERS = {"LMSYS-Chat-1M": 1_500, "OpenThoughts-114k": 20_000}
"""Characters in a record, roughly the mean of each data set."""
CONTEXT_SIZE = 1024


def format_record(record: Mapping[str, Any]) -> str:
    """The text of one record."""
    return format_lmsys(record["conversation"])


def write_records(folder: Path, *, n_characters: int, record_length: int) -> Path:
    """A parquet file of conversations: the standard library's modules in the order of their names, over and over."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("conversation", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))])
    path = folder / "records.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        rows: list[dict[str, Any]] = []
        for number, text in enumerate(_texts(record_length)):
            if number * record_length >= n_characters:
                break
            half = len(text) // 5
            messages = [{"role": "user", "content": text[:half]}, {"role": "assistant", "content": text[half:]}]
            rows.append({"conversation": messages})
            if len(rows) * record_length > 2**24:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return path


def _texts(length: int) -> Iterator[str]:
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    rest = ""
    for turn in range(10**6):
        for module in modules:
            # The number keeps a second reading of the library from being the same text again.
            rest += f"# {turn}\n" + module.read_text(encoding="utf-8", errors="replace")
            while len(rest) >= length:
                yield rest[:length]
                rest = rest[length:]


def ours(records: Dataset, tokenizer: PreTrainedTokenizerBase) -> int:
    """Make and write the rows; the number of tokens in all documents and between them."""
    from token_data.rows import default_processes, format_records, tokenise

    from transformer_lens_r1.shared.data import save_rows
    from transformer_lens_r1.tokenising import RowMaker

    with tempfile.TemporaryDirectory() as folder:
        steps: dict[str, Any] = {"folder": Path(folder), "num_proc": default_processes()}
        make_rows = RowMaker(tokenizer=tokenizer, context_size=CONTEXT_SIZE, vocab_size=len(tokenizer))
        texts, _ = format_records(records, format_record, **steps)
        made = tokenise(texts, make_rows, **steps)
        save_rows(made.rows.shuffle(seed=42, keep_in_memory=True), Path(folder) / "rows", info={}, card="")
        return made.tokens


def compare(name: str, tokenizer: PreTrainedTokenizerBase, *, n_characters: int, rounds: int) -> None:
    """Print tokens per second of both, and the median of the ratios of the turns."""
    from transformer_lens_r1.shared.data import load_rows

    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder), n_characters=n_characters, record_length=CHARACTERS[name])
        records = load_rows(folder)
        texts = [format_record(record) for record in records]
        floor_rates, our_rates = [], []
        for turn in range(rounds + 1):
            started = time.perf_counter()
            encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
            seconds = time.perf_counter() - started
            tokens = sum(map(len, encodings))
            del encodings
            started = time.perf_counter()
            made = ours(records, tokenizer)
            our_seconds = time.perf_counter() - started
            assert tokens < made < tokens + len(texts), "both must have encoded the same text"
            if turn > 0:  # the first warms up
                floor_rates.append(tokens / seconds)
                our_rates.append(tokens / our_seconds)
    ratio = statistics.median(our / floor for our, floor in zip(our_rates, floor_rates, strict=True))
    print(
        f"{name}: {len(texts):,} records, {tokens:,} tokens; ours {statistics.median(our_rates):,.0f} tokens/s, "
        f"encode_batch {statistics.median(floor_rates):,.0f} tokens/s, ratio {ratio:.2f} "
        f"(median of {rounds}, {len(os.sched_getaffinity(0))} cores)"
    )


def memory(name: str, tokenizer: PreTrainedTokenizerBase, *, n_characters: int) -> None:
    """Print the peak of all processes' own memory for 1, 2, 4 and 8 times as many records."""
    from transformer_lens_r1.shared.data import load_rows

    for times in (1, 2, 4, 8):
        with tempfile.TemporaryDirectory() as folder:
            write_records(Path(folder), n_characters=n_characters * times, record_length=CHARACTERS[name])
            records = load_rows(folder)
            with watched_memory() as peak:
                tokens = ours(records, tokenizer)
        print(f"{name}: {len(records):,} records, {tokens:,} tokens: peak {peak[0] / 2**20:,.0f} MiB in all processes")


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """A list whose one number becomes the peak, in bytes, of the memory of this process and its children.

    Pages of mapped files do not count: the system takes them back when it needs them.
    """
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], _own_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _own_memory() -> int:
    total = 0
    for process in [os.getpid(), *_children(os.getpid())]:
        try:
            # Pss shares out what forked processes have in common.
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
    return total


def _children(process: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_path", required=True, help="Hub id or local folder of the tokenizer's model")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--n_characters", type=positive_int, default=20_000_000, help="characters of text")
    parser.add_argument("--rounds", type=positive_int, default=5, help="turns that are measured, after one that is not")
    parser.add_argument(
        "--memory", action="store_true", help="measure peak memory instead, at 1, 2, 4 and 8 × the text"
    )
    args = parser.parse_args(argv)

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    import datasets

    from transformer_lens_r1.loading import load_tokenizer

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(args.model_path, revision=args.revision)
    for name in CHARACTERS:
        if args.memory:
            memory(name, tokenizer, n_characters=args.n_characters)
        else:
            compare(name, tokenizer, n_characters=args.n_characters, rounds=args.rounds)


if __name__ == "__main__":
    run(main)
