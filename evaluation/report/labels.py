"""What runs are called: models, interventions, and what tells runs of the same intervention apart."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Features = Sequence[Mapping[str, Any]]
SHOWN_CHARACTERS = 40


def plural(number: int, noun: str) -> str:
    """E.g. "1 question", "2 questions"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def shown_value(value: Any) -> str:
    """A setting's value in a few words."""
    if value is None:
        return "none"
    text = os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def setting_text(name: str, value: Any) -> str:
    """E.g. "temperature 0.6", for a label."""
    return f"{name.removeprefix('generation argument ').removeprefix('model argument ')} {shown_value(value)}"


def distinct_names(names: Iterable[str]) -> dict[str, str]:
    """Hub ids as they are; of local folders as many last parts as tell them apart, because a report may be published.

    Two folders of the same name in two places get two names.
    """
    names = set(names)
    ends = {name: [name] for name in names}
    for name in filter(os.path.isabs, names):
        parts = Path(name).parts
        ends[name] = [os.path.join(*parts[-n:]) for n in range(1, len(parts) + 1)]
    return {
        name: next((end for end in ends[name] if not any(end in ends[other] for other in names if other != name)), name)
        for name in names
    }


def describe(
    features: Features | None,
    *,
    control_of: Mapping[str, Any] | None = None,
    word_bias: Mapping[str, Any] | None = None,
    sae_names: Mapping[str, str] | None = None,
) -> str:
    """E.g. "set 46379 to 2 × 5.84 (blocks.19.hook_resid_post)", or "none".

    Several features of one place name it once: "set 1 to 2 × 5.84; set 2 to 4 × 3.1 (blocks.19.hook_resid_post)".
    Controls: "ablate 46379 (…)", "matched 812 for 46379 × 2 (…)", "words +2".

    Args:
        features: of a run.
        control_of: what it is a matched control of.
        word_bias: if it has no features, what the words' logits got.
        sae_names: what to call the SAEs, if the label must tell them apart.
    """
    if word_bias:
        return f"words {word_bias['bias']:+g}"
    if features and control_of:
        (feature,) = features
        mode = "" if feature["mode"] == "set" else f", {feature['mode']}"
        of = f"{control_of['feature_idx']} × {control_of['strength']:g}"
        return f"matched {feature['feature_idx']} for {of}{mode} ({_where(feature, sae_names)})"
    if not features:
        return "none" if features is None else "steered, not recorded how"
    groups = groupby(features, key=lambda feature: _where(feature, sae_names))
    return "; ".join(f"{'; '.join(map(_change, group))} ({where})" for where, group in groups)


def _where(feature: Mapping[str, Any], sae_names: Mapping[str, str] | None) -> str:
    units = [] if feature["units"] == "folded" else [feature["units"]]
    return ", ".join([feature["hook_name"], *units, *([sae_names[str(feature["sae"])]] if sae_names else [])])


def _change(feature: Mapping[str, Any]) -> str:
    strength, maximum = feature.get("strength"), feature.get("max_activation")
    value = f"{feature['value']:.4g}" if None in (strength, maximum) else f"{strength:g} × {maximum:.4g}"
    index = feature["feature_idx"]
    if ablated(feature):
        return f"ablate {index}"
    return f"add {value} along {index}" if feature["mode"] == "add" else f"{feature['mode']} {index} to {value}"


def ablated(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is set to 0."""
    return feature["mode"] == "set" and feature["value"] == 0


def strength_of(features: Features) -> float | None:
    """The strength in maximal activations; None if there is none, or the features have different ones."""
    strengths = {feature.get("strength") for feature in features}
    return float(next(iter(strengths))) if len(strengths) == 1 and None not in strengths else None


def short_name(features: Features) -> str:
    """E.g. "46379", "12 + 40", or "46379 (add)"."""
    modes = sorted({str(feature["mode"]) for feature in features} - {"set"})
    name = " + ".join(str(feature["feature_idx"]) for feature in features)
    return f"{name} ({', '.join(modes)})" if modes else name
