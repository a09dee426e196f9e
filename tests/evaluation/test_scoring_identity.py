"""The value by which two runs know whether the same code checked their answers."""

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from lm_eval_sae.grading.identity import FOLDER, scoring_files, scoring_identity


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in scoring_files(folder)}


def test_it_covers_all_that_scoring_imports_from_this_package() -> None:
    assert {"scoring.py", "answers.py", "consistency.py"} <= names(FOLDER)
    assert not {"vllm_worker.py", "cli.py"} & names(FOLDER)
    assert scoring_identity()["math_verify_version"] == version("math-verify")


@pytest.mark.parametrize(
    "statement", ["from lm_eval_sae.units import x", "import lm_eval_sae.units", "from . import units"]
)
def test_a_module_that_the_checker_is_split_into_is_covered_wherever_it_is_imported(
    statement: str, tmp_path: Path
) -> None:
    (tmp_path / "scoring.py").write_text("from lm_eval_sae.grading.answers import check\nimport json\n")
    (tmp_path / "answers.py").write_text(f"def check():\n    {statement}\n")
    (tmp_path / "units.py").write_text("x = 1\n")
    (tmp_path / "judge.py").write_text("")
    assert names(tmp_path) == {"scoring.py", "answers.py", "units.py"}


@pytest.mark.parametrize(("name", "changes"), [("answers.py", True), ("consistency.py", True), ("cli.py", False)])
def test_it_changes_with_the_code_that_checks_answers(name: str, changes: bool, tmp_path: Path) -> None:
    copies = [tmp_path / "before", tmp_path / "after"]
    for copy in copies:
        shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copies[1] / name).open("a") as file:
        file.write("\nchanged = True\n")
    before, after = (scoring_identity(copy)["scoring_sha256"] for copy in copies)
    assert before == scoring_identity()["scoring_sha256"]  # wherever the package lies
    assert (before != after) == changes
