"""diff_saes.py: planted shared rows are found where they are and new ones are not; intervals are a bootstrap's."""

import csv
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import diff_saes
import numpy as np
import pytest
import torch
from reasonscore.sae import find_sae
from safetensors.torch import load_file, save_file
from scipy.stats import binom
from stage_diffing.presence import THRESHOLDS, nearest_rows, present, share_with_interval

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.matching import match_features

D_IN, D_SAE, TOP, N_MATCHED = 64, 400, 8, 3
PLANTED = {0: 0.95, 1: 0.95, 2: 0.95, 3: 0.95, 4: 0.75, 5: 0.75}  # cosines of top features in S; 6 and 7 are new in F
MATCHED = 0.85  # of every other feature with an even index


def rotated(row: torch.Tensor, cosine: float, generator: torch.Generator) -> torch.Tensor:
    """A direction with the given cosine to `row`."""
    unit = row / row.norm()
    other = torch.randn(row.shape, generator=generator)
    other -= (other @ unit) * unit
    return cosine * unit + (1 - cosine**2) ** 0.5 * other / other.norm()


def write_scores(folder: Path, sae: Path, score: torch.Tensor) -> Path:
    """A folder of scores in which every feature fires, is distinct, and has its own frequency and maximum."""
    generator = torch.Generator().manual_seed(3)
    statistics = {
        "score": score,
        "cluster": torch.arange(len(score)).float(),
        "firing_frequency": torch.rand(len(score), generator=generator) * 0.1 + 0.01,
        "max_activation": torch.rand(len(score), generator=generator) + 1,
    }
    folder.mkdir(parents=True)
    torch.save(score, folder / "feature_scores.pt")
    save_file(statistics, folder / "feature_stats.safetensors", metadata={"words": "[]"})
    (folder / "run.json").write_text(json.dumps({"sae": {"weights_sha256": find_sae(str(sae)).weights_sha256}}))
    return folder


@pytest.fixture
def runs(make_sae: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with SAEs F (final) and S (rows planted from F at other indices and norms), and their scores."""
    generator = torch.Generator().manual_seed(1)
    decoders = {name: torch.randn(D_SAE, D_IN, generator=generator) for name in "FS"}
    for feature in range(D_SAE):
        cosine = PLANTED.get(feature) if feature < TOP else MATCHED if feature % 2 == 0 else None
        if cosine is not None:
            row = rotated(decoders["F"][feature], cosine, generator)
            decoders["S"][place(feature)] = (0.2 + feature % 7) * row
    score = torch.linspace(1, -1, D_SAE)  # the top features are the first
    for name, decoder in decoders.items():
        folder = make_sae(d_in=D_IN, d_sae=D_SAE, name=name)
        weights = load_file(folder / "sae_weights.safetensors")
        save_file({**weights, "W_dec": decoder.contiguous()}, folder / "sae_weights.safetensors")
        write_scores(tmp_path / "scores" / name, folder, score if name == "F" else score.flip(0).contiguous())
    return tmp_path


def place(feature: int) -> int:
    """Where a shared row stands in S."""
    return (feature + 17) % D_SAE


def flags(runs: Path, *more: str) -> list[str]:
    return [
        f"--sae_path={runs / 'F'}", f"--scores_dir={runs / 'scores' / 'F'}", f"--stage=S={runs / 'S'}",
        f"--topk={TOP}", f"--n_matched={N_MATCHED}", f"--output_dir={runs / 'out'}", *more,
    ]  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_planted_rows_are_found_where_they_are_and_new_ones_are_not(runs: Path) -> None:
    diff_saes.main(flags(runs))
    rows = read(runs / "out" / "features.csv")
    top = [row for row in rows if not row["matched_to"]]
    assert [int(row["feature"]) for row in top] == list(range(TOP))
    for row in top[: len(PLANTED)]:
        assert int(row["row:S"]) == place(int(row["feature"]))
        assert float(row["cosine:S"]) == pytest.approx(PLANTED[int(row["feature"])], abs=1e-4)
    assert all(float(row["cosine:S"]) < 0.6 for row in top[len(PLANTED) :])

    statistics = load_file(runs / "scores" / "F" / "feature_stats.safetensors")
    columns = (statistics[name] for name in ("score", "firing_frequency", "max_activation"))
    expected = match_features(*columns, features=range(TOP), n_matched=N_MATCHED)
    matched = [(int(row["matched_to"]), int(row["feature"])) for row in rows[TOP:]]
    assert matched == [(feature, other) for feature, others in expected.items() for other in others]
    shared = sum(other % 2 == 0 for _, other in matched) / len(matched)
    assert 0 < shared < 1

    presence = {round(float(row["threshold"]), 2): row for row in read(runs / "out" / "presence.csv")}
    assert len(presence) == len(THRESHOLDS)
    for threshold, share, null in ((0.6, 6 / 8, shared), (0.7, 6 / 8, shared), (0.8, 4 / 8, shared), (0.9, 4 / 8, 0)):
        row = presence[threshold]
        assert float(row["reasoning"]) == share and float(row["matched"]) == pytest.approx(null)
        assert float(row["difference"]) == pytest.approx(share - null)
        assert float(row["reasoning_low"]) < share < float(row["reasoning_high"])
    assert float(presence[0.98]["reasoning"]) == 0


def test_nearest_rows_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage_diffing.presence.BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    directions, decoder = torch.randn(9, 5, generator=generator), 3 * torch.randn(40, 5, generator=generator)
    decoder[12] = 0  # a row without a direction is near nothing
    found = nearest_rows(directions, decoder)
    for direction, row, cosine in zip(directions.double(), found.row.tolist(), found.cosine.tolist(), strict=True):
        cosines = [float(direction @ other / direction.norm() / max(other.norm(), 1e-9)) for other in decoder.double()]
        assert row == max(range(40), key=cosines.__getitem__)
        assert cosine == pytest.approx(cosines[row], abs=1e-6)


def test_intervals_are_those_of_drawing_features_with_replacement() -> None:
    n, shared = 100, 37
    cosine = torch.tensor([0.9] * shared + [0.1] * (n - shared))[:, None]
    share = share_with_interval(present(cosine), n_resamples=20_000, seed=0)
    index = int(np.searchsorted(THRESHOLDS, 0.5))
    assert share.value[index] == pytest.approx(shared / n)
    for end, quantile in ((share.low, 0.025), (share.high, 0.975)):
        assert end[index] == pytest.approx(binom.ppf(quantile, n, shared / n) / n, abs=1.01 / n)


def test_what_a_feature_and_its_matched_ones_share_cancels_in_the_difference() -> None:
    top = torch.rand(30, 1, generator=torch.Generator().manual_seed(0))
    difference = share_with_interval(present(top) - present(top.expand(30, 4)), n_resamples=200, seed=0)
    assert not difference.low.any() and not difference.high.any()


def test_the_nearest_rows_score_in_its_own_stage_is_in_the_table(runs: Path) -> None:
    diff_saes.main(flags(runs, f"--stage_scores=S={runs / 'scores' / 'S'}"))
    scores = torch.load(runs / "scores" / "S" / "feature_scores.pt", weights_only=True)
    frequency = load_file(runs / "scores" / "S" / "feature_stats.safetensors")["firing_frequency"]
    for row in read(runs / "out" / "features.csv"):
        index = int(row["row:S"])
        assert float(row["score:S"]) == pytest.approx(scores[index].item(), rel=1e-6)
        assert int(row["rank:S"]) == 1 + int((scores > scores[index]).sum())
        assert float(row["firing_frequency:S"]) == pytest.approx(frequency[index].item(), rel=1e-6)


def test_the_page_links_a_feature_and_its_nearest_row_to_their_pages(
    runs: Path, open_offline: Callable[..., Any]
) -> None:
    pages = {name: runs / f"pages {name}" for name in "FS"}
    for name, features in (("F", (0, 6)), ("S", (place(0),))):
        pages[name].mkdir()
        for page in ("index", *(f"feature_{feature}" for feature in features)):
            (pages[name] / f"{page}.html").write_text(f"{name} {page}")
    diff_saes.main(flags(runs, f"--dashboards_dir={pages['F']}", f"--stage_dashboards=S={pages['S']}"))
    page = open_offline(runs / "out" / "index.html")
    assert page.locator("img").evaluate("image => image.naturalWidth") > 100
    rows = page.locator("table").last.locator("tbody tr")
    assert rows.count() == TOP
    assert rows.nth(0).locator("td").all_inner_texts()[:2] == ["1", "0"]
    links = page.locator("a").evaluate_all("links => links.map(link => [link.innerText, link.pathname])")
    found = {text: Path(unquote(path)).read_text() for text, path in links}
    assert found == {"0": "F feature_0", "6": "F feature_6", str(place(0)): f"S feature_{place(0)}"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--stage=S=elsewhere"], "--stage: S is there twice"),
        (["--stage=S"], "expected NAME=PATH, got 'S'"),
        (["--stage_scores=s=scores"], "no --stage is named s"),
        (["--stage=D=none"], "no SAE"),
        (["--stage=D={runs}/other"], "reads 16 dimensions at blocks.2.hook_resid_post, the final one 64"),
        (["--stage_scores=S={runs}/scores/F"], "are those of another SAE"),
        (["--scores_dir={runs}/scores/S"], "are those of another SAE"),
        (["--scores_dir={runs}/scores/F/feature_scores.pt"], "came without statistics"),
        (["--dashboards_dir={runs}/scores"], "no dashboards in"),
        (["--n_matched=200"], "ask for fewer"),
        (["--output_dir={runs}/scores"], "holds other files"),
    ],
)
def test_mistakes_are_one_line(
    runs: Path,
    make_sae: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    expected: str,
) -> None:
    make_sae(name="other")
    try:
        diff_saes.main(flags(runs, *(word.format(runs=runs) for word in more)))
        pytest.fail("it was not refused")
    except SystemExit as refused:  # by the parser
        assert refused.code == 2
        message = capsys.readouterr().err.strip()
    except UserError as error:
        message = str(error)
    assert expected in message and "\n" not in message
    assert not (runs / "out").exists()


def test_the_script_compares_with_what_diffing_sh_leaves(runs: Path, repository: Path) -> None:
    saes = runs / "saes"
    for name, run in (("F", "M-F"), ("S", "S"), ("S", "S-D"), ("F", "S-M")):
        (saes / run).parent.mkdir(exist_ok=True)
        (saes / run).symlink_to(runs / name)
    (runs / "scores" / "M-F").symlink_to(runs / "scores" / "F")
    environment = {
        "FINAL": "M-F", "SAE_DIR": str(saes), "SCORES_DIR": str(runs / "scores"), "TOPK": "5", "N_MATCHED": "2",
        "DASHBOARDS_DIR": str(runs / "none"), "OUTPUT_DIR": str(runs / "out"),
    }  # fmt: skip
    subprocess.run(
        ["bash", str(repository / "extraction/scripts/diff_saes.sh"), "--n_bootstrap", "50"],
        env={**os.environ, **environment}, check=True,
    )  # fmt: skip
    rows = read(runs / "out" / "features.csv")
    assert len(rows) == 5 * 3
    assert {name for name in rows[0] if name.startswith("cosine")} == {"cosine:S", "cosine:D", "cosine:M"}
    assert {name for name in rows[0] if name.startswith("score:")} == {"score:S"}  # the stage with scores
    assert all(float(row["cosine:M"]) == pytest.approx(1, abs=1e-5) for row in rows)
