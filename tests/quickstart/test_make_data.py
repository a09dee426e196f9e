"""quickstart/make_data.py: always the same rows, in the schemas of the paper's data sets."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from transformer_lens_r1.chat_format import DOMAINS, format_lmsys, format_openthoughts
from transformer_lens_r1.shared.errors import UserError

SCRIPT = "quickstart/make_data.py"
ROWS_SHA256 = {
    "openthoughts": "2a7b1f16dc8030892a8a4b47b81f6ada6ad6b4b0b75990b80bed71436cb0e59d",
    "lmsys": "6cb6c90a8a90ecf882b1faf510a046d7c3501448055a5656d67563e4f00216d6",
}
Load = Callable[[str], ModuleType]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(load_script_for_module: Load, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    load_script_for_module(SCRIPT).main(["--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def openthoughts(data: Path) -> Rows:
    return pq.read_table(data / "openthoughts" / "train-00000-of-00001.parquet").to_pylist()


@pytest.fixture(scope="module")
def lmsys(data: Path) -> Rows:
    return pq.read_table(data / "lmsys" / "train-00000-of-00001.parquet").to_pylist()


def test_rows_are_the_same_on_every_machine(openthoughts: Rows, lmsys: Rows) -> None:
    for name, rows in {"openthoughts": openthoughts, "lmsys": lmsys}.items():
        assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == ROWS_SHA256[name], name


def test_every_row_becomes_the_text_of_r1(openthoughts: Rows, lmsys: Rows) -> None:
    assert len({row["problem"] for row in openthoughts}) == len(openthoughts) == 1000
    assert {row["domain"] for row in openthoughts} == set(DOMAINS)
    assert all(row["problem"] in format_openthoughts(row) for row in openthoughts)
    assert len({row["conversation_id"] for row in lmsys}) == len(lmsys) == 500
    for row in lmsys:
        roles = [message["role"] for message in row["conversation"]]
        assert roles[roles[0] == "system" :] == ["user", "assistant"] * row["turn"]
        assert format_lmsys(row["conversation"])


def test_evaluation_problems_are_held_out_and_their_answers_right(data: Path, openthoughts: Rows, lmsys: Rows) -> None:
    problems = [json.loads(line) for line in (data / "problems.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["problem"] for row in problems}) == len(problems) == 48
    training = {row["problem"] for row in openthoughts}
    training |= {message["content"] for row in lmsys for message in row["conversation"]}
    for row in problems:
        assert not any(row["problem"] in text for text in training)
        a, b = map(int, re.findall(r"\d+", row["problem"]))
        solved = a + b if "gets" in row["problem"] else a - b if "gives" in row["problem"] else a * b
        assert row["answer"] == str(solved)


def test_an_lm_eval_with_other_examples_is_one_line(load_script: Load) -> None:
    with pytest.raises(UserError, match="install the version that requirements.txt names"):
        load_script(SCRIPT).read_rows({})
