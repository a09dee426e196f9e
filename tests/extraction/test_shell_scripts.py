"""The stage's shell scripts: the paper's setting, and whatever flags are added."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["compute_score", "compute_dashboard", "falsify_features"])
def test_the_shell_scripts_run_from_anywhere_and_pass_flags_on(repository: Path, tmp_path: Path, name: str) -> None:
    shell = repository / "extraction" / "scripts" / f"{name}.sh"
    settings = {**os.environ, "PYTHON": sys.executable, "SAE_ID": "", "SAE_PATH": "x"}
    done = subprocess.run([shell, "--n_smaples", "3"], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: unknown flag --n_smaples; did you mean '--n_samples'? (--help lists all)\n"
    settings |= {"PYTHON": "echo"}
    for value in ("1", "0"):
        done = subprocess.run([shell], env={**settings, "AS_PUBLISHED": value}, capture_output=True, text=True)
        assert done.stdout.split().count("--as_published") == int(value)
