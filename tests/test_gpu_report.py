"""`bash tests/gpu.sh` runs to its end on whatever machine this is, and its checks pass."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

PARTS = ["scores", "training", "steering", "two_gpus"]


def gpu_report(repository: Path, output: Path, *parts: str, limit: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(output), "LIMIT": str(limit)}
    return subprocess.run(
        ["bash", str(repository / "tests" / "gpu.sh"), *parts],
        env={"OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.timeout(3000)
def test_every_part_runs_and_all_checks_pass(repository: Path, tmp_path: Path) -> None:
    done = gpu_report(repository, tmp_path / "report", limit=700)
    text = (tmp_path / "report" / "report.txt").read_text()
    assert done.returncode == 0, text
    report = json.loads((tmp_path / "report" / "report.json").read_text())["parts"]
    assert list(report) == PARTS
    for part in report.values():
        rows = part["rows"]
        assert all(row["ok"] for row in rows if row["kind"] == "check") and part["machine"]["device"]
        left_out = any("left out" in row["value"] for row in rows)
        assert left_out or {"check", "speed"} <= {row["kind"] for row in rows}
        assert all(row["what"] in text and row["value"] in text for row in rows)
        assert all(row["tokens_per_second"] > 0 for row in rows if row["kind"] == "speed")


def test_an_unknown_part_is_refused_and_one_that_fails_is_a_failed_check_beside_the_others(
    repository: Path, tmp_path: Path
) -> None:
    done = gpu_report(repository, tmp_path, "scores", "scoers", limit=100)
    assert done.returncode == 2 and not any(tmp_path.iterdir()) and done.stderr.startswith("error: no part 'scoers'")
    for part in ("training", "scores"):
        done = gpu_report(repository, tmp_path, part, limit=0.1)
        assert done.returncode == 1
    report = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert list(report) == ["scores", "training"]
    for part in report.values():
        assert [(row["what"], row["ok"]) for row in part["rows"]] == [("ran to its end", False)]


def test_a_synchronisation_is_laid_to_the_nearest_line_of_the_project(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repository / "tests" / "gpu"))
    from measure import SYNCHRONISES, waiting_lines

    def defined_in(file: Path, source: str, **names: object) -> dict[str, object]:
        exec(compile(source, str(file), "exec"), names)
        return names

    warn = defined_in(
        Path(warnings.__file__).parent / "library" / "code.py", "def wait():\n    warn(text)\n",
        warn=warnings.warn, text=f"{SYNCHRONISES} (Triggered internally)",
    )["wait"]  # fmt: skip
    source = "def one():\n    warn(text)\ndef other():\n    wait()\n"
    names = {"warn": warnings.warn, "text": SYNCHRONISES, "wait": warn}
    project = defined_in(repository / "extraction" / "made_up.py", source, **names)
    with waiting_lines() as lines:
        for name in ("one", "other", "one"):
            project[name]()
        warn()
    assert lines == {
        "extraction/made_up.py:2": 2,
        "extraction/made_up.py:4 (in library/code.py:2)": 1,
        "outside of the project (in library/code.py:2)": 1,
    }
