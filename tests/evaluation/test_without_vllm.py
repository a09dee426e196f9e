"""A machine without vLLM, such as a Mac: transformers evaluates, vLLM is refused in words, its tests are skipped.

Processes have `no_vllm/` in PYTHONPATH, which hides the vLLM that is installed here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HIDING = Path(__file__).resolve().parent / "no_vllm"


def python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(HIDING), "CI": "", "PYTEST_ADDOPTS": "", **variables}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_steered_run_of_transformers_needs_no_vllm(
    tiny_llama: Path, problems: Path, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = f"pretrained={tiny_llama},sae_path={make_sae()},sae_feature_idx=3,sae_strength=2,sae_max_activation=5"
    done = python(
        "lm_eval_sae", "--model", "hf", "--model_args", arguments, "--tasks", "quickstart_problems", "--limit", "1",
        "--device", "cpu", "--gen_kwargs", "max_gen_toks=4", "--output_path", str(tmp_path),
        QUICKSTART_PROBLEMS=str(problems),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["sae"]["steered_positions"] > 4


def test_vllm_is_refused_in_one_line(tiny_llama: Path) -> None:
    model = ["--model", "vllm", "--model_args", f"pretrained={tiny_llama}"]
    done = python("lm_eval_sae", *model, "--tasks", "math-500", "--gen_kwargs", "max_gen_toks=4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: vLLM is not installed;") and done.stderr.count("\n") == 1


def test_tests_that_need_vllm_are_skipped_and_counted(repository: Path) -> None:
    tests = str(repository / "tests" / "evaluation" / "test_vllm_parallel.py")
    done = python("pytest", "-p", "no:cacheprovider", "-vv", tests, COLUMNS="300")
    assert done.returncode == 0, done.stdout[-3000:]
    skipped = [line for line in done.stdout.splitlines() if "SKIPPED (needs vLLM, which is not installed" in line]
    assert len(skipped) == 3 and "test_tensor_parallel_ranks_all_steer" in skipped[0]
    assert "\n3 tests that need vLLM were skipped: it is not installed here\n" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere CI has no vLLM either")
def test_continuous_integration_on_linux_fails_without_vllm(repository: Path) -> None:
    tests = str(repository / "tests" / "quickstart")
    done = python("pytest", "-p", "no:cacheprovider", tests, CI="true")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip() == "ERROR: vLLM is not installed, and CI=true: on Linux bash setup.sh installs it"
    assert "passed" not in done.stdout
