"""Records that do not fit their data set's schema: few are left out and counted, many end the run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from transformer_lens_r1.shared.arguments import fraction
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import PROVENANCE

# Beyond these, the lines would push everything else off the terminal.
NAMED_AT_MOST = 20


def add_max_bad_rows(parser: argparse.ArgumentParser) -> None:
    """Add ``--max_bad_rows``."""
    parser.add_argument(
        "--max_bad_rows",
        type=fraction,
        default=0.01,
        help="part of the records that may be malformed, 0 to 1; they are left out, and more of them end the run",
    )


def too_many_bad_rows(n_bad: int, n_records: int, max_bad_rows: float) -> bool:
    """Whether more than the allowed part of all records is malformed."""
    return n_bad > max_bad_rows * n_records


def check_bad_rows(
    faults: Sequence[tuple[int, str]],
    *,
    n_records: int,
    max_bad_rows: float,
    where: str,
    listed_in: str = PROVENANCE,
) -> None:
    """Name the first malformed records on stderr, with what is wrong, and count all of them.

    Args:
        faults: index in the data set and what is wrong, of every malformed record found.
        n_records: records in the data set.
        max_bad_rows: the part of them that may be malformed.
        where: the data set.
        listed_in: the file of the result that has `bad_rows_info`.

    Raises:
        UserError: there are more.
    """
    if too_many_bad_rows(len(faults), n_records, max_bad_rows):
        index, fault = faults[0]
        raise UserError(
            f"more than {100 * max_bad_rows:g} % of the {n_records:,} records of {where} are malformed, the first is "
            f"record {index}: {fault}; mend them, or allow more with --max_bad_rows"
        )
    for index, fault in faults[:NAMED_AT_MOST]:
        print(f"left out record {index}: {fault}", file=sys.stderr)
    if faults:
        print(f"left out {len(faults):,} of {n_records:,} records, malformed; {listed_in} lists them", file=sys.stderr)


def bad_rows_info(faults: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """How many records were malformed, and which, for ``provenance.json``."""
    return {"malformed": len(faults), "malformed_records": [index for index, _ in faults]}
