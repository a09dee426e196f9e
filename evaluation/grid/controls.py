"""Controls of a grid's points: what would steering do that is not the reasoning feature's?

Three kinds, each a run like any other:

- `ablate`: the feature set to 0. Is it needed?
- `matched`: other features, no reasoning features by their score, that fire about as often and as strongly, set to the
  same value. The change of the residual stream has the same norm then: is it the feature, or any push of this size?
- `words`: the reasoning words made likelier by a logit bias. Is it the feature, or just more "wait"?
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from grid.points import GridPoint
from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import FeatureSetting, read_steering
from lm_eval_sae.steering.scores import STATS_FILE

KINDS = ("ablate", "matched", "words")
STATISTICS = ("score", "firing_frequency", "max_activation")


def control_points(
    points: Sequence[GridPoint],
    *,
    kinds: Collection[str],
    n_matched: int = 5,
    word_bias: Sequence[float] = (2.0,),
    words: Path,
    load_tokenizer: Callable[[], Any],
) -> list[GridPoint]:
    """The controls of a grid.

    Args:
        points: of the grid, without the baseline; each changes one feature.
        kinds: of KINDS.
        n_matched: matched features for each feature.
        word_bias: what is added to the words' logits, a run for each.
        words: JSON list of spellings.
        load_tokenizer: returns the model's.

    Raises:
        UserError: there are no statistics to match by, or fewer features than are needed.
    """
    found: list[GridPoint] = []
    if "ablate" in kinds:
        found += _ablations(points)
    if "matched" in kinds:
        found += _matched(points, n_matched)
    if "words" in kinds:
        for bias in word_bias:
            arguments = {"sae_word_bias": bias, "sae_words": str(words)}
            found.append(GridPoint(f"words-b{bias:g}", arguments, read_steering(arguments, load_tokenizer)))
    return found


def _ablations(points: Sequence[GridPoint]) -> list[GridPoint]:
    there = {point.name for point in points}
    found: dict[str, GridPoint] = {}
    for point in points:
        feature = _feature(point)
        name = f"sae-{feature.feature_idx}-x0"
        if name not in there | found.keys():
            # `set` whatever the point's mode is: in the others 0 does not take the feature out.
            others = {key: v for key, v in point.arguments.items() if key not in ("sae_mode", "sae_units")}
            arguments = {**others, "sae_strength": 0}
            found[name] = GridPoint(name, arguments, read_steering(arguments))
    return list(found.values())


def _matched(points: Sequence[GridPoint], n_matched: int) -> Iterator[GridPoint]:
    by_scores: dict[str, list[GridPoint]] = {}
    for point in points:
        scores = point.arguments.get("sae_stats")
        if scores is None:
            raise UserError(
                f"matched controls of feature {_feature(point).feature_idx} need its scores folder: give --scores_dir, "
                "or sae_stats with sae_max_activation: auto"
            )
        by_scores.setdefault(str(scores), []).append(point)
    for scores, of_scores in by_scores.items():
        score, frequency, maximum = _read_statistics(Path(scores))
        features = list(dict.fromkeys(_feature(point).feature_idx for point in of_scores))
        controls = match(score, frequency, maximum, features=features, n_matched=n_matched)
        for point in of_scores:
            index, strength = _feature(point).feature_idx, point.arguments["sae_strength"]
            for control in controls[index]:
                arguments = {
                    **point.arguments,
                    "sae_feature_idx": control,
                    # The same value in folded units, where all decoder rows have norm 1.
                    "sae_strength": strength * float(maximum[index]) / float(maximum[control]),
                    "sae_control_of": f"{index}x{strength}",
                }
                name = point.name.replace(f"sae-{index}", f"sae-{control}-for-{index}")
                yield GridPoint(name, arguments, read_steering(arguments))


def match(
    score: Tensor, frequency: Tensor, maximum: Tensor, *, features: Sequence[int], n_matched: int
) -> dict[int, list[int]]:
    """For each feature the nearest others that fire and are no reasoning features.

    These have at most the median ReasonScore of the features that fire. The distance of two features is
    |Δ ln firing frequency| + |Δ ln maximal activation|. No control is used twice: features choose in turn, one at a
    time, so that the first does not take the best for all of its own.

    Args:
        score: ReasonScore, [d_sae].
        frequency: share of positions at which each feature fires, [d_sae].
        maximum: maximal activations in folded units, [d_sae].
        features: that need controls.
        n_matched: how many each.

    Raises:
        UserError: there are too few.
    """
    fires = (frequency > 0) & (maximum > 0)
    free = fires & (score <= score[fires].median())
    free[list(features)] = False
    if free.sum() < n_matched * len(features):
        raise UserError(
            f"{n_matched} matched controls for each of {len(features)} features need {n_matched * len(features)} "
            f"features that fire and are no reasoning features; the scores have {int(free.sum())}: lower --n_matched"
        )
    place = torch.stack([frequency.double().log(), maximum.double().log()])  # [2, d_sae]
    controls: dict[int, list[int]] = {feature: [] for feature in features}
    for _ in range(n_matched):
        for feature, chosen in controls.items():
            distance = (place - place[:, [feature]]).abs().sum(dim=0)
            nearest = int(distance.where(free, torch.inf).argmin())
            free[nearest] = False
            chosen.append(nearest)
    return controls


def _read_statistics(scores: Path) -> list[Tensor]:
    file = scores.expanduser() / STATS_FILE
    statistics = load_file(file)
    if missing := [name for name in STATISTICS if name not in statistics]:
        raise UserError(f"{file} has no {missing[0]}, which matched controls need; score again with compute_score.py")
    return [statistics[name] for name in STATISTICS]


def _feature(point: GridPoint) -> FeatureSetting:
    features = point.steering.features if point.steering else ()
    if len(features) != 1:
        raise UserError(f"--controls are of single features, and {point.name} changes {len(features)}")
    return features[0]
