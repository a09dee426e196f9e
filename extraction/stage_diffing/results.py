"""The files of a comparison of stages: two tables, a picture and a page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from reasonscore.score import ranks_of
from torch import Tensor

from stage_diffing.presence import THRESHOLDS, Nearest, Share, present, share_with_interval

FEATURES, PRESENCE, PICTURE, PAGE = "features.csv", "presence.csv", "presence.png", "index.html"
SHOWN = (0.5, 0.7, 0.9)
"""Thresholds on the page and on the terminal."""
COLOURS = ("#33658a", "#e09f3e", "#c8553d", "#5f7a61", "#7d5ba6", "#6c757d")


@dataclass(frozen=True)
class Stage:
    """A stage's SAE, compared with the features of the final one."""

    name: str
    nearest: Nearest
    """Of the final SAE's features: the top ones, then those matched to the first of them, to the second …"""
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """`SavedScores.statistics` of this stage's own SAE and model; empty if not given."""


@dataclass(frozen=True)
class Presence:
    """How many features are present in a stage: reasoning features, matched ones, and the difference."""

    stage: str
    reasoning: Share
    matched: Share
    difference: Share


def measure_presence(stage: Stage, n_top: int, *, n_resamples: int, seed: int) -> Presence:
    """Presence of the top features and of the matched ones; a resample draws a feature with those matched to it."""
    cosine = stage.nearest.cosine
    top, matched = present(cosine[:n_top, None]), present(cosine[n_top:].view(n_top, -1))
    shares = (share_with_interval(part, n_resamples=n_resamples, seed=seed) for part in (top, matched, top - matched))
    return Presence(stage.name, *shares)


def table_of_features(matched: Mapping[int, Sequence[int]], scores: Tensor, stages: Sequence[Stage]) -> pd.DataFrame:
    """One row for each feature, in the order of `Stage.nearest`.

    Args:
        matched: the features that are matched to each top feature.
        scores: the final stage's ReasonScore, [d_sae].
        stages: the earlier ones.
    """
    features = [*matched, *(other for others in matched.values() for other in others)]
    of = [None] * len(matched) + [feature for feature, others in matched.items() for _ in others]
    columns = {
        "feature": features,
        "matched_to": pd.array(of, dtype="Int64"),
        "rank": np.array(ranks_of(scores))[features],
        "score": scores[features].double().numpy(),
    }
    for stage in stages:
        row = stage.nearest.row
        columns[f"row:{stage.name}"] = row.numpy()
        columns[f"cosine:{stage.name}"] = stage.nearest.cosine.double().numpy()
        if stage.statistics:
            score = stage.statistics["score"]
            columns[f"rank:{stage.name}"] = np.array(ranks_of(score))[row.numpy()]
            columns[f"score:{stage.name}"] = score[row].double().numpy()
        if "firing_frequency" in stage.statistics:
            columns[f"firing_frequency:{stage.name}"] = stage.statistics["firing_frequency"][row].double().numpy()
    return pd.DataFrame(columns)


def table_of_presence(found: Sequence[Presence]) -> pd.DataFrame:
    """One row for each stage and threshold."""
    tables = []
    for one in found:
        columns = {"stage": one.stage, "threshold": THRESHOLDS}
        for name in ("reasoning", "matched", "difference"):
            share = getattr(one, name)
            columns |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables)


def draw(path: Path, found: Sequence[Presence]) -> None:
    """Presence over the threshold, stages by colour; matched features are dashed."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, one in enumerate(found):
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(THRESHOLDS, one.reasoning.value, color=colour, label=f"{one.stage}: reasoning features")
        axes.fill_between(THRESHOLDS, one.reasoning.low, one.reasoning.high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(THRESHOLDS, one.matched.value, "--", color=colour, label=f"{one.stage}: matched features")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("threshold c of the cosine between decoder directions")
    axes.set_ylabel("share of the final stage's features that are present")
    axes.set_title("In which stages are the final stage's features there already?", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _at(share: Share, threshold: float) -> str:
    index = int(np.abs(THRESHOLDS - threshold).argmin())
    return f"{share.value[index]:.2f} [{share.low[index]:.2f}, {share.high[index]:.2f}]"


def summary(found: Sequence[Presence]) -> pd.DataFrame:
    """Presence at `SHOWN`, with intervals, as text."""
    return pd.DataFrame(
        {
            "stage": one.stage,
            "cosine ≥": f"{threshold:g}",
            "reasoning features": _at(one.reasoning, threshold),
            "matched": _at(one.matched, threshold),
            "difference": _at(one.difference, threshold),
        }
        for one in found
        for threshold in SHOWN
    )


def write_page(
    folder: Path,
    place: Path,
    table: pd.DataFrame,
    found: Sequence[Presence],
    dashboards: Mapping[str, Path],
    about: str,
) -> None:
    """Write the page, with a link to a feature's page among the dashboards where there is one.

    Args:
        folder: to write to.
        place: where the folder will be in the end, to which links are relative.
        table: from `table_of_features`.
        found: of each stage.
        dashboards: folders by the stage's name; the final stage's name is empty.
        about: a line on the SAEs; plain text.
    """

    def link(stage: str, feature: int) -> str:
        page = dashboards[stage] / f"feature_{feature}.html" if stage in dashboards else None
        return quote(os.path.relpath(page.resolve(), place.resolve())) if page is not None and page.is_file() else ""

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "assets"), undefined=StrictUndefined, autoescape=True
    )
    page = environment.get_template("stage_diffing.html").render(
        about=about,
        summary=summary(found),
        rows=table[table["matched_to"].isna()].to_dict("records"),
        stages=[one.stage for one in found],
        link=link,
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
