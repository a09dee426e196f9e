"""A report replaces an earlier report and nothing else."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted_runs import PLAIN, feature, write_run  # noqa: E402


@pytest.fixture
def report(load_script: Callable[[str], ModuleType], tmp_path: Path) -> Callable[[], None]:
    """A function that writes the report of a few runs, with pages and figures, to `out` in `tmp_path`."""
    write_run(tmp_path / "runs/plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for strength in (1, 2):
        tokens = [[100 + i * strength] for i in range(40)]
        write_run(tmp_path / f"runs/{strength}", PLAIN, tokens=tokens, features=[feature(strength=strength)])
    summarize = load_script("evaluation/summarize.py")
    arguments = ["--results", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "out"), "--n_resamples", "1000"]
    return lambda: summarize.main(arguments)


def test_an_earlier_report_is_replaced(report: Callable[[], None], tmp_path: Path) -> None:
    report()
    page = tmp_path / "out/questions_2.html"
    assert page.is_file() and (tmp_path / "out/figures/strength.svg").is_file()
    page.rename(tmp_path / "out/questions_9.html")  # of a run that is no longer there
    report()
    assert page.is_file() and not (tmp_path / "out/questions_9.html").exists()


@pytest.mark.parametrize("name", ["notes.txt", "figures/mine.png", "data/summary.csv", "summary.xlsx", ".hidden"])
def test_a_file_beside_an_earlier_report_is_kept(name: str, report: Callable[[], None], tmp_path: Path) -> None:
    report()
    own = tmp_path / "out" / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(Exception, match="out holds other files .*, which the result would replace") as error:
        report()
    assert error.typename == "UserError" and own.read_text() == "mine"
    assert sorted((tmp_path / "out").rglob("*")) == before


@pytest.mark.parametrize("files", [["summary.csv"], ["summary.csv", "report.html"]])
def test_files_of_the_same_names_are_no_report(files: list[str], report: Callable[[], None], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in files:
        (tmp_path / "out" / name).write_text("<!doctype html><title>My report</title>")
    with pytest.raises(Exception, match="holds (other files|another program's report.html)") as error:
        report()
    assert error.typename == "UserError"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files)


def test_too_few_resamples_are_refused(
    load_script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--results", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--n_resamples", "999"]
    with pytest.raises(SystemExit) as end:
        load_script("evaluation/summarize.py").main(arguments)
    assert end.value.code == 2 and "expected at least 1000" in capsys.readouterr().err
