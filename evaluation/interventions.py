"""Interventions in words, and what of them a figure can put on an axis."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from run_files import SCORING_CODE, Run
from run_pairs import Pair, differing_settings, shown_value

Features = Sequence[Mapping[str, Any]]
MAX_DETAILS = 3
"""Settings that a label names at most; the date tells apart what they do not."""


def describe(features: Features | None, *, sae_names: Mapping[str, str] | None = None) -> str:
    """E.g. "set 46379 to 2 × 5.84 (blocks.19.hook_resid_post)", or "none".

    Several features of one place name it once: "set 1 to 2 × 5.84; set 2 to 4 × 3.1 (blocks.19.hook_resid_post)".

    Args:
        features: as the results file records them; None for a plain run.
        sae_names: what to call the SAEs, where the label must tell them apart.
    """
    if features is None:
        return "none"
    groups = groupby(features, key=lambda feature: _where(feature, sae_names))
    return "; ".join(f"{'; '.join(map(_change, group))} ({where})" for where, group in groups)


def describe_unrecorded(arguments: Mapping[str, Any]) -> str:
    """An intervention of other code, by those of the arguments that name no file."""
    numbers = [f"{name} {value}" for name, value in sorted(arguments.items()) if not os.path.isabs(str(value))]
    return "steered, not recorded how" + (f" ({', '.join(numbers)})" if numbers else "")


def _where(feature: Mapping[str, Any], sae_names: Mapping[str, str] | None) -> str:
    where = str(feature["hook_name"])
    if feature["units"] != "folded":
        where += f", {feature['units']}"
    if sae_names:
        where += f", {sae_names[str(feature['sae'])]}"
    return where


def _change(feature: Mapping[str, Any]) -> str:
    strength, maximum = feature.get("strength"), feature.get("max_activation")
    value = f"{feature['value']:.4g}" if None in (strength, maximum) else f"{strength:g} × {maximum:.4g}"
    index = feature["feature_idx"]
    return f"add {value} along {index}" if feature["mode"] == "add" else f"{feature['mode']} {index} to {value}"


def series_of(features: Features) -> tuple:
    """What stays the same while the strength of an intervention is varied."""
    return tuple((f["feature_idx"], f["mode"], *(value for _, value in _marks_of(f))) for f in features)


def series_marks(features: Features, *, sae_names: Mapping[str, str]) -> dict[str, str]:
    """What can tell two series of the same features and modes apart: SAE, hook point, units, max activations."""
    marks: dict[str, list[str]] = {}
    for feature in features:
        for name, value in _marks_of(feature):
            text = sae_names[str(value)] if name == "SAE" else "none" if value is None else f"{value}"
            marks.setdefault(name, []).append(f"{value:.4g}" if isinstance(value, float) else text)
    return {name: " + ".join(dict.fromkeys(values)) for name, values in marks.items()}


def _marks_of(feature: Mapping[str, Any]) -> list[tuple[str, Any]]:
    maximum = feature.get("max_activation")
    return [
        ("SAE", feature["sae"]),
        ("", feature["hook_name"]),
        ("units", feature["units"]),
        ("max", None if maximum is None else float(maximum)),
    ]


def strength_of(features: Features) -> float | None:
    """The strength in maximal activations; None where there is none, or the features have different ones."""
    strengths = {feature.get("strength") for feature in features}
    return float(next(iter(strengths))) if len(strengths) == 1 and None not in strengths else None


def short_name(features: Features) -> str:
    """E.g. "46379", "12 + 40", or "46379 (add)"."""
    modes = sorted({str(feature["mode"]) for feature in features} - {"set"})
    name = " + ".join(str(feature["feature_idx"]) for feature in features)
    return f"{name} ({', '.join(modes)})" if modes else name


def details_of(
    runs: Sequence[Run], pairs: Sequence[Pair], names: Sequence[str], files: Sequence[str]
) -> list[tuple[str, ...]]:
    """What each label needs beside the intervention, so that no two runs of one task and model are called the same.

    Where there are several plain runs they are numbered, in the order given, and a steered run says which of them it
    is compared with. Runs of the same name get the settings that differ, and where these are the same too, or too many,
    the date.

    Args:
        runs: in the order of the report.
        pairs: of the steered ones.
        names: of the interventions, one for each run.
        files: results files, one for each run.
    """
    groups: dict[tuple, list[int]] = {}
    for place, run in enumerate(runs):
        groups.setdefault((run.task, run.model, run.revision, names[place]), []).append(place)
    details: list[tuple[str, ...]] = [()] * len(runs)
    numbers: dict[int, str] = {}
    for group in groups.values():
        if len(group) == 1:
            continue
        settings = _differing([runs[place] for place in group])
        for more in (settings, [runs[place].date for place in group], [files[place] for place in group]):
            found = [details[place] for place in group]
            for place, added in zip(group, more, strict=True):
                if found.count(details[place]) > 1:
                    details[place] += (added,) if isinstance(added, str) else added
        for number, place in enumerate(group, 1):
            if not runs[place].steered:
                numbers[id(runs[place])] = f"plain {number}"
    partners = {id(pair.steered): numbers.get(id(pair.plain)) for pair in pairs if pair.keys}
    for place, run in enumerate(runs):
        if number := numbers.get(id(run)):
            details[place] = (number, *details[place])
        elif partner := partners.get(id(run)):
            details[place] += (f"against {partner}",)
    return details


def _differing(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """For each run the values of the requirements and settings in which they differ."""
    required = dict.fromkeys(name for run in runs for name in run.requirements)
    different = [name for name in required if len({str(run.requirements.get(name)) for run in runs}) > 1]
    different += differing_settings(runs)
    return [
        tuple(setting_text(name, (run.requirements | run.settings).get(name)) for name in different[:MAX_DETAILS])
        for run in runs
    ]


def setting_text(name: str, value: Any) -> str:
    """E.g. "temperature 0.6", for a label."""
    if name in ("scoring", SCORING_CODE):
        code = json.dumps(value, sort_keys=True, default=str).encode()
        return f"scoring code {hashlib.sha256(code).hexdigest()[:8]}"
    if isinstance(value, str) and os.path.isabs(value):
        value = os.path.basename(os.path.normpath(value))  # the rest names this machine
    return f"{name.removeprefix('generation argument ').removeprefix('model argument ')} {shown_value(value)}"
