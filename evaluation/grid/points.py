"""What is run: the baseline, and interventions, each checked against its SAE."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import FEATURE_ARGUMENTS, Steering, read_feature_setting, read_steering
from lm_eval_sae.steering.files import feature_entries, read_content

KEYS = (*(name for name in FEATURE_ARGUMENTS if name != "sae_strength"), "strengths")
TABLE = "top_features.csv"


@dataclass(frozen=True)
class GridPoint:
    """One intervention, or the baseline."""

    name: str
    """In the name of its folder, such as "sae-<feature>-x<strength>"; "" for the baseline."""
    arguments: Mapping[str, Any]
    """The `sae_*` model arguments of a run of its own; {} for the baseline."""
    steering: Steering | None

    @property
    def label(self) -> str:
        """For people."""
        if self.steering is None:
            return "baseline"
        if self.steering.word_bias is not None:
            return f"words {self.steering.word_bias.bias:+g}"
        control_of = self.steering.control_of
        of = f", matched for {control_of.feature_idx} × {control_of.strength:g}" if control_of else ""
        return ", ".join(
            f"{feature.mode} {feature.feature_idx} to {feature.strength:g} × {feature.max_activation:.4g}{of}"
            for feature in self.steering.features
        )


BASELINE = GridPoint("", {}, None)


def read_one(arguments: Mapping[str, Any], load_tokenizer: Callable[[], Any]) -> list[GridPoint]:
    """The intervention that `sae_*` model arguments describe, if there are any. Raises UserError as `read_steering`."""
    steering = read_steering(arguments, load_tokenizer)
    if steering is None:
        return []
    if steering.word_bias is not None:
        return [GridPoint(f"words-b{steering.word_bias.bias:g}", arguments, steering)]
    path = arguments.get("sae_intervention_path")
    return [GridPoint(f"sae-{Path(str(path)).stem if path else steering.features[0].feature_idx}", arguments, steering)]


def read_grid(path: Path, *, shared: Mapping[str, Any]) -> list[GridPoint]:
    """The points of a YAML (JSON, .pt) file, in its order.

    A feature is its index, or a mapping with arguments of its own:

        sae_path: quickstart-run/sae
        sae_stats: quickstart-run/scores
        sae_max_activation: auto
        strengths: [1, 2, 4]
        features: [2026, 1792, {sae_feature_idx: 3061, sae_max_activation: 21.9, sae_stats: null}]

    Args:
        path: of the file.
        shared: `sae_*` arguments that the user gave elsewhere.

    Raises:
        UserError: whatever is missing, unknown, double or does not fit the SAE.
    """
    content = read_content(path.expanduser(), name="--grid")
    if isinstance(content, Mapping) and isinstance(content.get("features"), list):
        features = [{"sae_feature_idx": e} if type(e) is int else e for e in content["features"]]
        content = {**content, "features": features}
        if any("sae_strength" in part for part in (content, *features) if isinstance(part, Mapping)):
            raise UserError(f"{path} has sae_strength; the strengths of a sweep are a list, such as strengths: [1, 2]")
    if shared:
        raise UserError(f"{next(iter(shared))} is in --model_args; with --grid it belongs into {path}")
    return _points(feature_entries(content, path=path, known=KEYS), where=str(path))


def read_scores(
    folder: Path,
    *,
    topk: int,
    features: Sequence[int],
    strengths: Sequence[float],
    shared: Mapping[str, Any],
    keep_similar: bool = False,
) -> list[GridPoint]:
    """The best features of a scores folder, each with its own maximal activation in the scored text.

    Args:
        folder: that compute_score.py wrote.
        topk: how many distinct ones, in the order of ReasonScore; of no account where there are ``features``.
        features: these instead of the best.
        strengths: of each.
        shared: `sae_*` arguments of all, which name the SAE.
        keep_similar: of the best, take those too that nearly coincide with a better one.

    Raises:
        UserError: as `read_grid`.
    """
    for name in ("sae_feature_idx", "sae_strength", "sae_max_activation", "sae_stats", "sae_intervention_path"):
        if name in shared:
            raise UserError(f"{name} is in --model_args, but --scores_dir says which features and maximal activations")
    if not folder.is_dir():
        raise UserError(f"no scores folder at {folder}; expected what compute_score.py wrote")
    chosen = list(features) or _best(folder, topk, keep_similar)
    own = {"sae_stats": str(folder), "sae_max_activation": "auto", "strengths": list(strengths)}
    return _points([{**shared, **own, "sae_feature_idx": index} for index in chosen], where=str(folder))


def _best(folder: Path, topk: int, keep_similar: bool) -> list[int]:
    table = folder / TABLE
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        best = [int(row["feature"]) for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{table} is not what compute_score.py wrote ({error!r})") from error
    # A table of an older version has no clusters: all count as distinct.
    distinct = [int(row["feature"]) for row in rows if row.get("cluster", row["feature"]) == row["feature"]]
    chosen = best if keep_similar else distinct
    if len(chosen) < topk:
        of_them = f", {len(chosen)} of them distinct (--keep_similar takes all)" if len(chosen) < len(best) else ""
        raise UserError(
            f"{table} has the {len(best)} best features{of_them}, --topk asks for {topk}; a larger --topk of "
            "compute_score.py gives more"
        )
    return chosen[:topk]


def _points(entries: Sequence[Mapping[str, Any]], *, where: str) -> list[GridPoint]:
    points: dict[str, GridPoint] = {}
    for number, entry in enumerate(entries, 1):
        strengths = _strengths(entry.get("strengths"), where=where)
        arguments = {key: value for key, value in entry.items() if key != "strengths"}
        try:
            setting = read_feature_setting({**arguments, "sae_strength": strengths[0]})
        except UserError as error:
            raise UserError(f"{where}, feature {number}: {error}") from error
        mode = "" if setting.mode == "set" else f"-{setting.mode}"
        for strength in strengths:
            name = f"sae-{setting.feature_idx}{mode}-x{strength:g}"
            if name in points:
                raise UserError(
                    f"{where} has feature {setting.feature_idx} with strength {strength:g} twice; expected it once "
                    "(the same index of two SAEs: in two sweeps)"
                )
            feature = replace(setting, strength=float(strength), value=strength * setting.max_activation)
            points[name] = GridPoint(name, {**arguments, "sae_strength": strength}, Steering((feature,)))
    return list(points.values())


def _strengths(values: Any, *, where: str) -> list[float]:
    if values is None:
        raise UserError(f"{where} has no strengths; expected a list, such as strengths: [1, 2, 4]")
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: strengths is {values!r}, expected a list, such as [1, 2, 4]")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise UserError(f"{where}: the strength {value!r} is no number")
    return values


def layers(points: Iterable[GridPoint]) -> dict[int, int]:
    """Layer → the most features that a point changes there at once."""
    most: dict[int, int] = {}
    for point in points:
        for layer, features in point.steering.layers().items() if point.steering else ():
            most[layer] = max(len(features), most.get(layer, 0))
    return most
