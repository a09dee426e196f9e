"""Interventions in words, and what of them a figure can put on an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Features = Sequence[Mapping[str, Any]]


def describe(features: Features | None, *, sae_names: Mapping[str, str] | None = None) -> str:
    """E.g. "set 46379 to 2 × 5.84 (blocks.19.hook_resid_post)", or "none".

    Args:
        features: as the results file records them; None for a plain run.
        sae_names: what to call the SAEs, where the label must tell them apart.
    """
    if features is None:
        return "none"
    return "; ".join(_describe(feature, sae_names) for feature in features)


def _describe(feature: Mapping[str, Any], sae_names: Mapping[str, str] | None) -> str:
    strength, maximum = feature.get("strength"), feature.get("max_activation")
    value = f"{feature['value']:.4g}" if None in (strength, maximum) else f"{strength:g} × {maximum:.4g}"
    where = str(feature["hook_name"])
    if feature["units"] != "folded":
        where += f", {feature['units']}"
    if sae_names:
        where += f", {sae_names[str(feature['sae'])]}"
    index = feature["feature_idx"]
    change = f"add {value} along {index}" if feature["mode"] == "add" else f"{feature['mode']} {index} to {value}"
    return f"{change} ({where})"


def series_of(features: Features) -> tuple:
    """What stays the same while the strength of an intervention is varied."""
    return tuple((f["sae"], f["hook_name"], f["feature_idx"], f["mode"], f["units"]) for f in features)


def strength_of(features: Features) -> float | None:
    """The strength in maximal activations; None where there is none, or the features have different ones."""
    strengths = {feature.get("strength") for feature in features}
    return float(next(iter(strengths))) if len(strengths) == 1 and None not in strengths else None


def short_name(features: Features) -> str:
    """E.g. "46379", "12 + 40", or "46379 (add)"."""
    modes = sorted({str(feature["mode"]) for feature in features} - {"set"})
    name = " + ".join(str(feature["feature_idx"]) for feature in features)
    return f"{name} ({', '.join(modes)})" if modes else name
