"""Pictures of the scores: all of them in order, and the best features against the words."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which looks for a display and keeps figures

from reasonscore.score import EPSILON, rank_features

if TYPE_CHECKING:
    from reasonscore.results import Result

ROWS_SHOWN = 50
"""Features in the heat map: more would be too small to read."""
BLUE, RED, GREY = "#33658a", "#c8553d", "#6c757d"


def draw_scores(path: Path, result: Result) -> None:
    """The scores of all features from the highest down, the best ``topk`` marked, and the line of the quantile."""
    score = result.scores.score.numpy()
    order = rank_features(result.scores.score.float()).numpy()
    n, topk = len(order), min(result.settings.topk, len(order))
    figure, axes = _figure(9, 5)
    positions = range(1, n + 1)
    axes.plot(positions, score[order], color=BLUE, linewidth=1.5, label=f"all {n:,} features")
    axes.scatter(positions[:topk], score[order[:topk]], s=14, color=RED, zorder=3, label=f"the best {topk}")
    axes.axhline(
        result.threshold,
        color=GREY,
        linestyle="--",
        linewidth=1,
        label=f"quantile {result.settings.quantile:g}: {result.n_above:,} features above {result.threshold:.2e}",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0.9, n)
    axes.set_xlabel("rank of the feature (logarithmic)")
    axes.set_ylabel("ReasonScore")
    axes.set_title("ReasonScore of every feature")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_words(path: Path, result: Result) -> None:
    """How the mean activation of each of the best features is spread over the words."""
    features = rank_features(result.scores.score.float())[: min(ROWS_SHOWN, result.settings.topk)]
    means = result.scores.word_means[features]  # [features, |W|]
    shares = means / (means.sum(dim=1, keepdim=True) + EPSILON)
    n, n_words = shares.shape
    figure, axes = _figure(max(5.0, 2.2 + 0.62 * n_words), 1.9 + 0.2 * n)
    image = axes.imshow(shares.numpy(), aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set_xticks(range(n_words), [_shown(word) for word in result.words], rotation=45, ha="left")
    axes.xaxis.tick_top()
    labels = [f"{rank}.  {feature}" for rank, feature in enumerate(features.tolist(), start=1)]
    axes.set_yticks(range(n), labels, fontsize=8)
    axes.set_ylabel("rank and index of the feature")
    axes.set_title("Share of a feature's mean activation on each word, p(w)")
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    return figure, figure.subplots()


def _shown(word: str) -> str:
    """A word as a picture shows it: no mathematics, one line."""
    return " ".join(word.split()).replace("$", r"\$")[:24]


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # A word in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, format="png")
