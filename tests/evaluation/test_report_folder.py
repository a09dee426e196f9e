"""A report replaces an earlier report and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import summarize
from planted_runs import PLAIN, feature, write_run

from transformer_lens_r1.shared.errors import UserError


@pytest.fixture
def report(tmp_path: Path) -> Callable[[], None]:
    """A function that writes the report of a few runs, with pages and figures, to `out` in `tmp_path`."""
    write_run(tmp_path / "runs/plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for strength in (1, 2):
        tokens = [[100 + i * strength] for i in range(40)]
        write_run(tmp_path / f"runs/{strength}", PLAIN, tokens=tokens, features=[feature(strength=strength)])
    arguments = ["--results", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "out"), "--n_resamples", "1000"]
    return lambda: summarize.main(arguments)


def test_an_earlier_report_is_replaced(report: Callable[[], None], tmp_path: Path) -> None:
    report()
    page = tmp_path / "out/questions_2.html"
    page.rename(tmp_path / "out/questions_9.html")  # of a run that is no longer there
    report()
    assert page.is_file() and not (tmp_path / "out/questions_9.html").exists()


def test_a_file_beside_an_earlier_report_is_kept(report: Callable[[], None], tmp_path: Path) -> None:
    report()
    for name in ("notes.txt", "figures/mine.png"):
        own = tmp_path / "out" / name
        own.write_text("mine")
        before = sorted((tmp_path / "out").rglob("*"))
        with pytest.raises(UserError, match="out holds other files .*, which the result would replace"):
            report()
        assert sorted((tmp_path / "out").rglob("*")) == before
        own.unlink()


def test_files_of_the_same_names_are_no_report(report: Callable[[], None], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("summary.csv", "report.html"):
        (tmp_path / "out" / name).write_text("<!doctype html><title>My report</title>")
    with pytest.raises(UserError, match="holds another program's report.html"):
        report()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "summary.csv"]
