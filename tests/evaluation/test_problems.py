"""Problems from a user's file: what its answers are as text, and what is said of those that are none."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_eval_sae.errors import UserError
from lm_eval_sae.grading.scoring import process_short_math
from lm_eval_sae.tasks.problems import load_problems


def write(folder: Path, *lines: str, name: str = "problems.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def answers(path: Path) -> list[str]:
    return load_problems(problems=str(path))["test"]["answer"][:]


def test_answers_are_the_text_that_the_file_writes(tmp_path: Path) -> None:
    written = ["17", '"1/2"', "0.50", "12345678901", '"\\\\frac{1}{2}"', '"red"', "-3", '"line\u2028break"']
    path = write(tmp_path, *(f'{{"problem": "q{i}", "answer": {value}}}' for i, value in enumerate(written)), "")
    expected = ["17", "1/2", "0.50", "12345678901", "\\frac{1}{2}", "red", "-3", "line\u2028break"]
    assert answers(path) == expected
    array = json.dumps([{"problem": "a", "answer": 17}, {"answer": "1/2", "problem": "b", "level": 3}], indent=1)
    assert answers(write(tmp_path, array, name="a.json")) == ["17", "1/2"]
    doc = load_problems(problems=str(path))["test"][1]
    scores = process_short_math(doc, ["It is \\boxed{1/2}."])
    assert scores["exact_match"] == scores["exact_match_string"] == 1


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"problem": ["a", "b"], "answer": [17, 12345678901]}), tmp_path / "p.parquet")
    assert answers(tmp_path) == ["17", "12345678901"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"problem": "a", "answer": "1"}', '{"problem": "b", "answer": [1, 2]}'], "row 2: expected"),
        (['{"question": "a", "answer": "1"}'], "row 1: expected a row with problem and answer"),
        (['{"problem": "a", "answer": "1"}', '{"problem": "b'], "line 2 is not JSON"),
        ([""], "holds no problems"),
    ],
)
def test_mistakes_are_one_line(lines: list[str], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, *lines)
    with pytest.raises(UserError, match=message) as refused:
        load_problems(problems=str(path))
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
