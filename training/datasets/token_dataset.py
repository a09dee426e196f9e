"""What the scripts of this folder share: records to text, text to a seeded draw of token rows, and where it came from.

This folder holds no ``__init__.py``: as a package it would hide the library of the same name from `train_sae.py`.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.shared.arguments import (
    ArgumentParser,
    add_output_arguments,
    add_revision_arguments,
    positive_int,
    public_command,
    require_output,
)
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import display_name
from transformer_lens_r1.shared.records import add_max_bad_rows, bad_rows_info, check_bad_rows

if TYPE_CHECKING:
    from datasets import Dataset

LIBRARIES = ("transformer-lens-r1", "datasets", "tokenizers", "transformers")


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
        "--num_proc", type=positive_int, help="processes; changes nothing but the time (default: one for each core)"
    )
    add_max_bad_rows(parser)
    add_output_arguments(parser)
    return parser


def prepare(
    argv: Sequence[str] | None,
    *,
    script: str,
    description: str,
    dataset_path: str,
    columns: Sequence[str],
    format_record: Callable[[Mapping[str, Any]], str],
    config_name: str | None = None,
    title: str,
    licence: str,
) -> None:
    """The program: tokenise one data set as the command line says, and write or push the rows.

    Args:
        argv: the command line; None for the process's own.
        script: its path from the root of the repository.
        description: the script's docstring.
        dataset_path: Hub id of the data set, where the command line names no other.
        columns: the columns that the records must have.
        format_record: one record as text; raises `MalformedRow`.
        config_name: the data set's configuration on the Hub.
        title: the data set's short name, used in the repository's name and on the card.
        licence: of the data set at `dataset_path`.

    Raises:
        UserError: the model, its tokenizer or the records are not what they should be, or give no row at all.
    """
    parser = make_parser(description, dataset_path=dataset_path)
    args = parser.parse_args(argv)
    require_output(args)

    from transformer_lens_r1.shared.data import (
        find_destination,
        hub_licence,
        load_rows,
        loaded_commit,
        publish_rows,
        push_rows,
        split_revision,
    )

    model = display_name(args.model_path)
    name = f"{Path(model).name}-{title}-tokenized"
    destination = find_destination(args, name)
    if args.push_only:
        return push_rows(destination)

    from token_shards import remove_shards, shard_folder, tokenise_records

    from transformer_lens_r1.loading import load_config, load_tokenizer
    from transformer_lens_r1.shared.hub import cached_commit
    from transformer_lens_r1.tokenising import RowMaker, vocabulary_hash

    hub = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    config = load_config(args.model_path, **hub)
    tokenizer = load_tokenizer(args.model_path, **hub)
    make_rows = RowMaker(tokenizer=tokenizer, context_size=args.context_size, vocab_size=config.vocab_size)
    records = load_rows(args.dataset_path, columns=columns, name=config_name, revision=args.dataset_revision)
    source = {
        "dataset": display_name(split_revision(args.dataset_path)[0]),
        "config": config_name,
        "revision": args.dataset_revision or split_revision(args.dataset_path)[1],
        "commit": loaded_commit(records),
        "licence": licence if split_revision(args.dataset_path)[0] == dataset_path else hub_licence(args.dataset_path),
        "records": len(records),
    }
    # The other columns are never read: nested ones take longer to decode than the text takes to format.
    records = records.select_columns(list(columns))

    shards, malformed = tokenise_records(
        records,
        format_record,
        make_rows,
        folder=shard_folder(destination.folder),
        num_proc=args.num_proc,
        max_bad_rows=args.max_bad_rows,
    )
    where = display_name(args.dataset_path)
    check_bad_rows(malformed, n_records=len(records), max_bad_rows=args.max_bad_rows, where=where)
    if not shards.files:
        raise UserError(
            f"the records give no row of {args.context_size} tokens ({shards.documents:,} of {len(records):,} {title} "
            f"records are usable, with {shards.tokens:,} tokens); give more, or a smaller --context_size"
        )
    rows = shards.rows()
    drawn = draw_rows(rows, num_tokens=args.num_tokens, context_size=args.context_size, seed=args.seed)

    info = {
        "name": name,
        "tokenizer": {
            "name": model,
            "revision": args.revision,
            "commit": cached_commit(args.model_path, "config.json", revision=args.revision),
            "vocabulary_sha256": vocabulary_hash(tokenizer),
            "bos_id": tokenizer.bos_token_id,
            "eos_id": tokenizer.eos_token_id,
        },
        "vocab_size": config.vocab_size,
        "context_size": args.context_size,
        "rows": len(drawn),
        "tokens": len(drawn) * args.context_size,
        "bos_added": False,
        "seed": args.seed,
        "source": {
            **source,
            **bad_rows_info(malformed),
            "tokens": shards.tokens,
            "rows_available": len(rows),
            "rows_unusable": shards.unusable_rows,
        },
        "command": public_command(parser, args, script),
        "versions": versions(),
    }
    say(
        f"{shards.documents:,} records gave {len(rows):,} rows, {len(drawn):,} of them drawn: {info['tokens']:,} tokens"
    )
    publish_rows(drawn, destination, info=info, card=make_card(name, info))
    remove_shards(destination.folder)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the rows depend on."""
    return {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}


def draw_rows(rows: Dataset, *, num_tokens: int | None, context_size: int, seed: int) -> Dataset:
    """A seeded draw, without replacement, of the rows that hold `num_tokens` tokens; all of them, shuffled, for None.

    Where there are fewer, all are returned and a line on stderr says so.
    """
    wanted = len(rows) if num_tokens is None else math.ceil(num_tokens / context_size)
    if wanted > len(rows):
        say(
            f"WARNING: the data holds {len(rows):,} rows ({len(rows) * context_size:,} tokens), fewer than the "
            f"{wanted:,} rows that --num_tokens {num_tokens} asks for; all of them are used"
        )
    return rows.shuffle(seed=seed, keep_in_memory=True).select(range(min(wanted, len(rows))))


def make_card(name: str, info: Mapping[str, Any]) -> str:
    """The body of a token data set's README.md: what its rows are, and how they were made."""
    tokenizer = info["tokenizer"]
    made_for = f"`{tokenizer['name']}`{_at(tokenizer)}" if tokenizer["name"] else "an unknown tokenizer"
    parts = info.get("parts")
    made_of = _source_lines(info["source"]) if parts is None else "".join(_part_lines(part) for part in parts)
    library_versions = ", ".join(f"{library} {number}" for library, number in info["versions"].items())
    return f"""
# {name}

{info["rows"]:,} rows of {info["context_size"]:,} tokens ({info["tokens"]:,} tokens), tokenised for {made_for}, in the
column `tokens`. Documents are joined by the end-of-sequence id ({tokenizer["eos_id"]}) and cut into rows; no
beginning-of-sequence id was put in. The draw and the order of the rows have the seed {info["seed"]}.

## Source

{made_of}
The source's licence holds for these tokens too: the text can be read from them.

## How it was made

```bash
{info["command"]}
```

Versions: {library_versions}. `provenance.json` beside this file holds the details.

## Use

```python
from datasets import load_dataset

rows = load_dataset("<this repository or folder>", split="train")
```
"""


def _at(source: Mapping[str, Any]) -> str:
    """Revision and commit, as far as they are known."""
    known = [f"{key} `{source[key]}`" for key in ("revision", "commit") if source.get(key)]
    return f" ({', '.join(known)})" if known else ""


def _source_lines(source: Mapping[str, Any], rows: int | None = None) -> str:
    config = f", configuration `{source['config']}`" if source.get("config") else ""
    share = f"{rows:,} rows" if rows is not None else f"{source['rows_available']:,} rows to draw from"
    left_out = f", {source['malformed']:,} of them malformed and left out" if source.get("malformed") else ""
    return (
        f"- `{source['dataset']}`{_at(source)}{config}: {source['records']:,} records{left_out}; {share}. "
        f"Licence: {source.get('licence') or 'not stated'}.\n"
    )


def _part_lines(part: Mapping[str, Any]) -> str:
    provenance = part["provenance"] or {}
    if "source" in provenance:
        return _source_lines(provenance["source"], part["rows"])
    if "parts" in provenance:
        inner = "".join(f"  {_part_lines(inner)}" for inner in provenance["parts"])
        return f"- `{part['name']}`: {part['rows']:,} rows, merged from\n{inner}"
    return f"- `{part['name']}`{_at(part)}: {part['rows']:,} rows. Licence: not stated.\n"


def say(line: str) -> None:
    """A line for the person at the terminal, on stderr: stdout stays free."""
    print(line, file=sys.stderr, flush=True)
