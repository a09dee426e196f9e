"""A sample of OpenThoughts-114k that holds every domain, as text: what ReasonScore and the dashboards read.

    python extraction/prepare_openthoughts_subset.py --num_samples 10000 --output_dir text/openthoughts-10k

Each of the six domains gives an equal share, drawn after a seeded shuffle (all it has, if that is fewer); what is then
missing comes from the remaining rows in their order. The result has the columns `text` and `domain`, in the order of
the source. `--draw published` draws as the published code does: each domain is shuffled by itself, and the result goes
domain by domain and keeps all columns.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.chat_format import (
    DOMAINS,
    MalformedRow,
    format_openthoughts,
    is_of_another_domain,
    writes_format,
)
from transformer_lens_r1.shared.arguments import (
    ArgumentParser,
    add_chat_format_argument,
    add_openthoughts_arguments,
    add_output_arguments,
    add_revision_arguments,
    positive_int,
    public_command,
    require_output,
)
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import display_name
from transformer_lens_r1.shared.records import add_max_bad_rows, bad_rows_info, check_bad_rows, too_many_bad_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("problem", "deepseek_reasoning", "deepseek_solution", "domain")
DATASET = "open-thoughts/OpenThoughts-114k"
LICENCE = "Apache-2.0"
CODE_COLUMNS = ("test_cases", "starter_code")
"""Of problems in code; a data set without such problems may lack them."""


def stratified_rows(domains: Sequence[str], num_samples: int, seed: int) -> list[int]:
    """Which rows to take, in ascending order.

    Of each domain ``num_samples // n_domains`` rows in the order of a seeded shuffle of all rows, or as many as it has;
    then, until ``num_samples`` are together, the rows that are left, first to last.

    Args:
        domains: the domain of each row.
        num_samples: rows wanted; all rows if there are fewer.
        seed: of the shuffle.
    """
    import numpy as np

    share = num_samples // len(set(domains))
    taken: Counter[str] = Counter()
    chosen: set[int] = set()
    for row in np.random.default_rng(seed).permutation(len(domains)).tolist():
        if taken[domains[row]] < share:
            taken[domains[row]] += 1
            chosen.add(row)
    rest = (row for row in range(len(domains)) if row not in chosen)
    chosen.update(row for row, _ in zip(rest, range(num_samples - len(chosen)), strict=False))
    return sorted(chosen)


def published_rows(domains: Sequence[str], num_samples: int, seed: int, order: Sequence[str]) -> list[int]:
    """Which rows the published code takes, in its order.

    Of each domain the first ``num_samples // len(order)`` rows after a seeded shuffle of the domain, or as many as it
    has; then, until ``num_samples`` are together, the rows that are left, first to last.

    Args:
        domains: the domain of each row.
        num_samples: rows wanted; all rows if there are fewer.
        seed: of each domain's shuffle; the published code has 42.
        order: the domains, in the order of the result.
    """
    import numpy as np

    chosen: list[int] = []
    for domain in order:
        rows = np.flatnonzero(np.array(domains) == domain)
        shuffled = rows[np.random.default_rng(seed).permutation(len(rows))]
        chosen += shuffled[: num_samples // len(order)].tolist()
    taken = set(chosen)
    rest = (row for row in range(len(domains)) if row not in taken)
    return [*chosen, *islice(rest, num_samples - len(chosen))]


def make_subset(
    dataset: Dataset,
    *,
    num_samples: int,
    seed: int,
    draw: str = "stratified",
    domains: Sequence[str] = DOMAINS,
    empty_starter_code: str = "nothing",
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_bad_rows: float,
    where: str,
) -> tuple[Dataset, list[tuple[int, str]]]:
    """The sample, and index and fault of each malformed row left out.

    It has the columns `text` and `domain`, or with the published draw `text` beside those of the data set.

    Raises:
        UserError: more than the part `max_bad_rows` of the rows of `where` is malformed.
    """
    from tqdm import tqdm

    format_text = partial(format_openthoughts, empty_starter_code=empty_starter_code, tokenizer=tokenizer)
    # The other columns are not needed for the text, and nested ones take long to decode.
    records = dataset.select_columns([name for name in dataset.column_names if name in COLUMNS + CODE_COLUMNS])
    good: list[int] = []
    faults: list[tuple[int, str]] = []
    for index, sample in enumerate(tqdm(records, desc="checking records", unit="record", unit_scale=True)):
        if is_of_another_domain(sample, domains):
            continue
        try:
            format_text(sample)
            good.append(index)
        except MalformedRow as error:
            faults.append((index, str(error)))
            if too_many_bad_rows(len(faults), len(dataset), max_bad_rows):
                break
    check_bad_rows(faults, n_records=len(dataset), max_bad_rows=max_bad_rows, where=where)
    good_domains = records.select(good)["domain"][:]
    if draw == "published":
        chosen = published_rows(good_domains, num_samples, seed, domains)
    else:
        chosen, dataset = stratified_rows(good_domains, num_samples, seed), records
    subset = dataset.select([good[row] for row in chosen]).map(
        lambda sample: {"text": format_text(sample)}, load_from_cache_file=False, desc="formatting"
    )
    return subset if draw == "published" else subset.select_columns(["text", "domain"]), faults


def make_card(name: str, info: Mapping[str, Any]) -> str:
    """The body of the sample's README.md: what its rows are, and how they were made."""
    known = [f"{key} `{info[key]}`" for key in ("revision", "commit") if info[key]]
    table = "".join(f"| {domain} | {count:,} |\n" for domain, count in info["domains"].items())
    columns = ", ".join(f"`{column}`" for column in info["columns"])
    versions = ", ".join(f"{library} {number}" for library, number in info["versions"].items())
    return f"""
# {name}

{sum(info["domains"].values()):,} problems with their reasoning and solution, drawn from `{info["source"]}`
({", ".join(["configuration `metadata`", *known])}) with seed {info["seed"]}, in the text format of
{info["chat_format"]}: columns {columns}. Licence of the source: {info["licence"] or "not stated"}.

| domain | rows |
|---|---|
{table}
{info["malformed"]:,} malformed records were left out.

```bash
{info["command"]}
```

Versions: {versions}. `provenance.json` beside this file holds the details.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dataset_path", default=DATASET, help="Hub id or folder with the columns of its config 'metadata'"
    )
    parser.add_argument("--dataset_revision", help="branch, tag or commit of the data set on the Hub")
    parser.add_argument("--num_samples", type=positive_int, default=10_000, help="rows in the sample")
    parser.add_argument("--seed", type=int, default=42, help="of the draw")
    parser.add_argument(
        "--draw",
        choices=("stratified", "published"),
        default="stratified",
        help="published: domain by domain, each shuffled by itself, with all columns",
    )
    add_openthoughts_arguments(parser)
    add_chat_format_argument(parser)
    parser.add_argument("--model_path", help="Hub id or local folder of the model of --chat_format model")
    add_revision_arguments(parser)
    add_max_bad_rows(parser)
    add_output_arguments(parser)
    parser.add_as_published(draw="published", empty_starter_code="newline")
    args = parser.parse_args(argv)
    require_output(args)
    if args.num_samples < len(args.domains):
        raise UserError(f"--num_samples {args.num_samples}: expected at least {len(args.domains)}, one for each domain")
    if (args.chat_format == "model") != (args.model_path is not None):
        raise UserError("--chat_format model and --model_path go together: the model's chat template makes the text")

    from transformer_lens_r1.loading import load_tokenizer
    from transformer_lens_r1.shared.data import (
        find_destination,
        hub_licence,
        load_rows,
        loaded_commit,
        publish_rows,
        push_rows,
        split_revision,
    )

    name = f"OpenThoughts-{args.num_samples / 1000:g}k-DeepSeek-R1"
    destination = find_destination(args, name)
    if args.push_only:
        return push_rows(destination)
    tokenizer = None
    if args.model_path is not None:
        hub = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
        tokenizer = writes_format(load_tokenizer(args.model_path, **hub), args.chat_format)
    dataset = load_rows(args.dataset_path, columns=COLUMNS, name="metadata", revision=args.dataset_revision)
    source, revision = split_revision(args.dataset_path)
    subset, faults = make_subset(
        dataset,
        num_samples=args.num_samples,
        seed=args.seed,
        draw=args.draw,
        domains=args.domains,
        empty_starter_code=args.empty_starter_code,
        tokenizer=tokenizer,
        max_bad_rows=args.max_bad_rows,
        where=display_name(source),
    )
    counts = Counter(subset["domain"][:])
    print(", ".join(f"{domain} {counts[domain]:,}" for domain in DOMAINS if counts[domain]))
    if len(subset) < args.num_samples:
        print(f"note: the data set has only {len(subset):,} usable rows")
    info = {
        "name": name,
        "source": display_name(source),
        "revision": args.dataset_revision or revision,
        "commit": loaded_commit(dataset),
        "licence": LICENCE if source == DATASET else hub_licence(source),
        "seed": args.seed,
        "draw": args.draw,
        "empty_starter_code": args.empty_starter_code,
        "chat_format": display_name(args.model_path) if args.model_path else "the DeepSeek-R1 distills",
        "columns": subset.column_names,
        "domains": {domain: counts[domain] for domain in DOMAINS if counts[domain]},
        **bad_rows_info(faults),
        "command": public_command(parser, args, "extraction/prepare_openthoughts_subset.py"),
        "versions": {
            "python": platform.python_version(),
            **{library: version(library) for library in ("transformer-lens-r1", "datasets")},
        },
    }
    publish_rows(subset, destination, info=info, card=make_card(name, info))


if __name__ == "__main__":
    run(main)
