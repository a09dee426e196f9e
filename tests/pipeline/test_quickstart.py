"""The stages linked by their files, through the very scripts that users run, on a tiny model."""

import csv
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from judge_server import JudgeServer

# Wherever the environment can hold a secret.
SECRETS = {
    "HF_TOKEN": "hf_plantedplantedplantedplanted", "WANDB_API_KEY": "5ec7e7" * 6 + "abcd",
    "OPENROUTER_API_KEY": "sk-or-v1-planted0123456789", "OPENAI_API_KEY": "sk-planted-too-0123456789",
}  # fmt: skip


def quickstart(repository: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings}
    return subprocess.run(
        ["bash", str(repository / "quickstart.sh")], env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with JudgeServer() as judge:
        home = tmp_path_factory.mktemp("home")
        yield run_settings(tiny_llama, tmp_path_factory.mktemp("run") / "quickstart") | SECRETS | {
            "PROCESSOR": "judge", "PROCESSOR_BASE_URL": judge.base_url, "HOME": str(home), "XDG_CACHE_HOME": str(home),
        }  # fmt: skip
        assert judge.authorizations and set(judge.authorizations) == {f"Bearer {SECRETS['OPENROUTER_API_KEY']}"}


def run_settings(model: Path, run: Path) -> dict[str, str]:
    return {
        "MODEL": str(model), "LAYER": "2", "RUN": str(run),
        "TRAINING_TOKENS": "61440", "N_SAMPLES": "64", "DASHBOARD_SAMPLES": "16", "TOPK": "3", "LIMIT": "4",
        "STEERED": "2", "STRENGTHS": "1,2", "BACKEND": "hf",
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
        rows = list(csv.DictReader(file))
    top = [int(row["feature"]) for row in rows if row["cluster"] == row["feature"]][:3]
    assert len(rows) == 30  # enough to find three distinct ones
    pages = {path.name for path in (run / "dashboards").glob("feature_*.html")}
    assert pages == {f"feature_{feature}.html" for feature in top}

    with (run / "falsification" / "falsification.csv").open(newline="") as file:
        verdicts = {int(row["feature"]): row["verdict"] for row in csv.DictReader(file)}
    assert list(verdicts) == top and set(verdicts.values()) <= {"token", "mixed", "context", "unclear"}
    for feature, verdict in verdicts.items():
        assert re.search(rf"^ +\d+ +{feature} .* {verdict} ", finished.stdout, re.MULTILINE)
        page = (run / "dashboards" / f"feature_{feature}.html").read_text(encoding="utf-8")
        assert f'mean reasoning? <span class="verdict">{verdict}</span>' in page

    names = {path.parent.name for path in (run / "evaluation").glob("*/run.json")}
    points = [f"-sae-{feature}-x{strength}" for feature in top[:2] for strength in (1, 2)]
    assert names == {f"tiny-llama-quickstart_problems{point}" for point in ["", *points]}
    steered = [json.loads((run / "evaluation" / name / "run.json").read_text())["steered_positions"] for name in names]
    assert steered.count(None) == 1 and all(count is None or count > 0 for count in steered)
    assert "Accuracy and length against strength" in (run / "evaluation" / "report" / "report.html").read_text()
    assert "summary.md" in finished.stdout


def test_the_console_shows_the_runs_and_the_log_what_the_libraries_print(
    finished: subprocess.CompletedProcess[str], settings: dict[str, str]
) -> None:
    evaluation = Path(settings["RUN"]) / "evaluation"
    for folder in (path.parent.name for path in evaluation.glob("*/run.json")):
        assert re.search(rf"^{folder}: \d+\.\d% right$", finished.stdout, re.MULTILINE)
    said = finished.stdout + finished.stderr
    of_lm_eval = "Running generate_until requests"
    assert of_lm_eval not in said and of_lm_eval in (evaluation / "evaluate.log").read_text()


def test_no_secret_is_in_a_file_or_on_the_console(
    finished: subprocess.CompletedProcess[str], settings: dict[str, str]
) -> None:
    files = [path for name in ("RUN", "HOME") for path in Path(settings[name]).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".html", ".json", ".jsonl", ".log", ".md", ".csv"}
    for content in [finished.stdout.encode(), finished.stderr.encode(), *(path.read_bytes() for path in files)]:
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content]


def test_steering_changes_what_is_written(finished: subprocess.CompletedProcess[str], settings: dict[str, str]) -> None:
    texts = []
    for path in sorted((Path(settings["RUN"]) / "evaluation").rglob("samples_*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        texts.append([row["resps"][0][0] for row in sorted(rows, key=lambda row: row["doc_id"])])
    assert len(texts) == 5 and len(texts[0]) == 4
    assert all(steered != texts[0] for steered in texts[1:])


def test_a_second_run_keeps_what_is_there(
    finished: subprocess.CompletedProcess[str], settings: dict[str, str], repository: Path
) -> None:
    run = Path(settings["RUN"])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = quickstart(repository, **settings)
    assert again.returncode == 0, again.stderr[-3000:]
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"LAYER": "9"}, "has layers 0 to 3"),
        ({"RUN": "a,b"}, "RUN or MODEL holds a comma"),
    ],
)
def test_wrong_settings_end_in_one_line_before_any_work(
    change: dict[str, str], said: str, settings: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    wrong = quickstart(repository, **{**settings, "DTYPE": "float32", "RUN": str(tmp_path / "run"), **change})
    assert wrong.returncode == 2
    assert said in wrong.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "data").exists()


def test_a_folder_with_other_files_is_left_alone(settings: dict[str, str], repository: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").touch()
    refused = quickstart(repository, **{**settings, "RUN": str(tmp_path), "FRESH": "1"})
    assert refused.returncode == 2
    assert "holds other files than a quickstart's" in refused.stderr
    assert (tmp_path / "data" / "precious.txt").exists()


def test_a_model_without_a_bos_is_described_without_one(
    tiny_llama: Path, tmp_path: Path, load_script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "no-bos"
    shutil.copytree(tiny_llama, checkpoint)
    (checkpoint / "special_tokens_map.json").unlink()
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": None}))
    load_script("quickstart/describe_model.py").main(["--model_path", str(checkpoint), "--layer", "2"])
    assert capsys.readouterr().out.split() == ["256", "1", "false"]


def test_other_settings_do_not_mix_with_an_old_run(
    finished: subprocess.CompletedProcess[str], settings: dict[str, str], repository: Path
) -> None:
    other = quickstart(repository, **{**settings, "DTYPE": "float32", "STRENGTHS": "4"})
    assert other.returncode == 2 and "was made with other settings" in other.stderr
