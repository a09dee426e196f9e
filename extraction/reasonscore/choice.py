"""Which features a stage works on: the best, those that were named, and others to compare them with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.shared.arguments import int_list, positive_int
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.matching import match_features

if TYPE_CHECKING:
    from torch import Tensor

    from reasonscore.results import SavedScores


def add_choice_arguments(group: Any, verb: str) -> None:
    """Add ``--topk --keep_similar --features``; ``verb`` is what happens to the features, like show."""
    group.add_argument(
        "--topk", type=positive_int, default=100, help=f"how many of the best distinct features to {verb}"
    )
    group.add_argument(
        "--keep_similar",
        action="store_true",
        help=f"of the best, {verb} those too that nearly coincide with a better one",
    )
    group.add_argument("--features", type=int_list, help=f"{verb} these instead, like 12,99")


def choose_features(statistics: Mapping[str, Tensor], args: argparse.Namespace) -> list[int]:
    """The features of `add_choice_arguments`, each once: as they were named, or best first.

    Raises:
        UserError: the SAE has no such feature.
    """
    from reasonscore.distinct import distinct_features
    from reasonscore.score import rank_features

    n_features = len(statistics["score"])
    for feature in args.features or ():
        if not 0 <= feature < n_features:
            raise UserError(f"--features {feature}: the SAE's features are 0 to {n_features - 1}")
    if args.features:
        return list(dict.fromkeys(args.features))
    if args.keep_similar:
        return rank_features(statistics["score"])[: args.topk].tolist()
    return distinct_features(statistics, args.topk)


def matched_features(
    saved: SavedScores, top: Sequence[int], n_matched: int, scores_dir: Path, *, remedy: str
) -> dict[int, list[int]]:
    """For each of the top features others that fire as often and as strongly, and are no reasoning features.

    Raises:
        UserError: the scores came without statistics (``remedy`` says what to do), or see `match_features`.
    """
    if saved.alone:
        raise UserError(f"the scores in {scores_dir} came without statistics, by which features are matched: {remedy}")
    columns = (saved.statistics[name] for name in ("score", "firing_frequency", "max_activation"))
    return match_features(*columns, features=top, n_matched=n_matched)
