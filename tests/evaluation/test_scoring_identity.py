"""What a results file says of the code that decided what is right."""

import ast
import shutil
from importlib.metadata import version
from pathlib import Path

from lm_eval_sae.grading.identity import FOLDER, scoring_identity


def test_the_identity_covers_every_module_of_this_package_that_grading_imports() -> None:
    imported = {
        node.module
        for file in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lm_eval_sae")
    }
    assert imported == {f"lm_eval_sae.grading.{file.stem}" for file in FOLDER.glob("*.py")} & imported


def test_a_changed_module_changes_the_identity(tmp_path: Path) -> None:
    copy = tmp_path / "grading"
    shutil.copytree(FOLDER, copy)
    same = scoring_identity()
    assert scoring_identity(copy) == same and same["math_verify_version"] == version("math-verify")
    for name in ("answers.py", "letters.py", "completion.py"):
        with (copy / name).open("a") as file:
            file.write("# another rule\n")
        changed = scoring_identity(copy)
        assert changed != same
        same = changed
