"""A sample of OpenThoughts-114k that holds every domain, as R1 text: what ReasonScore and the dashboards read.

    python extraction/prepare_openthoughts_subset.py --num_samples 10000 --output_dir data/openthoughts-10k

Each of the six domains gives an equal share (all it has, where that is fewer), drawn after a seeded shuffle; what
is then missing comes from the remaining rows in their order. The result has the columns `text` and `domain`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformer_lens_r1.arguments import ArgumentParser, add_output_arguments, positive_int, require_output
from transformer_lens_r1.chat_format import DOMAINS, MalformedRow, format_openthoughts
from transformer_lens_r1.errors import UserError, run
from transformer_lens_r1.files import display_name

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("problem", "deepseek_reasoning", "deepseek_solution", "domain")
CODE_COLUMNS = ("test_cases", "starter_code")
"""Of problems in code; a data set without such problems may lack them."""


def stratified_rows(domains: Sequence[str], num_samples: int, seed: int) -> list[int]:
    """Which rows to take, in ascending order.

    Of each domain ``num_samples // n_domains`` rows in the order of a seeded shuffle of all rows, or as many as it has;
    then, until ``num_samples`` are together, the rows that are left, first to last.

    Args:
        domains: the domain of each row.
        num_samples: rows wanted; all rows where there are fewer.
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


def well_formed_rows(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Indices of the rows that can be formatted, and of those that cannot."""
    good: list[int] = []
    bad: list[int] = []
    for index, sample in enumerate(dataset):
        try:
            format_openthoughts(sample)
            good.append(index)
        except MalformedRow:
            bad.append(index)
    return good, bad


def make_subset(dataset: Dataset, *, num_samples: int, seed: int) -> tuple[Dataset, int]:
    """The stratified sample with the columns `text` and `domain`, and how many malformed rows were left out."""
    # The other columns are never read, and nested ones take long to decode.
    dataset = dataset.select_columns([name for name in dataset.column_names if name in COLUMNS + CODE_COLUMNS])
    good, bad = well_formed_rows(dataset)
    if not good:
        raise UserError(f"none of the {len(dataset)} rows is an OpenThoughts record of a known domain")
    dataset = dataset.select(good)
    chosen = stratified_rows(dataset["domain"][:], num_samples, seed)
    subset = dataset.select(chosen).map(
        lambda sample: {"text": format_openthoughts(sample)}, load_from_cache_file=False, desc="formatting"
    )
    return subset.select_columns(["text", "domain"]), len(bad)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what argparse alone can refuse refused."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dataset_path",
        default="open-thoughts/OpenThoughts-114k",
        help="Hub id or folder with the columns of its config 'metadata'",
    )
    parser.add_argument("--dataset_revision", help="branch, tag or commit of the data set on the Hub")
    parser.add_argument("--num_samples", type=positive_int, default=10_000, help="rows in the sample")
    parser.add_argument("--seed", type=int, default=42, help="of the draw")
    add_output_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    require_output(args)
    if args.num_samples < len(DOMAINS):
        raise UserError(f"--num_samples {args.num_samples}: expected at least {len(DOMAINS)}, one for each domain")

    from transformer_lens_r1.data import check_hub_access, load_rows, publish_rows

    check_hub_access(args)
    dataset = load_rows(args.dataset_path, columns=COLUMNS, name="metadata", revision=args.dataset_revision)
    subset, n_bad = make_subset(dataset, num_samples=args.num_samples, seed=args.seed)
    counts = Counter(subset["domain"][:])
    print(", ".join(f"{domain} {counts[domain]:,}" for domain in DOMAINS if counts[domain]))
    if n_bad:
        print(f"note: {n_bad:,} of {len(dataset):,} rows are malformed and were left out")
    if len(subset) < args.num_samples:
        print(f"note: the data set has only {len(subset):,} usable rows")
    source = display_name(args.dataset_path)
    info = {
        "source": source,
        "revision": args.dataset_revision,
        "seed": args.seed,
        "domains": dict(counts),
        "malformed_rows": n_bad,
    }
    thousands = f"{args.num_samples / 1000:g}"
    table = "".join(f"| {domain} | {count} |\n" for domain, count in counts.items())
    card = (
        f"# OpenThoughts-{thousands}k as DeepSeek-R1 text\n\n"
        f"{len(subset):,} problems with their reasoning and solution, drawn from `{source}` (config "
        f"`metadata`, seed {args.seed}), in the format of the R1 distills.\n\n| domain | rows |\n|---|---|\n{table}"
    )
    publish_rows(subset, args=args, name=f"OpenThoughts-{thousands}k-DeepSeek-R1", info=info, card=card)


if __name__ == "__main__":
    run(main)
