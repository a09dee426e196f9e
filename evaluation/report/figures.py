"""Figures of the report: accuracy and length against strength, and against one another."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which looks for a display and keeps figures
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from report.labels import distinct_names, setting_text, short_name
from report.paired_statistics import Estimate
from report.rows import LENGTHS, Row

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; the markers do it without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = "osD^vPX*"
LOOK = {
    "axes.grid": True, "grid.alpha": 0.25, "axes.titlesize": 10, "lines.markersize": 6, "lines.linewidth": 1.5,
    "errorbar.capsize": 3,
    "legend.frameon": False, "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names of models and SAEs may hold any characters
    "svg.hashsalt": "report", "svg.fonttype": "path",  # the same runs give the same file
}  # fmt: skip
PERCENT = 100
LABEL_ROUNDS = 500
"""In which labels are moved apart; a few dozen labels take a second."""
MARKER = 5
"""Half of a marker's size, in pixels."""
ACCURACY = "accuracy_difference"
LENGTH = "completion_tokens_change"
AXES = {ACCURACY: "change in accuracy, percentage points", LENGTH: "change in completion tokens, %"}


class Picture(NamedTuple):
    """A figure as SVG, and what it shows in words."""

    name: str
    caption: str
    svg: str

    @property
    def address(self) -> str:
        """The picture itself as a data: address."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode("utf-8")).decode("ascii")


class Series(NamedTuple):
    """Runs that differ in their strength alone, and how they look in every figure."""

    name: str
    rows: Sequence[Row]
    colour: str
    marker: str

    @property
    def by_strength(self) -> list[tuple[float, Row]]:
        """Its runs that have a strength, in its order."""
        known = [(row.record["strength"], row) for row in self.rows if row.record["strength"] is not None]
        return sorted(known, key=lambda one: one[0])


def draw_figures(rows: Sequence[Row]) -> list[Picture]:
    """The pictures of every task and model with at least two features or strengths.

    Runs that were not compared with a baseline, or whose tokens were not counted, and matched controls are in no
    picture; and without a feature that was steered with two strengths there is none against strength.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.run.features and not row.run.control_of and row.estimate(ACCURACY) and row.estimate(LENGTH):
            groups.setdefault((row.run.task, row.record["model"]), []).append(row)
    pictures: list[Picture] = []
    for number, ((task, model), group) in enumerate(groups.items(), 1):
        if len(group) < 2:
            continue
        suffix = "" if len(groups) == 1 else f"_{number}"
        about = (
            f"{task}, {model}; {_sizes(group)} questions; bars are 95 % intervals of the paired bootstrap; a point "
            "without one has no interval in that direction, as its questions are all alike."
        )
        series = _series(group)
        with matplotlib.rc_context(LOOK):
            if swept := [one for one in series if len(dict(one.by_strength)) > 1]:
                caption = f"Accuracy and length against strength: {about}"
                pictures.append(Picture(f"strength{suffix}", caption, _svg(_strengths(swept, group))))
            caption = f"Change in length against change in accuracy, a point for each steered run: {about}"
            pictures.append(Picture(f"length_and_accuracy{suffix}", caption, _svg(_scatter(series, group))))
    return pictures


def _sizes(rows: Sequence[Row]) -> str:
    n = sorted({row.compared for row in rows})
    return f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"


def _series(rows: Sequence[Row]) -> list[Series]:
    """Runs that differ in more than their strength are in different series, even of the same feature."""
    saes = distinct_names(str(feature["sae"]) for row in rows for feature in row.run.features or ())
    groups: dict[tuple, list[Row]] = {}
    facts = {}
    for row in rows:
        name, known = short_name(row.run.features or ()), _facts(row, saes)
        key = name, *known.items()
        facts[key] = known
        groups.setdefault(key, []).append(row)
    found = []
    for key, group in groups.items():
        alike = [facts[other] for other in groups if other[0] == key[0]]
        differing = [fact for fact in facts[key] if len({known.get(fact) for known in alike}) > 1]
        found.append((", ".join([key[0], *(facts[key][fact] for fact in differing)]), group))
    # Colours and markers step at different paces, so that 64 pairs come before one returns.
    n, m = len(COLOURS), len(MARKERS)
    return [Series(*one, COLOURS[i % n], MARKERS[(i + i // n) % m]) for i, one in enumerate(found)]


def _facts(row: Row, saes: dict[str, str]) -> dict[str, str]:
    """What can tell two series of the same features apart, in words."""
    features = row.run.features or ()
    maxima = [f"{feature.get('max_activation') or 0:.4g}" for feature in features]
    return {
        "SAE": "SAE " + " + ".join(dict.fromkeys(saes[str(feature["sae"])] for feature in features)),
        "hook": " + ".join(dict.fromkeys(str(feature["hook_name"]) for feature in features)),
        "units": "units " + " + ".join(dict.fromkeys(str(feature["units"]) for feature in features)),
        "max": "max " + " + ".join(dict.fromkeys(maxima)),
        **{name: setting_text(name, value) for name, value in row.run.settings.items()},
        "partner": f"against {row.partner}",
    }


def _strengths(series: Sequence[Series], rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(11, 4.4))
    panels = figure.subplots(1, 2)
    places = {
        strength: place for place, strength in enumerate(sorted({s for one in series for s, _ in one.by_strength}))
    }
    (baseline, *others) = {row.pair.baseline for row in rows if row.pair}
    titles = (ACCURACY, baseline.accuracy_name, "{:.1%} accuracy"), (LENGTH, LENGTHS[0], "{:,.1f} tokens per answer")
    for axes, (quantity, metric, form) in zip(panels, titles, strict=True):
        for number, one in enumerate(series):
            # Side by side, so that the bars of different features do not cover one another.
            aside = 0.5 * (number - (len(series) - 1) / 2) / len(series)
            xs = [places[strength] + aside for strength, _ in one.by_strength]
            ys = [row.estimate(quantity) for _, row in one.by_strength]
            axes.plot(xs, [PERCENT * y.value for y in ys], color=one.colour)
            for x, y in zip(xs, ys, strict=True):
                _draw(axes, x, y, one)
        axes.axhline(0, color="grey", linewidth=1, linestyle="--")
        # Evenly spaced: strengths are mostly doubled, and each needs room for its name.
        axes.set_xticks(range(len(places)), [f"{strength:g}" for strength in places])
        axes.set_xlabel("steering strength, in maximal activations")
        axes.set_ylabel(AXES[quantity])
        known = None if others else baseline.metrics.get(metric)
        axes.set_title(
            _sizes(rows) if known is None else f"baseline: {form.format(known).replace('%', ' %')}, {_sizes(rows)}"
        )
    _legend(figure, series, linestyle="-")
    return figure


def _draw(axes: Axes, x: float, y: Estimate, series: Series, *, across: Estimate | None = None) -> None:
    """A point with the intervals that it has; ``across`` is the share that ``x`` is, if it is an estimate too."""
    axes.errorbar(
        x, PERCENT * y.value, xerr=across and _bar(across), yerr=_bar(y), color=series.colour, marker=series.marker,
        elinewidth=1, linestyle="none",
    )  # fmt: skip


def _bar(value: Estimate) -> list[list[float]] | None:
    """[2, 1]: how far the interval reaches below and above; None if there is none."""
    if value.low is None or value.high is None:
        return None
    return [[PERCENT * max(0.0, value.value - value.low)], [PERCENT * max(0.0, value.high - value.value)]]


def _scatter(series: Sequence[Series], rows: Sequence[Row]) -> Figure:
    many = len(series) > len(COLOURS)
    figure = Figure(figsize=(10, 7.5) if many else (7.5, 5.2))
    axes = figure.subplots()
    over_bars = {"zorder": 5, "path_effects": [withStroke(linewidth=2.5, foreground="white")]}
    labels = []
    for one in series:
        for row in one.rows:
            length, accuracy, strength = row.estimate(LENGTH), row.estimate(ACCURACY), row.record["strength"]
            x, y = PERCENT * length.value, PERCENT * accuracy.value
            _draw(axes, x, accuracy, one, across=length)
            # With more series than colours, the legend alone does not find them.
            parts = ([one.name] if many else []) + ([] if strength is None else [f"{strength:g}"])
            labels.append(axes.text(x, y, " × ".join(parts), fontsize=7 if many else 9, **over_bars))
    axes.axhline(0, color="grey", linewidth=1, linestyle="--")
    axes.axvline(0, color="grey", linewidth=1, linestyle="--")
    axes.set_xlabel(AXES[LENGTH])
    axes.set_ylabel(AXES[ACCURACY])
    numbers = "labels are features × strengths" if many else "numbers are strengths"
    axes.set_title(f"against the baseline, {_sizes(rows)}; {numbers}")
    _legend(figure, series, linestyle="none")
    figure.draw_without_rendering()  # the axes have their final size from here on
    places = axes.transData.transform([label.get_position() for label in labels])
    markers = [Bbox([[x - MARKER, y - MARKER], [x + MARKER, y + MARKER]]) for x, y in places]
    # A limit in rounds, not in seconds: the same runs give the same file.
    adjust_text(
        labels, objects=markers, ax=axes, iter_lim=LABEL_ROUNDS,
        expand=(1.4, 1.3), force_static=(0.3, 0.4), arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.6},
    )  # fmt: skip
    return figure


def _legend(figure: Figure, series: Sequence[Series], *, linestyle: str) -> None:
    handles = [Line2D([], [], color=one.colour, marker=one.marker, linestyle=linestyle) for one in series]
    figure.legend(
        handles, [one.name for one in series], loc="outside right upper", title="feature",
        ncols=1 + (len(series) - 1) // 24, fontsize=8 if max(len(one.name) for one in series) > 12 else 10,
    )  # fmt: skip


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
