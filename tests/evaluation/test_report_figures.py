"""The figures of the report: what is drawn, how series are told apart, and what is said where nothing is drawn."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted_runs import PLAIN, STEERED, TASK, feature, rows_of, setting, write_run  # noqa: E402


def test_figures_are_left_out_with_a_sentence(summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "runs/plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    write_run(tmp_path / "runs/7", STEERED, tokens=[[120 + i] for i in range(40)], features=[feature(7)])
    summarize.main(
        ["--results", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "one"), "--n_resamples", "1000"]
    )
    assert "they need steered runs of at least two features or strengths" in (tmp_path / "one/report.html").read_text()
    assert not (tmp_path / "one/figures").exists()
    write_run(tmp_path / "runs/9", STEERED, tokens=[[130 + i] for i in range(40)], features=[feature(9)])
    summarize.main(
        ["--results", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "two"), "--n_resamples", "1000"]
    )
    assert "no feature was steered with two strengths" in (tmp_path / "two/report.html").read_text()
    assert [path.name for path in (tmp_path / "two/figures").iterdir()] == ["length_and_accuracy.svg"]


def test_figures_show_the_numbers_of_the_table(
    summarize: ModuleType,
    load_script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(tmp_path / "plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for index, strength in ((7, 1), (7, 2), (9, 1), (9, 3)):
        right = [[1 - r] if i < index + strength else [r] for i, [r] in enumerate(PLAIN)]
        tokens = [[100 + i + strength * (i % index)] for i in range(40)]
        write_run(tmp_path / f"{index}-{strength}", right, tokens=tokens, features=[feature(index, strength=strength)])
    rows = [row for row in rows_of(summarize, tmp_path) if row.run.steered]
    figures = load_script("evaluation/report_figures.py")
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "_svg", lambda figure: drawn.append(figure) or "<svg/>")
    pictures, left_out = figures.draw_figures(rows_of(summarize, tmp_path))
    assert [picture.name for picture in pictures] == ["strength", "length_and_accuracy"] and left_out == []
    strength, scatter = drawn

    def points(axes: Any) -> list[tuple[float, float, float, float]]:
        """x, y and the ends of the vertical bar of every point, in the order of the series."""
        found = []
        for container in axes.containers:
            x, y = container.lines[0].get_data()
            bars = [segment[:, 1] for segment in container.lines[2][-1].get_segments()]
            found += [(a, b, *sorted(bar)) for a, b, bar in zip(x, y, bars, strict=True)]
        return found

    for axes, estimates in (
        (strength.axes[0], [row.accuracy_difference for row in rows]),
        (strength.axes[1], [row.length_changes["completion_tokens"] for row in rows]),
    ):
        shown = points(axes)
        assert [round(x) for x, *_ in shown] == [1, 2, 1, 3]
        assert [y for _, y, *_ in shown] == pytest.approx([100 * estimate.value for estimate in estimates])
        assert [low for *_, low, _ in shown] == pytest.approx([100 * estimate.low for estimate in estimates])
        assert [high for *_, high in shown] == pytest.approx([100 * estimate.high for estimate in estimates])
        assert axes.get_xlabel() == "steering strength, in maximal activations" and "n = 40" in axes.get_title()
    assert [point[:2] for point in points(scatter.axes[0])] == [
        pytest.approx((100 * row.length_changes["completion_tokens"].value, 100 * row.accuracy_difference.value))
        for row in rows
    ]
    assert [text.get_text() for text in scatter.legends[0].get_texts()] == ["7", "9"]


@pytest.fixture
def drawn(
    summarize: ModuleType, load_script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[list[Any], list[Any]]]:
    """A function that gives the pictures of the runs in `tmp_path`, and their figures as matplotlib has them."""
    figures = load_script("evaluation/report_figures.py")

    def draw() -> tuple[list[Any], list[Any]]:
        made: list[Any] = []
        monkeypatch.setattr(figures, "_svg", lambda figure: made.append(figure) or "<svg/>")
        return figures.draw_figures(rows_of(summarize, tmp_path))[0], made

    return draw


def legend(figure: Any) -> dict[str, tuple[str, str]]:
    """Colour and marker of each series."""
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    looks = [(line.get_color(), line.get_marker()) for line in legend.get_lines()]
    return dict(zip(names, looks, strict=True))


def write_steered(tmp_path: Path, name: str, *, index: int = 7, strength: float = 1, **changes: Any) -> None:
    edit = changes.pop("edit", lambda results: None)
    tokens = [[110 + i + 7 * index % 50 + i % (3 + index)] for i in range(40)]
    steering = [feature(index, strength=strength, **changes)]
    write_run(tmp_path / name, STEERED, tokens=tokens, features=steering, edit=edit)


def test_each_of_twenty_features_has_one_look_in_all_figures(drawn: Callable, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for index in range(20):
        for strength in (1, 2) if index > 9 else (1,):
            write_steered(tmp_path, f"{index}-{strength}", index=index, strength=strength)
    pictures, figures = drawn()
    assert [picture.name for picture in pictures] == ["strength_part_1", "strength_part_2", "length_and_accuracy"]
    *against_strength, scatter = map(legend, figures)
    assert len(set(scatter.values())) == 20
    assert against_strength[0] | against_strength[1] == {str(i): scatter[str(i)] for i in range(10, 20)}
    assert len({colour for colour, _ in against_strength[0].values()}) == len(against_strength[0])
    texts = [text.get_text() for text in figures[-1].axes[0].texts]
    assert sorted(texts) == sorted(
        [f"{i} × 1" for i in range(20)] + [f"{i} × 2" for i in range(10, 20)]
    )  # the legend alone would not find them


def test_labels_of_near_points_do_not_cover_one_another(drawn: Callable, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for index in (7, 8, 9):
        for strength in (1, 2, 4):
            tokens = [[110 + i + (i < index) * (i % 3 == 0) + 60 * (strength == 4)] for i in range(40)]
            steering = [feature(index, strength=strength)]
            write_run(tmp_path / f"{index}-{strength}", STEERED, tokens=tokens, features=steering)
    scatter = drawn()[1][-1]
    scatter.draw_without_rendering()
    (axes,) = scatter.axes
    texts = [text for text in axes.texts if text.get_text()]
    assert sorted(text.get_text() for text in texts) == sorted("124" * 3)
    boxes = [text.get_window_extent() for text in texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    # where they would stand, were they not moved
    places = axes.transData.transform([tuple(point.lines[0].get_xydata()[0]) for point in axes.containers])
    assert min(abs(a - b).max() for i, a in enumerate(places) for b in places[:i]) < boxes[0].height
    assert all(axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1) for box in boxes)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"sae": "/saes/two"}, ["7, SAE one", "7, SAE two"]),
        ({"hook_name": "blocks.3.hook_resid_post"}, ["7, blocks.19.hook_resid_post", "7, blocks.3.hook_resid_post"]),
        ({"max_activation": 11.0, "value": 22.0}, ["7, max 5.84", "7, max 11"]),
        ({"edit": setting("configs", TASK, "generation_kwargs", "temperature", value=0)},
         ["7, temperature 0.6", "7, temperature 0"]),
    ],
)  # fmt: skip
def test_a_line_joins_only_runs_that_differ_in_strength_alone(
    changes: dict[str, Any], names: list[str], drawn: Callable, tmp_path: Path
) -> None:
    write_run(tmp_path / "plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for strength in (1, 2):
        write_steered(tmp_path, f"a-{strength}", strength=strength)
        write_steered(tmp_path, f"b-{strength}", strength=strength, **changes)
    _, (strengths, _) = drawn()
    assert sorted(legend(strengths)) == sorted(names)
    lines = [line for line in strengths.axes[0].lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert len(lines) == 2


def test_what_has_no_interval_has_no_bar_and_the_caption_says_so(drawn: Callable, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", [[0.0]] * 40, tokens=[[100 + i] for i in range(40)])
    for strength in (1, 2):
        tokens = [[100 + 2 * i] for i in range(40)]
        write_run(tmp_path / str(strength), [[0.0]] * 40, tokens=tokens, features=[feature(strength=strength)])
    (picture, _), (strengths, scatter) = drawn()
    assert "a hollow marker has no interval" in picture.caption
    accuracy, length = strengths.axes
    assert all(not point.has_yerr and point.lines[0].get_markerfacecolor() == "white" for point in accuracy.containers)
    assert all(point.has_yerr and point.lines[0].get_markerfacecolor() != "white" for point in length.containers)
    assert all(point.has_xerr and not point.has_yerr for point in scatter.axes[0].containers)


def test_strengths_far_apart_are_on_a_logarithmic_axis_under_their_own_names(drawn: Callable, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    strengths = (0.25, 0.5, 1, 2, 4, 8, 16)
    for strength in strengths:
        write_steered(tmp_path, str(strength), strength=strength)
    _, (figure, _) = drawn()
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert [label.get_text() for label in axes.get_xticklabels()] == [f"{s:g}" for s in strengths]


def test_a_label_that_would_cover_the_one_before_is_left_out(load_script: Callable[[str], ModuleType]) -> None:
    labels = load_script("evaluation/report_figures.py").tick_labels
    assert labels([0, 0.1, 0.2, 4], logarithmic=False) == ["0", "", "", "4"]
    assert labels([-2, 1, 2.5], logarithmic=False) == ["-2", "1", "2.5"]
