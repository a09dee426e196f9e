"""evaluate.sh and sweep.sh, as users start them: the words that they hand to evaluate.py, and what it makes of them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

TASK = "quickstart_problems"
Plan = Callable[..., list[str]]


@pytest.fixture
def plan(
    evaluate: ModuleType, repository: Path, tiny_llama: Path, sae: Path, problems: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> Plan:  # fmt: skip
    """A function that starts a script with --plan and variables, and returns the lines of its plan."""
    settings = {
        "PYTHON": "/bin/echo", "MODEL": str(tiny_llama), "SAE_PATH": str(sae), "BACKEND": "hf", "TASKS": TASK,
        "GEN_KWARGS": "max_gen_toks=6", "OUTPUT_DIR": str(tmp_path / "out"),
    }  # fmt: skip
    monkeypatch.setenv("QUICKSTART_PROBLEMS", str(problems))

    def start(script: str, *flags: str, **variables: str) -> list[str]:
        command = ["bash", str(repository / "evaluation" / script), "--plan", *flags]
        environment = os.environ | settings | variables
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        python, *words = done.stdout.split()
        assert Path(python).samefile(repository / "evaluation" / "evaluate.py") and "--apply_chat_template" in words
        evaluate.main(words)
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == f"{len(lines)} runs; 0 finished before"
        return [line.split(maxsplit=3)[0] + "|" + line.split("to do")[1].strip() for line in lines]

    return start


def test_evaluate_runs_the_baseline_and_one_feature(plan: Plan) -> None:
    assert plan("evaluate.sh", FEATURE="40", STRENGTH="", MAX_ACTIVATION="") == [
        f"tiny-llama-{TASK}|baseline", f"tiny-llama-{TASK}-sae-40|set 40 to 2 × 5.84",
    ]  # fmt: skip
    (steered,) = plan("evaluate.sh", "--only", "steered", "--limit", "3", FEATURE="40", SAE_MODE="add", STRENGTH="3")
    assert steered == f"tiny-llama-{TASK}-sae-40|add 40 to 3 × 5.84"
    assert plan("evaluate.sh", "--only", "baseline") == [f"tiny-llama-{TASK}|baseline"]


def test_evaluate_takes_the_maximum_from_scores(plan: Plan, scores: Path) -> None:
    maximum = torch.linspace(1, 4, 64)[40].item()
    *_, steered = plan("evaluate.sh", FEATURE="40", MAX_ACTIVATION="auto", SAE_STATS=str(scores))
    assert steered == f"tiny-llama-{TASK}-sae-40|set 40 to 2 × {maximum:.4g}"


def test_evaluate_takes_a_file_in_the_published_form_with_the_sae_that_it_does_not_name(
    plan: Plan, tmp_path: Path
) -> None:
    entry = {"max_activation": 4.0, "strength": 2.0}
    torch.save({3: entry, 5: entry}, tmp_path / "several.pt")
    *_, steered = plan("evaluate.sh", INTERVENTION=str(tmp_path / "several.pt"))
    assert steered == f"tiny-llama-{TASK}-sae-several|published_clamp 3 to 2 × 4, published_clamp 5 to 2 × 4"


def test_sweep_runs_the_best_features_or_a_file(plan: Plan, scores: Path, grid: Path) -> None:
    points = plan("sweep.sh", SCORES_DIR=str(scores), TOPK="2", STRENGTHS="3")
    assert [point.split("|")[0] for point in points] == [
        f"tiny-llama-{TASK}{place}" for place in ("", "-sae-12-x3", "-sae-40-x3")
    ]
    of_file = plan("sweep.sh", GRID=str(grid))
    assert [point.split("|")[0].removeprefix(f"tiny-llama-{TASK}") for point in of_file] == [
        "", "-sae-40-x1", "-sae-40-x2.5", "-sae-41-x1", "-sae-41-x2.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "mode", "judge"),
    [
        ({}, "set", None),
        ({"AS_PUBLISHED": "1"}, "published", None),
        ({"AS_PUBLISHED": "1", "SAE_MODE": "add"}, "add", None),
        ({"AS_PUBLISHED": "1", "PROCESSOR": "m"}, "published", "published"),
        ({"AS_PUBLISHED": "1", "PROCESSOR": "m", "JUDGE": "all"}, "published", "all"),
    ],
)
def test_as_published_changes_defaults_alone(
    variables: dict[str, str], mode: str, judge: str | None, plan: Plan, scores: Path, monkeypatch: pytest.MonkeyPatch,
    evaluate: ModuleType,
) -> None:  # fmt: skip
    monkeypatch.setenv("JUDGE", variables.get("JUDGE", ""))
    monkeypatch.setenv("PROCESSOR", variables.get("PROCESSOR", ""))
    monkeypatch.setattr("lm_eval_sae.cli.get_judge", lambda: None)  # it would be asked a trial question
    monkeypatch.setattr("grid.runs.get_judge", lambda: None)
    for script in ("evaluate.sh", "sweep.sh"):
        *_, steered = plan(script, FEATURE="40", SCORES_DIR=str(scores), TOPK="1", **variables)
        assert steered.split("|")[1].startswith(f"{mode} ")
        assert os.environ["JUDGE"] == (judge or "")


@pytest.mark.parametrize(
    ("flags", "variables", "said"),
    [
        ([], {"AS_PUBLISHED": "yes"}, "AS_PUBLISHED is 'yes', expected 1 or 0"),
        (["--taskz", "x"], {}, "unrecognized arguments: --taskz x; did you mean '--tasks'?"),
        ([], {"SAE_MODE": "sets"}, "sae_mode is 'sets', expected one of set, clamp"),
        ([], {"INTERVENTION": "a.yaml"}, "no file at sae_intervention_path=a.yaml"),
        ([], {"MODEL": "a,b"}, "b"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    flags: list[str], variables: dict[str, str], said: str, repository: Path, sae: Path, tmp_path: Path
) -> None:
    import sys

    environment = (
        os.environ | {"PYTHON": sys.executable, "SAE_PATH": str(sae), "FEATURE": "1", "BACKEND": "hf"} | variables
    )
    command = ["bash", str(repository / "evaluation" / "evaluate.sh"), *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []
