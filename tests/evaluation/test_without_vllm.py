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
    command = [sys.executable, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_transformers_evaluates_and_vllm_is_refused_in_one_line(
    tiny_llama: Path, problems: Path, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = f"pretrained={tiny_llama},sae_path={make_sae()},sae_feature_idx=3,sae_strength=2,sae_max_activation=5"
    task = ["--tasks", "quickstart_problems", "--gen_kwargs", "max_gen_toks=4", "--output_path", str(tmp_path)]
    of_hf = ["--model", "hf", "--model_args", arguments, "--limit", "1", "--device", "cpu", *task]
    of_vllm = ["--model", "vllm", "--model_args", f"pretrained={tiny_llama}", *task]
    script = tmp_path / "both.py"
    script.write_text(
        "from lm_eval_sae.cli import main\nfrom lm_eval_sae.errors import run\n"
        f"main({of_hf})\nprint('now vLLM', flush=True)\nrun(lambda: main({of_vllm}))\n"
    )
    done = python(str(script), QUICKSTART_PROBLEMS=str(problems))
    (file,) = tmp_path.rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["sae"]["steered_positions"] > 4
    assert done.returncode == 2 and done.stdout.endswith("now vLLM\n"), done.stderr[-3000:]
    assert done.stderr.splitlines()[-1].startswith("error: vLLM is not installed;")


def test_tests_that_need_vllm_are_skipped_and_counted(repository: Path) -> None:
    tests = sorted(map(str, (repository / "tests" / "evaluation").glob("test_vllm_*.py")))
    done = python("-m", "pytest", "-p", "no:cacheprovider", "-vv", *tests, COLUMNS="300")
    assert done.returncode == 0, done.stdout[-3000:]
    skipped = [line for line in done.stdout.splitlines() if "SKIPPED (needs vLLM, which is not installed" in line]
    assert sum("test_one_compile_cache_serves_every_intervention" in line for line in skipped) == 1
    assert f"\n{len(skipped)} tests that need vLLM were skipped: it is not installed here\n" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere CI has no vLLM either")
def test_continuous_integration_on_linux_fails_without_vllm(repository: Path) -> None:
    tests = str(repository / "tests" / "quickstart")
    done = python("-m", "pytest", "-p", "no:cacheprovider", tests, CI="true")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip() == "ERROR: vLLM is not installed, and CI=true: on Linux bash setup.sh installs it"
    assert "passed" not in done.stdout
