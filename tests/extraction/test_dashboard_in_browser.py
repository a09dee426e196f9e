"""The pages in a real Chromium without a network: nothing is requested, nothing fails, people see what they should."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compute_dashboard
import compute_score
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page
from safetensors.numpy import load_file

# Two of the model's tokens stand for these in the data, where one token is a whole element.
PLANTED = {
    "<think>": '<img src="x" onerror="window.planted=1">',
    "</think>": "</script><script>window.planted=1</script>",
}
FEATURES = 6
PARTS = ("on_words", "before", "after", "white_space")
NUMBERS = ("score", "max_activation", "firing_frequency", "entropy", *PARTS)
OpenPage = Callable[..., Page]
Stats = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def planted_model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "planted"
    shutil.copytree(tiny_llama, folder)
    for path in folder.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        for token, planted in PLANTED.items():
            text = text.replace(json.dumps(token), json.dumps(planted))
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def scores_and_pages(
    planted_model: Path,
    legacy_sae: Path,
    fixture_tokens: Path,
    fixtures_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """The folders that compute_score.py and compute_dashboard.py wrote for text that is full of planted elements."""
    from datasets import Dataset

    from transformer_lens_r1.shared.data import load_rows

    folder = tmp_path_factory.mktemp("dashboards")
    rows = np.array(load_rows(fixture_tokens)[:12]["tokens"])
    rows[:, 3::8], rows[:, 5::8] = 4, 5
    (folder / "rows").mkdir()
    Dataset.from_dict({"tokens": rows.tolist()}).to_parquet(str(folder / "rows" / "train.parquet"))
    flags = [
        *("--model_path", str(planted_model), "--sae_path", str(legacy_sae), "--dataset_path", str(folder / "rows")),
        *("--column_name", "tokens", "--device", "cpu", "--dtype", "float32", "--ignore_tokens", ""),
    ]
    vocabulary = ["--tokens_str_path", str(fixtures_dir / "reason_tokens.json")]
    scores, pages = folder / "scores", folder / "pages"
    compute_score.main([*flags, *vocabulary, "--output_dir", str(scores)])
    chosen = ["--scores_dir", str(scores), "--topk", str(FEATURES)]
    compute_dashboard.main([*flags, *chosen, "--output_dir", str(pages)])
    return scores, pages


@pytest.fixture
def open_page(open_offline: OpenPage, scores_and_pages: tuple[Path, Path]) -> OpenPage:
    """A function that opens a page of the folder; a request to elsewhere or an error on the console fails the test."""

    def open_(name: str = "index.html", **options: Any) -> Page:
        return open_offline(scores_and_pages[1] / name, **options)

    return open_


@pytest.fixture(scope="module")
def statistics(scores_and_pages: tuple[Path, Path]) -> Stats:
    return load_file(scores_and_pages[0] / "feature_stats.safetensors")


@pytest.fixture(scope="module")
def best(statistics: Stats) -> list[int]:
    """The features shown, best first."""
    return np.argsort(-statistics["score"], kind="stable")[:FEATURES].tolist()


def shown_features(page: Page) -> list[int]:
    return [int(link.inner_text()) for link in page.locator("tbody tr:visible td:nth-child(2) a").all()]


def colours(element: Locator) -> np.ndarray:
    """The pixels that an element shows, [pixels, 3]."""
    return np.array(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).reshape(-1, 3).astype(int)


def test_the_index_shows_the_numbers_of_the_scores(open_page: OpenPage, statistics: Stats, best: list[int]) -> None:
    page = open_page()
    assert shown_features(page) == best
    for rank, row in enumerate(page.locator("tbody tr").all(), start=1):
        values = [float(data.get_attribute("value")) for data in row.locator("td.number data").all()]
        feature = int(values[1])
        assert values == [rank, feature, *(pytest.approx(statistics[name][feature], rel=1e-7) for name in NUMBERS)]
        texts = [data.inner_text() for data in row.locator("td.number data").all()[2:]]
        numbers = [float(text.removesuffix("%")) / (100 if text.endswith("%") else 1) for text in texts]
        assert numbers[:4] == pytest.approx(values[2:6], rel=5e-3) and numbers[4:] == pytest.approx(
            values[6:], abs=5e-3
        )
        assert sum(values[6:]) == pytest.approx(1, abs=1e-6)
        shares = statistics["word_means"][feature] / statistics["word_means"][feature].max()
        heights = [bar.bounding_box()["height"] for bar in row.locator(".bars i").all()]
        assert np.array(heights) / max(heights) == pytest.approx(shares, abs=0.06)


def test_the_index_sorts_by_mouse_and_keyboard(open_page: OpenPage, statistics: Stats, best: list[int]) -> None:
    page = open_page()
    header = page.locator("th", has_text="max activation")
    header.locator("button").click()
    descending = sorted(best, key=lambda feature: -statistics["max_activation"][feature])
    assert shown_features(page) == descending != best and header.get_attribute("aria-sort") == "descending"
    header.locator("button").press("Enter")
    assert shown_features(page) == descending[::-1] and header.get_attribute("aria-sort") == "ascending"
    assert page.locator("th[aria-sort]").count() == 1
    for part in PARTS:
        page.locator("th").get_by_role("button", name=part.replace("_", " "), exact=True).click()
        assert shown_features(page) == sorted(
            best, key=lambda feature: (-statistics[part][feature], best.index(feature))
        )
    words = page.locator("th", has_text="strongest word")
    words.locator("button").click()
    shown = [data.inner_text() for data in page.locator("td.words data").all()]
    assert shown == sorted(shown) and words.get_attribute("aria-sort") == "ascending"
    page.locator("th", has_text="rank").locator("button").click()
    assert shown_features(page) == best


def test_the_index_searches_features_words_and_text(open_page: OpenPage, best: list[int]) -> None:
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type(str(best[3]))
    assert page.locator("#search").input_value() == str(best[3]) and best[3] in shown_features(page)
    assert len(shown_features(page)) < FEATURES
    word = page.locator("td.words data").first.inner_text()
    page.fill("#search", word.upper())
    assert best[0] in shown_features(page)
    page.fill("#search", "no such text")
    assert shown_features(page) == [] and page.locator("#count").inner_text() == f"0 of {FEATURES}"
    page.fill("#search", "")
    assert shown_features(page) == best


def test_planted_elements_are_text_everywhere(open_page: OpenPage, best: list[int]) -> None:
    page = open_page()
    snippets = "".join(page.locator("td.snippet").all_inner_texts())
    assert all(planted in snippets for planted in PLANTED.values())
    assert page.locator("img").count() == 0
    page = open_page(f"feature_{best[0]}.html")
    for planted in PLANTED.values():
        token = page.get_by_text(planted, exact=True).first
        token.hover()  # shows it in a tooltip too, and at a line in both histograms
        tooltip = page.locator(".tooltip:visible code")
        assert tooltip.inner_text() == planted
        assert f"|{planted}|" in page.locator("#histogram-logits-0 .annotation-text").first.text_content()
    assert page.locator("img").count() == 0


def test_a_feature_page_shows_histograms_and_sequences(open_page: OpenPage, statistics: Stats, best: list[int]) -> None:
    feature = best[-1]
    page = open_page(f"feature_{feature}.html")
    pixels = colours(page.locator("#histogram-acts-0"))
    orange = (pixels[:, 0] > 230) & (pixels[:, 2] < 170)
    assert orange.mean() > 0.005
    assert page.locator("#histogram-logits-0 .bars path:visible").count() > 10
    sequences = page.locator("#column-0 .seq:visible")
    assert sequences.count() > 20 and sequences.first.bounding_box()["y"] < 900
    # The token with the highest activation is the most intense one there is.
    peak = sequences.first.locator(".token").filter(visible=True)
    shades = [token.evaluate("node => getComputedStyle(node).backgroundColor") for token in peak.all()]
    assert "rgba(255, 140, 0, 0.7)" in shades
    title = page.locator("#column-0 h4").first.inner_text()
    assert float(title.split("=")[1]) == pytest.approx(statistics["max_activation"][feature], abs=6e-4)
    assert page.locator(".logits-table code:visible").count() == 20
    facts = [float(data.get_attribute("value")) for data in page.locator("dl data").all()]
    assert facts[1:] == [pytest.approx(statistics[name][feature], rel=1e-7) for name in NUMBERS]


def test_a_page_leads_on_and_gives_steering_arguments(open_page: OpenPage, statistics: Stats, best: list[int]) -> None:
    page = open_page(f"feature_{best[0]}.html")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/feature_{best[1]}.html")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/feature_{best[0]}.html")
    assert page.locator("a[rel=prev]").count() == 0
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#copy").click()
    page.get_by_role("button", name="copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    match = re.fullmatch(rf"sae_feature_idx={best[0]},sae_max_activation=([\d.e-]+)", copied)
    maximum = statistics["max_activation"][best[0]]
    assert np.float32(match[1]) == maximum
    page.locator("nav a", has_text="all features").click()
    page.wait_for_url("**/index.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_are_light_or_dark(open_page: OpenPage, best: list[int], scheme: str) -> None:
    for name in ("index.html", f"feature_{best[0]}.html"):
        page = open_page(name, width=390, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        background = np.median(colours(page.locator("body")), axis=0).mean()
        assert background < 60 if scheme == "dark" else background > 240
    assert page.locator("#column-0 .token:visible").first.bounding_box()["width"] > 0
