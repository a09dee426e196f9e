"""What the scripts of this folder share: records to text, text to a seeded draw of token rows, and where it came from.

This folder holds no ``__init__.py``: as a package it would hide the library of the same name from `train_sae.py`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.arguments import ArgumentParser, add_output_arguments, add_revision_arguments, positive_int
from transformer_lens_r1.chat_format import MalformedRow
from transformer_lens_r1.errors import UserError
from transformer_lens_r1.files import display_name

if TYPE_CHECKING:
    from datasets import Dataset

LIBRARIES = ("datasets", "tokenizers", "transformers")


def make_parser(description: str, *, dataset_path: str) -> ArgumentParser:
    """The arguments of a script that tokenises one data set."""
    parser = ArgumentParser(description)
    parser.add_argument("--model_path", required=True, help="Hub id or local folder of the tokenizer's model")
    add_revision_arguments(parser)
    parser.add_argument("--dataset_path", default=dataset_path, help="Hub id or local folder of the records")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of the data set on the Hub (default: main)")
    parser.add_argument(
        "--num_tokens", type=positive_int, help="tokens to draw, rounded up to whole rows (default: all there are)"
    )
    parser.add_argument("--context_size", type=positive_int, default=1024, help="tokens in a row")
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw and of the rows' order")
    parser.add_argument(
        "--num_proc", type=positive_int, help="processes that format records; changes nothing else (default: none more)"
    )
    add_output_arguments(parser)
    return parser


def prepare(
    args: argparse.Namespace,
    *,
    columns: Sequence[str],
    format_record: Callable[[Mapping[str, Any]], str],
    config_name: str | None = None,
    title: str,
) -> None:
    """Tokenise one data set as `args` say and write or push the rows.

    Args:
        args: what a parser from `make_parser` returned, outputs checked.
        columns: the columns that the records must have.
        format_record: one record as text; raises `MalformedRow`.
        config_name: the data set's configuration on the Hub.
        title: the data set's short name, used in the repository's name and on the card.

    Raises:
        UserError: the model, its tokenizer or the records are not what they should be, or give no row at all.
    """
    from transformer_lens_r1.data import check_hub_access, load_rows, publish_rows
    from transformer_lens_r1.loading import load_config, load_tokenizer
    from transformer_lens_r1.tokenising import tokenize_and_concatenate, vocabulary_hash

    check_hub_access(args)
    hub = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    vocab_size = load_config(args.model_path, **hub).vocab_size
    tokenizer = load_tokenizer(args.model_path, **hub)
    records = load_rows(args.dataset_path, columns=columns, name=config_name, revision=args.dataset_revision)
    # The other columns are never read: nested ones take longer to decode than the text takes to format.
    records = records.select_columns(list(columns))

    texts, malformed = format_records(records, format_record, num_proc=args.num_proc)
    if malformed:
        first, fault = malformed[0]
        say(f"left out {len(malformed)} of {len(records)} records; the first is number {first}: {fault}")
    if len(texts) == 0:
        raise UserError(f"{args.dataset_path} holds no usable record; expected {title} records")
    rows = tokenize_and_concatenate(texts, tokenizer, context_size=args.context_size, vocab_size=vocab_size)
    drawn = draw_rows(rows, num_tokens=args.num_tokens, context_size=args.context_size, seed=args.seed)

    model = display_name(args.model_path)
    info = {
        "tokenizer": {
            "name": model,
            "revision": args.revision,
            "vocabulary_sha256": vocabulary_hash(tokenizer),
            "bos_id": tokenizer.bos_token_id,
            "eos_id": tokenizer.eos_token_id,
        },
        "vocab_size": vocab_size,
        "context_size": args.context_size,
        "rows": len(drawn),
        "tokens": len(drawn) * args.context_size,
        "bos_added": False,
        "seed": args.seed,
        "source": {
            "dataset": display_name(args.dataset_path),
            "config": config_name,
            "revision": args.dataset_revision,
            "records": len(records),
            "malformed": len(malformed),
            "rows_available": len(rows),
        },
        "versions": {library: version(library) for library in LIBRARIES},
    }
    say(f"{len(texts):,} records gave {len(rows):,} rows, {len(drawn):,} of them drawn: {info['tokens']:,} tokens")
    name = f"{Path(model).name}-{title}-tokenized"
    publish_rows(drawn, args=args, name=name, info=info, card=make_card(name, info))


def format_records(
    records: Dataset, format_record: Callable[[Mapping[str, Any]], str], *, num_proc: int | None = None
) -> tuple[Dataset, list[tuple[int, str]]]:
    """Turn records into text, in their order.

    Returns:
        The data set with the single column `text`, and (index, what is wrong) of every record left out of it.
    """
    from datasets import Features, Value

    def to_text(record: dict[str, Any]) -> dict[str, str | None]:
        try:
            return {"text": format_record(record), "fault": None}
        except MalformedRow as error:
            return {"text": None, "fault": str(error)}

    formatted = records.map(
        to_text,
        num_proc=num_proc,
        remove_columns=records.column_names,
        features=Features({"text": Value("large_string"), "fault": Value("string")}),
        # The library's cache looks at this function, not at the formats it calls: it could hand back an old result.
        load_from_cache_file=False,
        desc="formatting",
    )
    faults = formatted["fault"][:]
    malformed = [(index, fault) for index, fault in enumerate(faults) if fault is not None]
    texts = formatted.select_columns("text")
    if malformed:
        texts = texts.select([index for index, fault in enumerate(faults) if fault is None])
    return texts, malformed


def draw_rows(rows: Dataset, *, num_tokens: int | None, context_size: int, seed: int) -> Dataset:
    """A seeded draw, without replacement, of the rows that hold `num_tokens` tokens; all of them, shuffled, for None.

    Where there are fewer, all are returned and a line on stderr says so.

    Raises:
        UserError: there is no row at all.
    """
    if len(rows) == 0:
        raise UserError(f"the records give no row of {context_size} tokens; give more, or a smaller --context_size")
    wanted = len(rows) if num_tokens is None else math.ceil(num_tokens / context_size)
    if wanted > len(rows):
        say(
            f"WARNING: the data holds {len(rows):,} rows ({len(rows) * context_size:,} tokens), fewer than the "
            f"{wanted:,} rows that --num_tokens {num_tokens} asks for; all of them are used"
        )
    return rows.shuffle(seed=seed).select(range(min(wanted, len(rows))))


def make_card(name: str, info: Mapping[str, Any]) -> str:
    """The body of a token data set's README.md: what its rows are and how they were made."""
    tokenizer = info["tokenizer"]["name"]
    parts = info.get("parts") or [{"name": info["source"]["dataset"], "rows": info["rows"]}]
    made_of = "\n".join(f"- {part['name']}: {part['rows']:,} rows" for part in parts)
    return f"""
# {name}

{info["rows"]:,} rows of {info["context_size"]} tokens ({info["tokens"]:,} tokens), tokenised for `{tokenizer}`, in the
column `tokens`. Documents are joined by the end-of-sequence id ({info["tokenizer"]["eos_id"]}) and cut into rows; no
beginning-of-sequence id was put in. The order of the rows was drawn with seed {info["seed"]}.

Made of:

{made_of}

`provenance.json` beside this file holds the details.

```python
from datasets import load_dataset

rows = load_dataset("<this repository or folder>", split="train")
```
"""


def say(line: str) -> None:
    """A line for the person at the terminal, on stderr: stdout stays free."""
    print(line, file=sys.stderr, flush=True)
