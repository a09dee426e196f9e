"""Figures of the report: accuracy and length against strength, and against one another."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from interventions import series_marks, series_of, setting_text, short_name, strength_of
from paired_statistics import Estimate
from run_pairs import differing_settings, distinct_names, plural
from summary_rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; the markers do it without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = "osD^vPX*"
GREY = "#6c757d"
PERCENT = 100
LOGARITHMIC_FROM = 8
"""Ratio of the largest to the smallest strength from which their axis is logarithmic."""
LABEL_WIDTH = 0.07
"""Room that a number below an axis needs, as a share of the axis."""
MARKER_SIZE = 6
"""In points."""
POINTS_PER_INCH = 72
LABEL_ROUNDS = 500
"""In which labels are moved apart; a few dozen labels take a second."""


class Picture(NamedTuple):
    """A figure as SVG, and what it shows in words."""

    name: str
    caption: str
    svg: str

    @property
    def address(self) -> str:
        """The picture itself as a data: address."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode("utf-8")).decode("ascii")


class Point(NamedTuple):
    """One steered run in a figure."""

    strength: float | None
    accuracy: Estimate
    length: Estimate

    @property
    def whole(self) -> bool:
        """Whether both of its numbers have an interval."""
        return self.accuracy.low is not None and self.length.low is not None


class Style(NamedTuple):
    """How a series looks, in every figure of its task and model."""

    colour: str
    marker: str


Series = Mapping[str, Sequence[Point]]
"""The points of each intervention by its name, in the order of strength."""


def draw_figures(rows: Sequence[Row]) -> tuple[list[Picture], list[str]]:
    """The pictures of every task and model with at least two features or strengths, and why others are left out.

    Runs that were not compared with a plain one, or whose tokens were not counted, are in no picture.
    """
    pictures: list[Picture] = []
    left_out: list[str] = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.run.task, row.model), []).append(row)
    for number, ((task, model), group) in enumerate(groups.items(), 1):
        series = _series(group)
        where = f"{task}, {model}"
        if sum(len(points) for points in series.values()) < 2:
            left_out.append(f"{where}: no figures, as they need steered runs of at least two features or strengths.")
            continue
        compared = [row for row in group if row.accuracy_difference]
        sizes = _sizes(compared)
        swept = {name: points for name, points in series.items() if len({p.strength for p in points} - {None}) > 1}
        # Those of the figures against strength come first, so that each of these has as many colours as there are.
        styles = _styles([*swept, *(name for name in series if name not in swept)])
        suffix = "" if len(groups) == 1 else f"_{number}"
        names = list(swept)
        parts = [names[start : start + len(COLOURS)] for start in range(0, len(names), len(COLOURS))]
        for part, chosen in enumerate(parts, 1):
            shown = {name: swept[name] for name in chosen}
            pictures.append(
                Picture(
                    f"strength{suffix}" + (f"_part_{part}" if len(parts) > 1 else ""),
                    f"Accuracy and length against strength: {where}; {_about(shown, compared, sizes)}.",
                    _svg(_strengths(shown, styles, plain=_plain_row(group), sizes=sizes)),
                )
            )
        if not swept:
            left_out.append(f"{where}: no figure against strength, as no feature was steered with two strengths.")
        pictures.append(
            Picture(
                f"length_and_accuracy{suffix}",
                "Change in length against change in accuracy, a point for each steered run: "
                f"{where}; {_about(series, compared, sizes)}.",
                _svg(_scatter(series, styles, sizes=sizes)),
            )
        )
    return pictures, left_out


def _sizes(compared: Sequence[Row]) -> str:
    n = sorted({row.compared for row in compared})
    return f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"


def _about(series: Series, compared: Sequence[Row], sizes: str) -> str:
    """The end of a caption: how many questions, what the bars are, and what else differs."""
    about = f"{sizes} question{'s' * (sizes != 'n = 1')}; bars are 95 % intervals of the paired bootstrap"
    if not all(point.whole for points in series.values() for point in points):
        about += "; a hollow marker has no interval in at least one direction, as its questions are all alike"
    if marked := sum(bool(row.pair and row.pair.marked) for row in compared):
        differ = "differs" if marked == 1 else "differ"
        about += f"; {plural(marked, 'run')} {differ} from the plain one in more than the steering (see the warnings)"
    return about


def _plain_row(group: Sequence[Row]) -> Row | None:
    """The plain run that all of the group's steered ones were compared with, where it is the same for all."""
    partners = {id(row.pair.plain) for row in group if row.pair and row.accuracy_difference}
    return next((row for row in group if partners == {id(row.run)}), None)


def _series(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Runs that differ in more than their strength are in different series, even of the same feature."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.run.features and row.accuracy_difference and "completion_tokens" in row.length_changes:
            settings = json.dumps(row.run.settings, sort_keys=True, default=str)
            found.setdefault((series_of(row.run.features), settings, row.compared_with), []).append(row)
    groups = list(found.values())
    return {
        name: sorted(map(_point, group), key=lambda point: (point.strength is None, point.strength or 0.0))
        for name, group in zip(_names([group[0] for group in groups]), groups, strict=True)
    }


def _point(row: Row) -> Point:
    assert row.run.features and row.accuracy_difference
    return Point(strength_of(row.run.features), row.accuracy_difference, row.length_changes["completion_tokens"])


def _names(rows: Sequence[Row]) -> list[str]:
    """A name for each series, given by one of its runs; where features coincide, what tells them apart is added."""
    saes = distinct_names(str(feature["sae"]) for row in rows for feature in row.run.features or ())
    names = [short_name(row.run.features or ()) for row in rows]
    marks = [series_marks(row.run.features or (), sae_names=saes) for row in rows]
    shown = []
    for place, name in enumerate(names):
        same = [other for other, other_name in enumerate(names) if other_name == name]
        different = [key for key in marks[place] if len({marks[other].get(key) for other in same}) > 1]
        added = [f"{key} {marks[place][key]}".strip() for key in different]
        runs = [rows[other].run for other in same]
        added += [setting_text(key, rows[place].run.settings.get(key)) for key in differing_settings(runs)]
        partners = dict.fromkeys(rows[other].partner for other in same)
        if len(partners) > 1:
            added.append(f"against {rows[place].partner}")
        shown.append(", ".join([name, *added]))
    # What is left differs in digits that are not shown.
    return [name if shown.count(name) == 1 else f"{name} [{place}]" for place, name in enumerate(shown, 1)]


def _styles(names: Sequence[str]) -> dict[str, Style]:
    """A look for each series: colours and markers step at different paces, so that 64 pairs come before one returns."""
    n, m = len(COLOURS), len(MARKERS)
    return {name: Style(COLOURS[i % n], MARKERS[(i + i // n) % m]) for i, name in enumerate(names)}


def _strengths(series: Series, styles: Mapping[str, Style], *, plain: Row | None, sizes: str) -> Figure:
    figure, (left, right) = _figure(11, 4.4, columns=2)
    strengths = sorted({p.strength for points in series.values() for p in points if p.strength is not None})
    logarithmic = strengths[0] > 0 and strengths[-1] / strengths[0] >= LOGARITHMIC_FROM
    for number, (name, points) in enumerate(series.items()):
        known = [point for point in points if point.strength is not None]
        # Side by side, so that the bars of different features do not cover one another.
        aside = 0.3 * (number - (len(series) - 1) / 2) / len(series)
        positions = [_beside(point.strength, aside, strengths, logarithmic=logarithmic) for point in known]
        for axes, values in ((left, [p.accuracy for p in known]), (right, [p.length for p in known])):
            axes.plot(positions, [PERCENT * v.value for v in values], color=styles[name].colour, linewidth=1.5)
            for x, value in zip(positions, values, strict=True):
                _draw(axes, x, value, styles[name])
    left.set_ylabel("change in accuracy, percentage points")
    right.set_ylabel("change in completion tokens, %")
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        axes.set_xlabel("steering strength, in maximal activations")
        if logarithmic:
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
        axes.set_xticks(strengths, tick_labels(strengths, logarithmic=logarithmic))
        axes.grid(alpha=0.25)
    if plain is not None and plain.accuracy is not None:
        left.set_title(f"plain: {PERCENT * plain.accuracy:.1f} % accuracy, {sizes}", fontsize=10)
        right.set_title(f"plain: {plain.lengths['completion_tokens']:,.1f} tokens per answer, {sizes}", fontsize=10)
    _legend(figure, series, styles, line=True)
    return figure


def _beside(strength: float, aside: float, strengths: Sequence[float], *, logarithmic: bool) -> float:
    """A place beside a strength, ``aside`` of the way to the next one at the narrowest."""
    if logarithmic:
        return strength * min(b / a for a, b in zip(strengths, strengths[1:], strict=False)) ** aside
    return strength + aside * min(b - a for a, b in zip(strengths, strengths[1:], strict=False))


def tick_labels(strengths: Sequence[float], *, logarithmic: bool) -> list[str]:
    """A label for each strength, in ascending order; "" where it would cover the one before."""
    import numpy as np

    places = np.log(strengths) if logarithmic else np.asarray(strengths, dtype=np.float64)
    labels, last = [], -np.inf
    for place, strength in zip(places, strengths, strict=True):
        free = place - last >= LABEL_WIDTH * (places[-1] - places[0])
        labels.append(f"{strength:g}" if free else "")
        last = place if free else last
    return labels


def _draw(axes: Any, x: float, y: Estimate, style: Style, *, across: Estimate | None = None) -> None:
    """A point with the intervals that it has; hollow where one is missing.

    Args:
        axes: to draw in.
        x: its place, in the unit of the axis.
        y: a share.
        style: of its series.
        across: the share that ``x`` is, where it is an estimate too.
    """
    whole = y.low is not None and (across is None or across.low is not None)
    axes.errorbar(
        x,
        PERCENT * y.value,
        xerr=across and _bar(across),
        yerr=_bar(y),
        color=style.colour,
        marker=style.marker,
        markersize=MARKER_SIZE,
        markerfacecolor=style.colour if whole else "white",
        elinewidth=1,
        capsize=3,
        linestyle="none",
    )


def _bar(value: Estimate) -> list[list[float]] | None:
    """[2, 1]: how far the interval reaches below and above; None where there is none."""
    if value.low is None or value.high is None:
        return None
    return [[PERCENT * max(0.0, value.value - value.low)], [PERCENT * max(0.0, value.high - value.value)]]


def _scatter(series: Series, styles: Mapping[str, Style], *, sizes: str) -> Figure:
    many = len(series) > len(COLOURS)
    figure, (axes,) = _figure(*((10, 7.5) if many else (7.5, 5.2)), columns=1)
    strengths = {point.strength for points in series.values() for point in points}
    labels = []
    places = [(PERCENT * point.length.value, PERCENT * point.accuracy.value) for of in series.values() for point in of]
    for name, points in series.items():
        for point in points:
            _draw(axes, PERCENT * point.length.value, point.accuracy, styles[name], across=point.length)
            strength = None if point.strength is None else f"{point.strength:g}"
            # Where there are more series than colours, the legend alone does not find them.
            text = (name if len(strengths) == 1 else " × ".join(filter(None, (name, strength)))) if many else strength
            if text:
                place = (PERCENT * point.length.value, PERCENT * point.accuracy.value)
                labels.append(axes.text(*place, text, fontsize=7 if many else 9, zorder=5))
    axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
    axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
    axes.set_xlabel("change in completion tokens, %")
    axes.set_ylabel("change in accuracy, percentage points")
    numbers = "labels are features" + " × strengths" * (len(strengths) > 1) if many else "numbers are strengths"
    axes.set_title(f"against the plain run, {sizes}; {numbers}", fontsize=10)
    axes.grid(alpha=0.25)
    _legend(figure, series, styles, line=False)
    _move_apart(axes, labels, places)
    return figure


def _move_apart(axes: Any, labels: Sequence[Any], places: Sequence[tuple[float, float]]) -> None:
    """Move labels off one another and off the markers, with a line from those that end up away from theirs."""
    from adjustText import adjust_text
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # the axes have their final size from here on
    half = MARKER_SIZE / 2 * axes.figure.dpi / POINTS_PER_INCH
    markers = [Bbox([[x - half, y - half], [x + half, y + half]]) for x, y in axes.transData.transform(places)]
    # A limit in rounds, not in seconds: the same runs give the same file.
    adjust_text(
        list(labels), objects=markers, ax=axes, iter_lim=LABEL_ROUNDS, expand=(1.4, 1.3), force_static=(0.3, 0.4),
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.6},
    )  # fmt: skip
    for label in labels:
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # legible over the bars


def _legend(figure: Figure, series: Series, styles: Mapping[str, Style], *, line: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=styles[name].colour, marker=styles[name].marker, linestyle="-" if line else "none")
        for name in series
    ]
    figure.legend(
        handles, list(series), loc="outside right upper", frameon=False, title="feature",
        ncols=1 + (len(series) - 1) // 24, fontsize=8 if max(map(len, series)) > 12 else 10,
    )  # fmt: skip


def _figure(width: float, height: float, *, columns: int) -> tuple[Any, Any]:
    # Not pyplot: it looks for a display and keeps figures.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    # The same runs give the same file: no date, no random ids.
    with matplotlib.rc_context({"svg.hashsalt": "report", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
