"""quickstart/make_data.py: always the same rows, in the schemas of the paper's data sets, with words that occur."""

import hashlib
import json
import random
import re
import subprocess
import sys
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
def data(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, made as users make it."""
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    command = [sys.executable, str(repository / SCRIPT), "--output_dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
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


def spelled(word: str) -> re.Pattern[str]:
    """Where the spellings of ``word`` in reason_tokens.json stand in a text."""
    if word in ("but", "another"):  # only with a capital and without a space before it
        return re.compile(rf"(?<![\w ]){word.capitalize()}\b")
    return re.compile(rf"\b[{word[0]}{word[0].upper()}]{word[1:]}\b")


def test_every_reasoning_word_occurs_often(openthoughts: Rows, fixtures_dir: Path) -> None:
    vocabulary = json.loads((fixtures_dir / "reason_tokens.json").read_text())
    words = {word.lstrip().lower() for word in vocabulary}
    text = "\n".join(map(format_openthoughts, random.Random(0).sample(openthoughts, 400)))
    counts = {word: len(spelled(word).findall(text)) for word in words}
    assert len(words) == 10 and min(counts.values()) >= 50, counts


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
