"""The figures of the report: what is drawn, how series are told apart, and what is said where nothing is drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted_runs import PLAIN, STEERED, TASK, feature, rows_of, setting, write_run
from report import figures

Drawn = Callable[[], tuple[list[str], list[Any]]]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """A function that gives the names of the pictures of the runs in `tmp_path`, and the figures as matplotlib's."""

    def draw() -> tuple[list[str], list[Any]]:
        made: list[Any] = []
        monkeypatch.setattr(figures, "_svg", lambda figure: made.append(figure) or "<svg/>")
        return [picture.name for picture in figures.draw_figures(rows_of(tmp_path))], made

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


def test_figures_need_something_to_compare(drawn: Drawn, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", PLAIN)
    write_steered(tmp_path, "7", index=7)
    assert drawn()[0] == []
    write_steered(tmp_path, "9", index=9)
    assert drawn()[0] == ["length_and_accuracy"]


def test_a_name_is_no_mathematics(tmp_path: Path) -> None:
    write_run(tmp_path / "plain", PLAIN)
    for sae in (r"/saes/a$\frac$0", "/saes/b"):
        for strength in (1, 2):
            write_steered(tmp_path, f"{sae[6]}{strength}", strength=strength, sae=sae)
    assert len(figures.draw_figures(rows_of(tmp_path))) == 2


def test_figures_show_the_numbers_of_the_table(drawn: Drawn, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for index, strength in ((7, 0.5), (7, 2), (9, 0.5), (9, 16)):
        right = [[1 - r] if i < index + strength else [r] for i, [r] in enumerate(PLAIN)]
        tokens = [[round(100 + i + strength * (i % index))] for i in range(40)]
        write_run(tmp_path / f"{index}-{strength}", right, tokens=tokens, features=[feature(index, strength=strength)])
    rows = [row for row in rows_of(tmp_path) if row.run.steered]
    names, (strength, scatter) = drawn()
    assert names == ["strength", "length_and_accuracy"]

    def points(axes: Any) -> list[tuple[float, float, float, float]]:
        """x, y and the ends of the vertical bar of every point, in the order of the series."""
        found = []
        for container in axes.containers:
            x, y = container.lines[0].get_data()
            bars = [segment[:, 1] for segment in container.lines[2][-1].get_segments()]
            found += [(a, b, *sorted(bar)) for a, b, bar in zip(x, y, bars, strict=True)]
        return found

    for axes, name, title in zip(
        strength.axes,
        ("accuracy_difference", "completion_tokens_change"),
        ("50.0 % accuracy", "119.5 tokens per answer"),
        strict=True,
    ):
        shown = points(axes)
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert [labels[round(x)] for x, *_ in shown] == ["0.5", "2", "0.5", "16"]
        assert [point[1:] for point in shown] == [
            pytest.approx([100 * number for number in row.estimate(name)]) for row in rows
        ]
        assert axes.get_xlabel() == "steering strength, in maximal activations"
        assert axes.get_title() == f"baseline: {title}, n = 40"
    assert [point[:2] for point in points(scatter.axes[0])] == [
        pytest.approx((100 * row.record["completion_tokens_change"], 100 * row.record["accuracy_difference"]))
        for row in rows
    ]
    assert list(legend(scatter)) == ["7", "9"]


def test_each_of_ten_features_has_one_look_in_all_figures(drawn: Drawn, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for index in range(10):
        for strength in (1, 2) if index > 6 else (1,):
            write_steered(tmp_path, f"{index}-{strength}", index=index, strength=strength)
    made = drawn()[1]
    against_strength, scatter = map(legend, made)
    assert len(set(scatter.values())) == 10
    assert against_strength == {name: scatter[name] for name in "789"}
    # The legend alone would not find them.
    texts = [text.get_text() for text in made[-1].axes[0].texts]
    assert sorted(filter(None, texts)) == sorted([f"{i} × 1" for i in range(10)] + ["7 × 2", "8 × 2", "9 × 2"])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"sae": "/saes/two"}, ["7, SAE one", "7, SAE two"]),
        ({"max_activation": 11.0, "value": 22.0}, ["7, max 5.84", "7, max 11"]),
        ({"edit": setting("configs", TASK, "generation_kwargs", "temperature", value=0)},
         ["7, temperature 0.6", "7, temperature 0"]),
    ],
)  # fmt: skip
def test_a_line_joins_only_runs_that_differ_in_strength_alone(
    changes: dict[str, Any], names: list[str], drawn: Drawn, tmp_path: Path
) -> None:
    write_run(tmp_path / "plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for strength in (1, 2):
        write_steered(tmp_path, f"a-{strength}", strength=strength)
        write_steered(tmp_path, f"b-{strength}", strength=strength, **changes)
    strengths, _ = drawn()[1]
    assert sorted(legend(strengths)) == sorted(names)
    lines = [line for line in strengths.axes[0].lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert len(lines) == 2
