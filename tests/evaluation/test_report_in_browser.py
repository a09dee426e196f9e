"""The report in a real Chromium without a network: nothing is requested, nothing fails, people see what they should."""

from collections.abc import Callable
from pathlib import Path

import pytest
import summarize
from planted_runs import feature, write_run
from playwright.sync_api import Page

SCRIPT = "</script><script>window.planted=1</script>"
IMAGE = '<img src="x" onerror="window.planted=1">'
PLAIN = [float(i % 2) for i in range(40)]
STEERED = [float(i % 2 != (i % 10 == 0) and i % 9 > 0) for i in range(40)]
LOST = [i for i in range(40) if PLAIN[i] > STEERED[i]]
WON = [i for i in range(40) if PLAIN[i] < STEERED[i]]
LONG = "words of a long question " * 20
LENGTHENING = [1 + (i * 7) % 40 for i in range(40)]  # a permutation: every question is lengthened by another factor


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a plain run, two features with two strengths, and repeats; model and data are full of elements."""
    folder = tmp_path_factory.mktemp("report")
    problems = [f"Problem {i} {IMAGE}{SCRIPT} {LONG} needle{i}." for i in range(40)]

    def name_model(results: dict) -> None:
        results["model_name"] = f"hub/{IMAGE}"

    def write(name: str, right: list[float], steering: list | None = None, *, stretch: int = 1) -> None:
        texts = [
            [f"😀 The same beginning.\nWait, {IMAGE}{SCRIPT} " + ("But hmm. " * stretch if steering else "So, wait. ")]
            for _ in right
        ]
        if steering:
            texts[3] = ["😀 The same beginning.\nWait, " + f"{IMAGE}{SCRIPT} So, wait. "]  # as plain
            texts[6] = [f"{texts[3][0]}It ends waiting"]
        else:
            texts[6] = [f"😀 The same beginning.\nWait, {IMAGE}{SCRIPT} So, wait. It ends waited"]
        tokens = [[(100 + i) * (1 if stretch == 1 else stretch * LENGTHENING[i])] for i in range(40)]
        write_run(
            folder / "runs" / name, [[r] for r in right], tokens=tokens, texts=texts,
            features=steering, problems=problems, edit=name_model,
        )  # fmt: skip

    write("plain", PLAIN)
    for index in (7, 9):
        for strength in (1, 2):
            steering = [feature(index, strength=strength, hook_name=f"blocks.1.{IMAGE}")]
            write(f"{index}-{strength}", STEERED, steering, stretch=strength + 1)
    for name, steering in (("plain", None), ("steered", [feature()])):
        right = [[float((i + j) % 3 > bool(steering)) for j in range(6)] for i in range(29)]
        texts = [[f"{name} answer {j} to {i}" for j in range(6)] for i in range(29)]
        write_run(folder / "runs" / "repeats" / name, right, texts=texts, features=steering)
    summarize.main(["--results", str(folder / "runs"), "--output_dir", str(folder / "report"), "--n_resamples", "1000"])
    return folder / "report"


@pytest.fixture
def open_page(open_offline: Callable[..., Page], report: Path) -> Callable[..., Page]:
    return lambda name="report.html", **options: open_offline(report / name, **options)


def listed(page: Page) -> list[int]:
    return [int(text.split(" · ")[0]) for text in page.locator("#list small").all_inner_texts()]


def test_the_report_shows_tables_figures_and_warnings(open_page: Callable[..., Page], report: Path) -> None:
    page = open_page()
    table = page.locator("table").first
    assert table.locator("tr.plain").count() == 2 and table.locator("tr.steered").count() == 5
    assert table.locator("tr.group").count() == 2 and IMAGE in table.locator("tr.group").nth(1).inner_text()
    lost_and_won = f"{len(LOST)} / {len(WON)}"
    assert table.locator("td", has_text=lost_and_won).count() == 4
    figures = page.locator("figure img")
    assert figures.count() == 2
    for figure in figures.all():
        assert figure.evaluate("image => image.complete && image.naturalWidth > 300")
        assert "n = 40 questions" in figure.get_attribute("alt")
    assert page.locator("img").count() == 2  # none of the planted ones
    page.locator("tr.steered .warned a").first.click()
    assert "29 questions, fewer than the 30" in page.locator(page.url.partition("report.html")[2]).inner_text()


def test_questions_are_filtered_ordered_and_searched(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.get_by_role("link", name="answers side by side").nth(1).click()
    page.locator(".answer").first.wait_for()
    assert listed(page) == list(range(40))
    filters = page.locator("#filters")
    filters.get_by_role("button", name="right → wrong").click()
    assert listed(page) == LOST and page.locator("#count").inner_text() == f"{len(LOST)} of 40 questions"
    filters.get_by_role("button", name="wrong → right").click()
    assert listed(page) == WON
    filters.get_by_role("button", name="same text").click()
    assert listed(page) == [3]
    filters.get_by_role("button", name="all (40)").click()
    page.fill("#search", "problem 17")
    assert listed(page) == [17]
    page.fill("#search", "NEEDLE23.")  # far beyond what the list shows
    assert listed(page) == [23] and "needle" not in page.locator("#list .preview").inner_text()
    page.fill("#search", "")
    longest_first = sorted(range(40), key=lambda i: -LENGTHENING[i])
    page.select_option("#order", "longer")
    assert listed(page) == longest_first
    page.select_option("#order", "shorter")
    assert listed(page) == longest_first[::-1]
    page.get_by_role("link", name="all runs").click()
    page.wait_for_url("**/report.html")


def test_answers_stand_side_by_side_from_where_they_part(open_page: Callable[..., Page]) -> None:
    page = open_page("questions_2.html")
    page.locator("#list button").nth(5).click()
    page.get_by_role("heading", name="Question 5", exact=True).wait_for()
    plain, steered = page.locator(".answer").all()
    assert plain.locator("mark.differs").inner_text().strip() == "So,"
    assert steered.locator("mark.differs").inner_text().strip() == "But"
    same = plain.locator(".same").text_content()
    assert same == steered.locator(".same").text_content() and same.endswith(f"{IMAGE}{SCRIPT} ")
    # The page counts characters as the browser does, where an emoji is two.
    assert f"from character {len(same.encode('utf-16-le')) // 2 + 1} on" in page.locator("#difference").inner_text()
    assert [mark.inner_text() for mark in plain.locator("mark:not(.differs)").all()] == ["Wait", "wait"]
    steered_tokens = 2 * LENGTHENING[5] * 105
    cells = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in page.locator(".words tbody tr").all()
    }
    assert cells == {
        "wait": ["2", "1", f"{2000 / 105:.2f}", f"{1000 / steered_tokens:.2f}"],
        "but": ["0", "2", "0.00", f"{2000 / steered_tokens:.2f}"],
        "hmm": ["0", "2", "0.00", f"{2000 / steered_tokens:.2f}"],
    }
    assert page.locator("img").count() == 0 and IMAGE in page.locator(".question").inner_text()
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.get_by_role("heading", name="Question 3", exact=True).wait_for()
    assert page.locator("#difference").inner_text() == "Both texts are the same."
    page.reload()
    page.get_by_role("heading", name="Question 3", exact=True).wait_for()


def test_a_word_that_the_first_difference_cuts_is_not_a_reasoning_word(open_page: Callable[..., Page]) -> None:
    page = open_page("questions_2.html")
    page.locator("#list button").nth(6).click()
    page.get_by_role("heading", name="Question 6", exact=True).wait_for()
    plain, steered = page.locator(".answer").all()
    assert plain.locator(".same").text_content().endswith("It ends wait")
    for answer, end in ((plain, "ed"), (steered, "ing")):
        assert answer.locator("mark.differs").inner_text() == end
        assert answer.locator("mark:not(.differs)").all_inner_texts() == ["Wait", "wait"]


def test_several_answers_to_a_question_are_all_within_reach(open_page: Callable[..., Page]) -> None:
    page = open_page("questions_1.html")
    page.locator(".answer").first.wait_for()
    assert "of 4 (6 were given; these are in this page)" in page.locator("#detail").inner_text()
    page.locator("#detail select").select_option(label="3")
    assert page.locator(".answer").all_inner_texts() == ["plain answer 2 to 0", "steered answer 2 to 0"]
    assert page.get_by_role("button", name="less often right").is_visible()


def test_pages_fit_a_phone(open_page: Callable[..., Page]) -> None:
    for name in ("report.html", "questions_2.html"):
        page = open_page(name, width=390, scheme="dark")
        if name != "report.html":
            page.locator(".answer").nth(1).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if name == "report.html":
            table = page.locator(".wide").first
            table.evaluate("element => element.scrollLeft = 400")
            first = table.locator("tr.steered th").first.bounding_box()
            assert first["x"] >= 0 and first["width"] < 200  # still there, with room for numbers beside it
