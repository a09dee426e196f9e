"""Each steered feature among its controls: does it do more than any push of its size, and more than its words alone?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from report.paired_statistics import TINY
from report.rows import RATES, Row
from report.runs import Run

WORD_RATE = "reasoning_words_per_1000_tokens_difference"
EFFECTS = {
    "accuracy_difference": "Δ accuracy, points",
    "completion_tokens_change": "Δ tokens, %",
    WORD_RATE: "Δ reasoning words per 1,000 tokens",  # not relative: a baseline may use none
}
"""What is compared, and what tables call it."""
OF_SAE = ("sae", "hook_name")
OF_FEATURE = (*OF_SAE, "feature_idx")
CONTROLS_METHOD = (
    "Ablated: the feature set to 0. Matched: other features that are no reasoning features (at most the median "
    "ReasonScore of those that fire), fire about as often and as strongly, and are set to the same value, so that the "
    "change of the residual stream has the same norm. Words: nothing is steered, and the logits of the tokens that are "
    "reasoning words get a bias. p is (1 + the matched features with an effect at least as large, in either direction) "
    "/ (1 + all of them): 5 matched features give no p below 0.17, 19 none below 0.05. It is not corrected for the "
    "number of features."
)


@dataclass(frozen=True)
class Placed:
    """One effect of a steered feature among the same effect of its controls; shares, not per cent, and word rates."""

    place: int
    """Of its row in the report."""
    row: Row
    effect: str
    """Of EFFECTS."""
    value: float
    matched: tuple[float, ...]
    ablated: float | None
    words: Mapping[float, float]
    """By bias."""

    @property
    def as_large(self) -> int:
        """Matched features whose effect is at least as large, in either direction."""
        return sum(abs(value) >= abs(self.value) - TINY for value in self.matched)

    @property
    def p(self) -> float | None:
        """Of such an effect if the feature were one more of the matched ones."""
        return (1 + self.as_large) / (1 + len(self.matched)) if self.matched else None

    def record(self) -> dict[str, Any]:
        """The line of controls.csv."""
        names = ("task", "model", "intervention", "feature_idx", "strength", "results_file")
        matched = self.matched
        return {
            **{name: self.row.record[name] for name in names},
            "effect": self.effect,
            "value": self.value,
            "matched": len(matched),
            "matched_median": median(matched) if matched else None,
            "matched_min": min(matched, default=None),
            "matched_max": max(matched, default=None),
            "matched_as_large": self.as_large,
            "matched_p": self.p,
            "ablated": self.ablated,
            **{f"words_{bias:+g}": value for bias, value in self.words.items()},
        }


def place_features(rows: Sequence[Row]) -> list[Placed]:
    """The effects of every single feature that has controls of the same task and baseline, effect by effect.

    Args:
        rows: what `summarize` gave.
    """
    placed = []
    for place, row in enumerate(rows):
        if not row.compared or row.run.control or len(row.run.features or ()) != 1:
            continue
        (feature,) = row.run.features
        near = [r for r in rows if r.compared and (r.run.task, r.pair.baseline) == (row.run.task, row.pair.baseline)]
        matched = [r for r in near if r.run.control == "matched" and _is_matched(r.run, feature)]
        ablated = [r for r in near if r.run.control == "ablate" and _same(r.run.features[0], feature, *OF_FEATURE)]
        words = {r.run.word_bias["bias"]: r for r in near if r.run.control == "words"}
        for effect in EFFECTS if matched or ablated or words else ():
            if (value := _effect(row, effect)) is not None:
                found = Placed(
                    place=place,
                    row=row,
                    effect=effect,
                    value=value,
                    matched=tuple(other for r in matched if (other := _effect(r, effect)) is not None),
                    ablated=_effect(ablated[0], effect) if ablated else None,
                    words={bias: other for bias, r in words.items() if (other := _effect(r, effect)) is not None},
                )
                placed.append(found)
    effects = list(EFFECTS)
    # Rows are in the order of task, model and revision already; within an effect features stay in the report's order.
    return sorted(
        placed,
        key=lambda one: (one.row.run.task, one.row.run.model, one.row.run.revision, effects.index(one.effect)),
    )


def _effect(row: Row, effect: str) -> float | None:
    if effect != WORD_RATE:
        return row.record[effect]
    return row.words[0][RATES[1]] - row.words[0][RATES[0]] if row.words else None


def _same(one: Mapping[str, Any], other: Mapping[str, Any], *names: str) -> bool:
    return all(one[name] == other[name] for name in names)


def _is_matched(control: Run, feature: Mapping[str, Any]) -> bool:
    (one,) = control.features
    return _same(one, feature, *OF_SAE, "mode", "units") and _same(
        control.control_of, feature, "feature_idx", "strength"
    )
