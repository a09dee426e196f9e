"""What --as_published and the options that it is made of do in the scripts of extraction/."""

import json
from pathlib import Path
from typing import Any

import prepare_openthoughts_subset as subset_script
import pytest
from datasets import Dataset

from transformer_lens_r1 import format_openthoughts
from transformer_lens_r1.shared.data import load_rows

SIZES = {"math": 30, "code": 20, "puzzle": 3, "biology": 12, "chemistry": 12, "physics": 12}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the schema of OpenThoughts-114k, its domains mixed; every other starter code has no characters."""
    domains = [domain for turn in range(30) for domain, size in SIZES.items() if turn < size]
    rows = [
        {
            "conversations": [{"from": "user", "value": f"problem {index}"}],
            "problem": f"problem {index}",
            "deepseek_reasoning": f"Wait, {index}",
            "deepseek_solution": f"so {index}",
            "domain": domain,
            "test_cases": "{}" if domain == "code" else None,
            "starter_code": ["", None][index % 4 // 2] if domain == "code" else None,
        }
        for index, domain in enumerate(domains)
    ]
    folder = tmp_path_factory.mktemp("openthoughts")
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder


def make_subset(source: Path, folder: Path, *options: str) -> Dataset:
    subset_script.main(["--dataset_path", str(source), "--output_dir", str(folder), *options])
    return load_rows(folder)


@pytest.mark.parametrize("chosen", ["physics,code,puzzle", None])
def test_the_published_draw_goes_domain_by_domain_and_keeps_all_columns(
    source: Path, tmp_path: Path, chosen: str | None
) -> None:
    domains = chosen.split(",") if chosen else ["code", "math", "puzzle", "biology", "chemistry", "physics"]
    rows = load_rows(source).filter(lambda row: row["domain"] in domains)
    share, expected = 32 // len(domains), []
    for domain in domains:
        of_domain = rows.filter(lambda row, domain=domain: row["domain"] == domain).shuffle(seed=42)
        expected += of_domain["problem"][:share]
    expected += [problem for problem in rows["problem"][:] if problem not in expected][: 32 - len(expected)]

    options = ["--draw", "published", "--num_samples", "32", *(["--domains", chosen] if chosen else [])]
    subset = make_subset(source, tmp_path / "subset", *options)
    assert subset["problem"][:] == expected and len(expected) == 32
    assert subset.column_names == [*rows.column_names, "text"]
    by_problem = {row["problem"]: row for row in rows}
    assert all(row["text"] == format_openthoughts(by_problem[row["problem"]]) for row in subset)
    assert {**by_problem[expected[0]], "text": None} == {**subset[0], "text": None}
    provenance = json.loads((tmp_path / "subset" / "provenance.json").read_text())
    assert provenance["draw"] == "published" and ("--domains physics,code,puzzle" in provenance["command"]) == bool(
        chosen
    )


def test_domains_restrict_the_stratified_draw_too(source: Path, tmp_path: Path) -> None:
    subset = make_subset(source, tmp_path / "subset", "--domains", "math,biology", "--num_samples", "20")
    assert subset["domain"][:].count("math") == subset["domain"][:].count("biology") == 10
    assert subset.column_names == ["text", "domain"]


@pytest.mark.parametrize("value", ["math,cooking", "math,math", ""])
def test_domains_that_do_not_exist_or_come_twice_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        make_subset(source, tmp_path / "subset", "--domains", value)
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_as_published_changes_draw_and_text_and_each_can_be_set_back(source: Path, tmp_path: Path) -> None:
    rows = load_rows(source)

    def questions(*options: str) -> dict[int, str]:
        """What stands between the two marks, by the number in it, of problems in code."""
        subset = make_subset(source, tmp_path / str(len(options)), "--num_samples", "89", *options)
        texts = [row["text"] for row in subset if row["domain"] == "code"]
        found = [text.split("<｜User｜>")[1].split("<｜Assistant｜>")[0] for text in texts]
        return {int(question.split("problem ")[1]): question for question in found}

    code = {number: row for number, row in enumerate(rows) if row["domain"] == "code"}
    assert {row["starter_code"] for row in code.values()} == {"", None}
    newline, nothing = questions("--as_published"), questions("--as_published", "--empty_starter_code", "nothing")
    assert newline.keys() == nothing.keys() == code.keys()
    for number, row in code.items():
        assert nothing[number].endswith(f"problem {number}")
        assert newline[number] == nothing[number] + ("\n" if row["starter_code"] == "" else "")
    assert "problem" in load_rows(tmp_path / "1").column_names  # the published draw
    command = json.loads((tmp_path / "3" / "provenance.json").read_text())["command"]
    assert "--as_published" in command and "--empty_starter_code nothing" in command


def code_row(**changes: Any) -> dict[str, Any]:
    row = {"problem": "p", "deepseek_reasoning": "r", "deepseek_solution": "s", "domain": "code", "test_cases": "{}"}
    return {**row, **changes}


@pytest.mark.parametrize(("starter", "added"), [(None, ""), ("", "\n"), ("def f():", "\ndef f():")])
def test_the_newline_of_an_empty_starter_code(starter: str | None, added: str) -> None:
    without = format_openthoughts(code_row(starter_code=None))
    text = format_openthoughts(code_row(starter_code=starter), empty_starter_code="newline")
    assert text == without.replace("p<｜Assistant｜>", f"p{added}<｜Assistant｜>")
