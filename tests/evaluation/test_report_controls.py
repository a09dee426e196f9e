"""Where the report places a steered feature among its controls, by runs whose answers are known."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import summarize
from planted_runs import TASK, feature, setting, write_run
from playwright.sync_api import Page
from report.controls import EFFECTS, WORD_RATE, Placed, place_features
from report.reasoning_words import WordCounter
from report.rows import Row

N = 40
WORDS = WordCounter(["wait", " wait"])


def write(folder: Path, right: int, *, tokens: int = 100, waits: int = 2, record: dict[str, Any] | None = None) -> None:
    """A run of 40 questions: so many right, so many tokens and "wait"s in each answer."""
    write_run(
        folder, [[float(i < right)] for i in range(N)], tokens=[[tokens]] * N, texts=[["wait " * waits]] * N,
        edit=setting("config", "sae", value=record),
    )  # fmt: skip


def matched(index: int, *, of: int = 7, strength: float = 2.0, value: float = 11.68, **changes: Any) -> dict[str, Any]:
    one = feature(index, strength=value / 3.0, max_activation=3.0, **changes) | {"value": value}
    of_feature = {"feature_idx": of, "strength": strength}
    return {"features": [one], "control_of": of_feature, "steered_positions": 9}


def words(bias: float) -> dict[str, Any]:
    tokens = {"wait": [92, 285], "let me": []}
    return {"features": [], "word_bias": {"bias": bias, "tokens": tokens}, "steered_positions": None}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """20 right in the baseline; feature 7 at strength 2 wins 8 more, five matched ones −9, +8, 0, +2 and −1."""
    folder = tmp_path / "runs"
    write(folder / "plain", 20)
    write(folder / "7", 28, tokens=150, waits=6, record={"features": [feature(7)], "steered_positions": 9})
    write(folder / "7-x4", 15, record={"features": [feature(7, strength=4.0)], "steered_positions": 9})
    write(folder / "7-x0", 17, tokens=90, record={"features": [feature(7, strength=0.0)], "steered_positions": 9})
    for index, right in ((11, 11), (12, 28), (13, 20), (14, 22), (15, 19)):
        write(folder / str(index), right, tokens=100 + index, record=matched(index))
    write(folder / "21", 40, record=matched(21, strength=1.0))  # of a strength that was not run
    write(folder / "22", 40, record=matched(22, mode="add"))  # of another mode
    write(folder / "words", 21, tokens=110, waits=9, record=words(2.0))
    write(folder / "more-words", 24, tokens=120, waits=30, record=words(4.0))
    return folder


def rows(folder: Path) -> list[Row]:
    return summarize.summarize(summarize.read_runs([folder], words=WORDS), words=WORDS.words, n_resamples=200)


def test_a_feature_stands_in_the_distribution_of_its_matched_controls(runs: Path) -> None:
    placed: dict[tuple[str, float], Placed] = {
        (one.effect, one.row.record["strength"]): one for one in place_features(rows(runs))
    }
    assert [key for key in placed if key[0] == "accuracy_difference"] == [
        ("accuracy_difference", 2.0), ("accuracy_difference", 4.0),
    ]  # fmt: skip
    accuracy = placed["accuracy_difference", 2.0]
    assert accuracy.value == pytest.approx(8 / N)
    assert sorted(accuracy.matched) == pytest.approx([-9 / N, -1 / N, 0, 2 / N, 8 / N])
    assert accuracy.as_large == 2, "one is larger in the other direction, one just as large"
    assert accuracy.p == pytest.approx(3 / 6)
    assert accuracy.ablated == pytest.approx(-3 / N)
    assert accuracy.words == pytest.approx({2.0: 1 / N, 4.0: 4 / N})
    length = placed["completion_tokens_change", 2.0]
    assert length.value == pytest.approx(0.5) and (length.as_large, length.p) == (0, pytest.approx(1 / 6))
    rate = placed[WORD_RATE, 2.0]
    assert rate.value == pytest.approx(1000 * (6 / 150 - 2 / 100))
    assert rate.words[2.0] == pytest.approx(1000 * (9 / 110 - 2 / 100))
    stronger = placed["accuracy_difference", 4.0]
    assert stronger.matched == () and stronger.p is None, "controls of other strengths are not its own"
    assert stronger.ablated == accuracy.ablated and stronger.words == accuracy.words


def test_controls_do_not_weaken_the_tests_of_the_features(runs: Path) -> None:
    found = {row.run.file.parent.name: row for row in rows(runs)}
    holm = {name: row.record["holm_p"] for name, row in found.items()}
    assert {name for name, p in holm.items() if p is not None} == {"7", "7-x4"}
    assert holm["7"] == pytest.approx(2 * 2 * 0.5**8), "two claims, whatever the number of controls"
    assert found["11"].record["mcnemar_p"] == pytest.approx(2 * 0.5**9), "a control has its own test all the same"


def test_controls_have_names_and_stand_after_the_features(runs: Path) -> None:
    hook = "blocks.19.hook_resid_post"
    found = rows(runs)
    assert [row.title for row in found] == [
        "baseline", f"ablate 7 ({hook})", f"set 7 to 2 × 5.84 ({hook})", f"set 7 to 4 × 5.84 ({hook})",
        f"matched 21 for 7 × 1 ({hook})", *(f"matched {i} for 7 × 2 ({hook})" for i in (11, 12, 13, 14, 15)),
        f"matched 22 for 7 × 2, add ({hook})", "words +2", "words +4",
    ]  # fmt: skip
    (unbiased,) = (warning for warning in found[-1].warnings if "no token" in warning)
    assert unbiased.endswith("they got no bias: let me")
    assert not any("position was steered" in warning for row in found for warning in row.warnings)


def test_the_tables_hold_what_was_found(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    vocabulary = tmp_path / "words.json"
    vocabulary.write_text('["wait", " wait"]')
    summarize.main(["--results", str(runs), "--output_dir", str(out), "--tokens_str_path", str(vocabulary)])
    with (out / "controls.csv").open() as file:
        lines = {(line["effect"], line["strength"]): line for line in csv.DictReader(file)}
    assert len(lines) == 6
    line = lines["accuracy_difference", "2.0"]
    assert (line["matched"], line["matched_as_large"], line["matched_p"]) == ("5", "2", "0.5")
    numbers = ("value", "matched_median", "matched_min", "matched_max", "ablated", "words_+2", "words_+4")
    assert [float(line[name]) for name in numbers] == pytest.approx([x / N for x in (8, 0, -9, 8, -3, 1, 4)])
    (text,) = (line for line in (out / "summary.md").read_text().splitlines() if "accuracy, points | +20.0" in line)
    assert text.endswith("| +0.0 [-22.5, +20.0] | 2 of 5 | 0.500 | -7.5 | +2.5 | +10.0 |") and TASK in text


def test_people_see_features_among_their_controls(
    runs: Path, tmp_path: Path, open_offline: Callable[..., Page]
) -> None:
    summarize.main(["--results", str(runs), "--output_dir", str(tmp_path / "report"), "--n_resamples", "200"])
    page = open_offline(tmp_path / "report/report.html")
    title = page.get_by_role("heading", name="Features among their controls")
    method = title.locator("xpath=following-sibling::p[1]").inner_text()
    assert "5 matched features give no p below 0.17" in method
    table = title.locator("xpath=following-sibling::div[1]")
    groups = table.locator("tr.group").all_inner_texts()
    assert [group.split(" · ")[-1] for group in groups] == list(EFFECTS.values())
    lines = table.locator("tr.steered").all_inner_texts()
    assert len(lines) == 6 and lines[0].split("\t")[0].startswith("set 7 to 2")
    cells = [" ".join(cell.split()) for cell in lines[0].split("\t")[2:]]
    assert cells == ["+0.0 [-22.5, +20.0]", "2 of 5", "0.500", "-7.5", "+2.5", "+10.0"]
    assert "but controls, which make no claim of their own" in page.locator(".notes").last.inner_text()
    phone = open_offline(tmp_path / "report/report.html", width=390)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_controls_there_is_no_such_table(tmp_path: Path) -> None:
    write(tmp_path / "runs/plain", 20)
    write(tmp_path / "runs/7", 28, record={"features": [feature(7)], "steered_positions": 9})
    out = tmp_path / "report"
    summarize.main(["--results", str(tmp_path / "runs"), "--output_dir", str(out)])
    assert not (out / "controls.csv").exists() and "their controls" not in (out / "report.html").read_text()
