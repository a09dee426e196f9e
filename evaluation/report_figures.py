"""Figures of the report: accuracy and length against strength, and against one another."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from interventions import series_of, short_name, strength_of
from paired_statistics import Estimate
from summary_rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; the markers do it without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = "osD^vPX*"
GREY = "#6c757d"
PERCENT = 100


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
        n = sorted({row.compared for row in compared})
        sizes = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
        about = f"{where}; {sizes} questions; bars are 95 % intervals of the paired bootstrap"
        if marked := sum(bool(row.pair and row.pair.marked) for row in compared):
            about += f"; {marked} of the runs differ from the plain one in more than the steering (see the warnings)"
        suffix = "" if len(groups) == 1 else f"_{number}"
        swept = {name: points for name, points in series.items() if len({p.strength for p in points} - {None}) > 1}
        names = list(swept)
        parts = [names[start : start + len(COLOURS)] for start in range(0, len(names), len(COLOURS))]
        for part, chosen in enumerate(parts, 1):
            pictures.append(
                Picture(
                    f"strength{suffix}" + (f"_part_{part}" if len(parts) > 1 else ""),
                    f"Accuracy and length against strength: {about}.",
                    _svg(_strengths({name: swept[name] for name in chosen}, plain=_plain_row(group), sizes=sizes)),
                )
            )
        if not swept:
            left_out.append(f"{where}: no figure against strength, as no feature was steered with two strengths.")
        pictures.append(
            Picture(
                f"length_and_accuracy{suffix}",
                f"Change in length against change in accuracy, a point for each steered run: {about}.",
                _svg(_scatter(series, sizes=sizes)),
            )
        )
    return pictures, left_out


def _plain_row(group: Sequence[Row]) -> Row | None:
    """The plain run that all of the group's steered ones were compared with, where it is the same for all."""
    partners = {id(row.pair.plain) for row in group if row.pair and row.accuracy_difference}
    return next((row for row in group if partners == {id(row.run)}), None)


def _series(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """The points of each intervention, in the order of strength."""
    found: dict[tuple, list[Point]] = {}
    names: dict[tuple, str] = {}
    for row in rows:
        change = row.length_changes.get("completion_tokens")
        if not row.run.features or row.accuracy_difference is None or change is None:
            continue
        key = series_of(row.run.features)
        names[key] = short_name(row.run.features)
        found.setdefault(key, []).append(Point(strength_of(row.run.features), row.accuracy_difference, change))
    labels: dict[str, list[Point]] = {}
    for key, points in found.items():
        # The same feature index of two SAEs, layers or units: two series.
        label = names[key] if list(names.values()).count(names[key]) == 1 else f"{names[key]} [{len(labels) + 1}]"
        labels[label] = sorted(points, key=lambda point: (point.strength is None, point.strength or 0.0))
    return labels


def _strengths(series: dict[str, list[Point]], *, plain: Row | None, sizes: str) -> Figure:
    figure, (left, right) = _figure(11, 4.4, columns=2)
    strengths = sorted({p.strength for points in series.values() for p in points if p.strength is not None})
    steps = [b - a for a, b in zip(strengths, strengths[1:], strict=False)]
    # Side by side, so that the bars of different features do not cover one another.
    shift = 0.5 * min(steps) / len(series) * 0.6
    for number, (name, points) in enumerate(series.items()):
        known = [point for point in points if point.strength is not None]
        offset = shift * (number - (len(series) - 1) / 2)
        positions = [point.strength + offset for point in known]
        for axes, values in ((left, [p.accuracy for p in known]), (right, [p.length for p in known])):
            _errorbars(axes, positions, values, number, label=name)
    left.set_ylabel("change in accuracy, percentage points")
    right.set_ylabel("change in completion tokens, %")
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        axes.set_xlabel("steering strength, in maximal activations")
        axes.set_xticks(strengths)
        axes.grid(alpha=0.25)
    if plain is not None and plain.accuracy is not None:
        left.set_title(f"plain: {PERCENT * plain.accuracy:.1f} % accuracy, {sizes}", fontsize=10)
        right.set_title(f"plain: {plain.lengths['completion_tokens']:,.1f} tokens per answer, {sizes}", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, title="feature")
    return figure


def _errorbars(axes: Any, positions: Sequence[float], values: Sequence[Estimate], number: int, *, label: str) -> None:
    axes.errorbar(
        positions,
        [PERCENT * value.value for value in values],
        yerr=_bars(values),
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=6,
        linewidth=1.5,
        elinewidth=1,
        capsize=3,
        label=label,
    )


def _bars(values: Sequence[Estimate]) -> list[list[float]]:
    """[2, n]: how far the interval reaches below and above; 0 where there is none."""
    return [
        [0.0 if v.low is None else PERCENT * max(0.0, v.value - v.low) for v in values],
        [0.0 if v.high is None else PERCENT * max(0.0, v.high - v.value) for v in values],
    ]


def _scatter(series: dict[str, list[Point]], *, sizes: str) -> Figure:
    figure, (axes,) = _figure(7.5, 5.2, columns=1)
    for number, (name, points) in enumerate(series.items()):
        lengths, accuracies = [p.length for p in points], [p.accuracy for p in points]
        axes.errorbar(
            [PERCENT * value.value for value in lengths],
            [PERCENT * value.value for value in accuracies],
            xerr=_bars(lengths),
            yerr=_bars(accuracies),
            linestyle="none",
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=6,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
        for point in points:
            if point.strength is not None:
                place = (PERCENT * point.length.value, PERCENT * point.accuracy.value)
                axes.annotate(f"{point.strength:g}", place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
    axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
    axes.set_xlabel("change in completion tokens, %")
    axes.set_ylabel("change in accuracy, percentage points")
    axes.set_title(f"against the plain run, {sizes}; numbers are strengths", fontsize=10)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False, title="feature", ncols=1 + len(series) // 24)
    return figure


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
