"""The program of the scripts of this folder: records to text, text to a seeded draw of token rows, and their origin."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from token_data.card import make_card, say, versions
from transformer_lens_r1.shared.arguments import (
    ROW_RULES,
    ArgumentParser,
    add_chat_format_argument,
    add_output_arguments,
    add_revision_arguments,
    positive_int,
    public_command,
    require_output,
)
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import display_name
from transformer_lens_r1.shared.locks import locked
from transformer_lens_r1.shared.records import add_max_bad_rows, bad_rows_info, check_bad_rows

if TYPE_CHECKING:
    from datasets import Dataset

# The published scripts tokenise in ten processes, the default of TransformerLens 2.x.
PUBLISHED_SHARDS = 10


def make_parser(description: str, *, dataset_path: str, **published: str) -> ArgumentParser:
    """The arguments of a script that tokenises one data set.

    Args:
        description: the script's docstring.
        dataset_path: Hub id of the data set, unless the command line names another.
        published: what --as_published sets for the script's own options.
    """
    parser = ArgumentParser(description)
    parser.add_argument(
        "--model_path",
        default="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        help="Hub id or local folder of the tokenizer's model",
    )
    add_revision_arguments(parser)
    add_chat_format_argument(parser)
    parser.add_argument("--dataset_path", default=dataset_path, help="Hub id or local folder of the records")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of the data set on the Hub (default: main)")
    parser.add_argument(
        "--num_tokens", type=positive_int, help="tokens to draw, rounded up to whole rows (default: all there are)"
    )
    parser.add_argument("--context_size", type=positive_int, default=1024, help="tokens in a row")
    parser.add_argument(
        "--rows",
        choices=ROW_RULES,
        default="stream",
        help="how text becomes rows: documents tokenised one by one, or shuffled ones joined and cut as published",
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw and of the rows' order")
    parser.add_argument(
        "--num_proc", type=positive_int, help="processes; changes nothing but the time (default: one for each core)"
    )
    add_max_bad_rows(parser)
    add_output_arguments(parser)
    parser.add_as_published(rows="published", num_tokens=800_000_000, **published)
    return parser


def prepare(
    args: argparse.Namespace,
    *,
    parser: ArgumentParser,
    script: str,
    columns: Sequence[str],
    format_record: Callable[..., str | None],
    config_name: str | None = None,
    title: str,
    licence: str,
) -> None:
    """The program: tokenise one data set as the command line says, and write or push the rows.

    Args:
        args: the command line.
        parser: what read it, from `make_parser`.
        script: its path from the root of the repository.
        columns: the columns that the records must have.
        format_record: one record, and the ``tokenizer`` of `writes_format`, as text, or None for a record to leave out;
            raises `MalformedRow`.
        config_name: the data set's configuration on the Hub.
        title: the data set's short name, used in the repository's name and on the card.
        licence: of the data set that the parser has as its default.

    Raises:
        UserError: the model, its tokenizer or the records are not what they should be, or give no row at all.
    """
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

    from token_data.rows import default_processes, format_records, tokenise
    from transformer_lens_r1.chat_format import writes_format
    from transformer_lens_r1.loading import load_config, load_tokenizer
    from transformer_lens_r1.shared.hub import cached_commit
    from transformer_lens_r1.tokenising import RowMaker, vocabulary_hash

    hub = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    config = load_config(args.model_path, **hub)
    tokenizer = load_tokenizer(args.model_path, **hub)
    format_record = partial(format_record, tokenizer=writes_format(tokenizer, args.chat_format))
    make_rows = RowMaker(tokenizer=tokenizer, context_size=args.context_size, vocab_size=config.vocab_size)
    records = load_rows(args.dataset_path, columns=columns, name=config_name, revision=args.dataset_revision)
    dataset, revision = split_revision(args.dataset_path)
    source = {
        "dataset": display_name(dataset),
        "config": config_name,
        "revision": args.dataset_revision or revision,
        "commit": loaded_commit(records),
        "licence": licence if dataset == parser.get_default("dataset_path") else hub_licence(args.dataset_path),
        "records": len(records),
    }
    # The other columns are never read: nested ones take longer to decode than the text takes to format.
    records = records.select_columns(list(columns))

    output, beside = destination.folder, {"prefix": f".{destination.folder.name}.", "dir": destination.folder.parent}
    with locked(output), tempfile.TemporaryDirectory(**beside) as folder:
        steps: dict[str, Any] = {"folder": Path(folder), "num_proc": args.num_proc or default_processes()}
        texts, malformed = format_records(records, format_record, **steps)
        where = display_name(args.dataset_path)
        check_bad_rows(malformed, n_records=len(records), max_bad_rows=args.max_bad_rows, where=where)
        published = args.rows == "published"
        if published:  # there the records were shuffled before they were joined
            texts = texts.shuffle(seed=args.seed)
        rows, n_tokens, unusable = tokenise(texts, make_rows, shards=PUBLISHED_SHARDS if published else None, **steps)
        if len(rows) == 0:
            raise UserError(
                f"the records give no row of {args.context_size} tokens ({len(texts):,} of {len(records):,} {title} "
                f"records are usable, with {n_tokens:,} tokens); give more, or a smaller --context_size"
            )
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
            "row_rule": args.rows,
            "bos_added": False,
            "seed": args.seed,
            "source": {
                **source,
                **bad_rows_info(malformed),
                "tokens": n_tokens,
                "rows_available": len(rows),
                "rows_unusable": unusable,
            },
            "command": public_command(parser, args, script),
            "versions": versions(),
        }
        say(f"{len(texts):,} records gave {len(rows):,} rows, {len(drawn):,} of them drawn: {info['tokens']:,} tokens")
        publish_rows(drawn, destination, info=info, card=make_card(name, info))


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
