"""Join token data sets into one, in an order drawn with a seed.

    python training/datasets/merge_datasets.py tokens/lmsys tokens/openthoughts --output_dir tokens/merged

Every part is a folder or a Hub id (user/name, or user/name@revision) with a column `tokens`, as the other scripts of
this folder make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from token_data.card import make_card, say, versions

from transformer_lens_r1.shared.arguments import ArgumentParser, add_output_arguments, public_command, require_output
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import display_name

if TYPE_CHECKING:
    from datasets import Dataset


def merge(parts: Sequence[Dataset], *, seed: int) -> Dataset:
    """All rows of all parts (column `tokens` alone), shuffled with `seed`.

    Raises:
        UserError: rows of different lengths.
    """
    from datasets import Features, Value, concatenate_datasets
    from datasets import Sequence as ListOf

    lengths = {row_length(part) for part in parts}
    if len(lengths) > 1:
        raise UserError(
            f"the parts have rows of {', '.join(map(str, sorted(lengths)))} tokens; "
            "tokenise them with one --context_size"
        )
    # A part may carry narrower ids or a fixed length in its schema; one schema joins them all.
    features = Features({"tokens": ListOf(Value("int64"))})
    columns = [part.select_columns("tokens") for part in parts]
    columns = [column if column.features == features else column.cast(features) for column in columns]
    return concatenate_datasets(columns).shuffle(seed=seed, keep_in_memory=True)


def row_length(part: Dataset) -> int:
    """The number of tokens in each row.

    Raises:
        UserError: the rows of the part differ among themselves.
    """
    from transformer_lens_r1.shared.data import token_column

    _, shortest, longest = token_column(part, "a part")
    if shortest != longest:
        raise UserError(f"a part has rows of {shortest} to {longest} tokens; expected rows of one length")
    return longest


def shared_tokenizer(names: Sequence[str], provenances: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The tokenizer that made the parts, as `provenance.json` describes it; None if no part says.

    Raises:
        UserError: two parts were made with different vocabularies.
    """
    known = [(name, part["tokenizer"]) for name, part in zip(names, provenances, strict=True) if part]
    for name, tokenizer in known[1:]:
        if tokenizer["vocabulary_sha256"] != known[0][1]["vocabulary_sha256"]:
            raise UserError(
                f"{known[0][0]} was made with the tokenizer of {known[0][1]['name']}, {name} with that of "
                f"{tokenizer['name']}: the same id means different text in them; tokenise both for one model"
            )
    return known[0][1] if known else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("parts", nargs="+", help="folders or Hub ids of token data sets")
    parser.add_argument("--seed", type=int, default=42, help="seed of the rows' order")
    add_output_arguments(parser)
    args = parser.parse_args(argv)
    require_output(args)
    if len({str(Path(part).resolve()) if Path(part).exists() else part for part in args.parts}) < len(args.parts):
        raise UserError("a part is named twice, and its rows would stand in the data twice; name each once")
    if args.output_dir is not None and args.output_dir.resolve() in [Path(part).resolve() for part in args.parts]:
        raise UserError(f"--output_dir {args.output_dir} is one of the parts, which it would replace; name another")

    from transformer_lens_r1.shared.data import (
        find_destination,
        load_rows,
        loaded_commit,
        publish_rows,
        push_rows,
        read_provenance,
        split_revision,
    )

    ids = [split_revision(part) for part in args.parts]
    name = "-".join(display_name(part).split("/")[-1] for part, _ in ids)
    destination = find_destination(args, name)
    if args.push_only:
        return push_rows(destination)
    parts = [load_rows(part, columns=("tokens",)) for part in args.parts]
    provenances = [read_provenance(part) for part in args.parts]
    tokenizer = shared_tokenizer(args.parts, provenances)
    for part, provenance in zip(args.parts, provenances, strict=True):
        if provenance is None:
            say(f"WARNING: {part} does not say which tokenizer made it; taken on trust")
    merged = merge(parts, seed=args.seed)

    context_size = row_length(parts[0])
    info = {
        "name": name,
        "tokenizer": tokenizer or {"name": None, "vocabulary_sha256": None, "bos_id": None, "eos_id": None},
        "vocab_size": next((part["vocab_size"] for part in provenances if part and "vocab_size" in part), None),
        "context_size": context_size,
        "rows": len(merged),
        "tokens": len(merged) * context_size,
        "row_rule": " and ".join(sorted({part.get("row_rule", "stream") for part in provenances if part})) or None,
        "bos_added": any(part.get("bos_added") for part in provenances if part),
        "seed": args.seed,
        "parts": [
            {
                "name": display_name(part_id),
                "revision": revision,
                "commit": loaded_commit(part),
                "rows": len(part),
                "provenance": provenance,
            }
            for (part_id, revision), part, provenance in zip(ids, parts, provenances, strict=True)
        ],
        "command": public_command(parser, args, "training/datasets/merge_datasets.py"),
        "versions": versions(),
    }
    say(f"{len(parts)} parts gave {len(merged):,} rows: {info['tokens']:,} tokens")
    publish_rows(merged, destination, info=info, card=make_card(name, info))


if __name__ == "__main__":
    run(main)
