"""The shell script of the paper's runs, as users start it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def start(repository: Path, cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(repository / "evaluation" / "evaluate.sh"), *arguments]
    environment = os.environ | {"PYTHON": sys.executable} | variables
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--taskz"], {}, "unknown argument '--taskz'"),
        ([], {"DEVICE": "cuda"}, "DEVICE is for BACKEND=hf"),
        ([], {"BACKEND": "hg"}, "expected vllm or hf"),
        ([], {"RUNS": "steerd"}, "RUNS has 'steerd'"),
        ([], {"MODEL": "a,b"}, "MODEL is 'a,b'"),
        ([], {"SAE_PATH": "a,b"}, "SAE_PATH is 'a,b'"),
        ([], {"SAE_STATS": "a,b"}, "SAE_STATS is 'a,b'"),
        ([], {"SAE_PATH": "a", "SAE_RELEASE": "b"}, "expected one of them"),
        ([], {"INTERVENTION": "a", "FEATURE": "1"}, "both INTERVENTION and SAE_PATH"),
    ],
)
def test_mistakes(
    arguments: list[str], variables: dict[str, str], message: str, repository: Path, tmp_path: Path
) -> None:
    done = start(repository, tmp_path, *arguments, **variables)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_plain_and_steered_then_skipped_then_refused(
    repository: Path, tiny_llama: Path, make_sae: Callable[..., Path], problems: Path, tmp_path: Path,
    load_script: Callable[[str], ModuleType],
) -> None:  # fmt: skip
    settings = {
        "MODEL": str(tiny_llama), "SAE_PATH": str(make_sae("standard")), "FEATURE": "40", "STRENGTH": "2",
        "MAX_ACTIVATION": "6", "TASKS": "quickstart_problems", "QUICKSTART_PROBLEMS": str(problems), "LIMIT": "2",
        "BACKEND": "hf", "DTYPE": "float32", "DEVICE": "cpu", "GEN_KWARGS": "max_gen_toks=4", "OUTPUT_DIR": "out",
    }  # fmt: skip
    done = start(repository, tmp_path, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    names = ["tiny-llama-quickstart_problems", "tiny-llama-quickstart_problems-sae-40"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    summarize = load_script("evaluation/summarize.py")
    rows = summarize.summarize(summarize.read_runs([tmp_path / "out"]))
    assert [row.run.n_questions for row in rows] == [2, 2] and rows[1].compared == 2
    assert rows[0].warnings[0] == "2 questions, fewer than the 30 that an interval needs"

    again = start(repository, tmp_path, **settings)
    assert again.returncode == 0 and again.stdout.count("skipped") == 2
    weights = Path(settings["SAE_PATH"]) / "sae_weights.safetensors"
    os.utime(weights, (1, 1))  # as if trained again into the same folder
    changed = start(repository, tmp_path, **settings)
    assert changed.returncode == 2 and "another SAE" in changed.stderr and changed.stdout.count("skipped") == 1
    other = start(repository, tmp_path, **{**settings, "STRENGTH": "3"})
    assert other.returncode == 2 and "holds a run with other settings" in other.stderr
