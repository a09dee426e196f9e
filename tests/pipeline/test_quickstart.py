"""The stages linked by their files, through the very scripts that users run, on a tiny model."""

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest


def quickstart(repository: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings}
    return subprocess.run(
        ["bash", str(repository / "quickstart.sh")], env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "MODEL": str(tiny_llama), "LAYER": "2", "RUN": str(tmp_path_factory.mktemp("run") / "quickstart"),
        "TRAINING_TOKENS": "61440", "N_SAMPLES": "64", "DASHBOARD_SAMPLES": "64", "TOPK": "10", "LIMIT": "4",
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings: dict[str, str], repository: Path) -> subprocess.CompletedProcess[str]:
    return quickstart(repository, **settings)


def test_every_stage_runs_and_is_linked_to_the_next(
    finished: subprocess.CompletedProcess[str], settings: dict[str, str]
) -> None:
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    run = Path(settings["RUN"])
    with (run / "scores" / "top_features.csv").open() as file:
        top = [int(row["feature"]) for row in csv.DictReader(file)][:10]
    pages = {path.name for path in (run / "dashboards").glob("feature_*.html")}
    assert pages == {f"feature_{feature}.html" for feature in top}

    results = [json.loads(path.read_text()) for path in (run / "evaluation").rglob("results_*.json")]
    steered = [result["config"]["sae"] for result in results if result["config"]["sae"]]
    assert len(results) == 2 and len(steered) == 1
    assert steered[0]["feature_idx"] == top[0]
    assert steered[0]["steered_positions"] > 0
    for rank in top:
        assert f" {rank} " in finished.stdout
    assert "summary.md" in finished.stdout


def test_steering_changes_what_is_written(
    finished: subprocess.CompletedProcess[str], settings: dict[str, str]
) -> None:
    texts = []
    for path in sorted((Path(settings["RUN"]) / "evaluation").rglob("samples_*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        texts.append([row["resps"][0][0] for row in sorted(rows, key=lambda row: row["doc_id"])])
    assert len(texts) == 2 and len(texts[0]) == 4
    assert texts[0] != texts[1]


def test_a_second_run_keeps_what_is_there(
    finished: subprocess.CompletedProcess[str], settings: dict[str, str], repository: Path
) -> None:
    run = Path(settings["RUN"])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and "report" not in path.parts}
    again = quickstart(repository, **settings)
    assert again.returncode == 0, again.stderr[-3000:]
    changed = [
        path.name
        for path, time in before.items()
        if path.stat().st_mtime_ns != time and path.name not in ("settings", "model.log")
    ]
    assert changed == []


def test_other_settings_do_not_mix_with_an_old_run(
    finished: subprocess.CompletedProcess[str], settings: dict[str, str], repository: Path
) -> None:
    other = quickstart(repository, **{**settings, "STRENGTH": "4"})
    assert other.returncode == 2
    assert "was made with other settings" in other.stderr
    assert "FRESH=1 starts over" in other.stderr
