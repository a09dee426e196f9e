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

from safetensors.torch import load_file
from torch import Tensor

from grid.points import GridPoint
from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import FeatureSetting, read_steering
from lm_eval_sae.steering.scores import STATS_FILE
from transformer_lens_r1.shared.matching import match_features

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
        controls = match_features(score, frequency, maximum, features=features, n_matched=n_matched)
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
