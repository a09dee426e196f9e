"""quickstart/make_data.py: the schemas of the two data sets, true arithmetic, programs that run, words that occur."""

import contextlib
import io
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
Load = Callable[[str], ModuleType]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data that the script makes by default, as users run it."""
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


@pytest.fixture(scope="module")
def problems(data: Path) -> Rows:
    return [json.loads(line) for line in (data / "problems.jsonl").read_text(encoding="utf-8").splitlines()]


def test_openthoughts_schema(openthoughts: Rows) -> None:
    columns = {"problem", "deepseek_reasoning", "deepseek_solution", "ground_truth_solution", "domain", "source"}
    assert set(openthoughts[0]) == columns | {"test_cases", "starter_code"}
    assert len({row["problem"] for row in openthoughts}) == len(openthoughts) == 1000
    assert {row["domain"] for row in openthoughts} == set(DOMAINS)
    for row in openthoughts:
        assert row["deepseek_reasoning"].strip() and row["deepseek_solution"].strip() and row["problem"].strip()
        assert re.match(r"lm-eval: |generated: (quickstart|reasoning-gym)", row["source"])
        assert row["problem"] in format_openthoughts(row)
    generated = {row["source"] for row in openthoughts if row["source"].startswith("generated: quickstart")}
    assert len(generated) >= 30  # kinds of problems
    assert sum(row["source"].startswith("lm-eval: ") for row in openthoughts) >= 100  # text that people wrote


def test_lmsys_schema(lmsys: Rows) -> None:
    expected = ["conversation_id", "model", "conversation", "turn", "language", "openai_moderation", "redacted"]
    assert list(lmsys[0]) == expected
    assert len({row["conversation_id"] for row in lmsys}) == len(lmsys) == 500
    for row in lmsys:
        roles = [message["role"] for message in row["conversation"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * row["turn"]
        assert all(message["content"].strip() for message in row["conversation"])
        assert format_lmsys(row["conversation"])
    assert sum(row["turn"] > 1 for row in lmsys) > 250
    assert 10 < sum(row["conversation"][0]["role"] == "system" for row in lmsys) < 100


def spelled(word: str) -> re.Pattern[str]:
    """Where the spellings of ``word`` in reason_tokens.json stand in a text."""
    if word in ("but", "another"):  # only with a capital and without a space before it
        return re.compile(rf"(?<![\w ]){word.capitalize()}\b")
    return re.compile(rf"\b[{word[0]}{word[0].upper()}]{word[1:]}\b")


def test_every_reasoning_word_occurs_often(openthoughts: Rows, fixtures_dir: Path) -> None:
    vocabulary = json.loads((fixtures_dir / "reason_tokens.json").read_text())
    words = {word.lstrip().lower() for word in vocabulary}
    assert len(words) == 10
    text = "\n".join(map(format_openthoughts, random.Random(0).sample(openthoughts, 400)))
    counts = {word: len(spelled(word).findall(text)) for word in words}
    assert min(counts.values()) >= 50, counts


def test_arithmetic_is_true_or_taken_back(openthoughts: Rows, lmsys: Rows) -> None:
    statement = re.compile(r"(?<![\w.])(?<![-+×÷/^*] )(\d+) ([-+×÷]) (\d+) = (\d+)(?!\d|\.\d| [-+×÷/^])")
    texts = [row["deepseek_reasoning"] for row in openthoughts if "generated: quickstart" in row["source"]]
    texts += [m["content"] for row in lmsys if "generated: quickstart" in row["model"] for m in row["conversation"]]
    true = corrected = 0
    for text in texts:
        for match in statement.finditer(text):
            a, sign, b, c = int(match[1]), match[2], int(match[3]), int(match[4])
            if {"+": a + b, "-": a - b, "×": a * b, "÷": a / b if b else None}[sign] == c:
                true += 1
            else:
                assert re.search(rf"\bnot {c}\b", text[match.end() :]), f"{match[0]} stands uncorrected in: {text}"
                corrected += 1
    assert true > 4000
    assert corrected > 10  # the slips that the traces notice themselves


def execute(source: str, stdin: str = "") -> tuple[dict[str, Any], str]:
    """Run a program; what it defined and what it printed."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed, before = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(printed):
            exec(source, namespace)
    finally:
        sys.stdin = before
    return namespace, printed.getvalue()


def test_programs_pass_their_test_cases(openthoughts: Rows) -> None:
    rows = [row for row in openthoughts if row["domain"] == "code"]
    kinds = set()
    for row in rows:
        source = re.fullmatch(r"```python\n(.*)\n```", row["deepseek_solution"], re.DOTALL)[1]
        cases = json.loads(row["test_cases"])
        assert len(cases["inputs"]) == len(cases["outputs"]) >= 3
        for given, expected in zip(cases["inputs"], cases["outputs"], strict=True):
            if cases.get("fn_name"):
                assert execute(source)[0][cases["fn_name"]](*given) == expected
            else:
                assert execute(source, given)[1] == expected
        kinds.add((bool(cases.get("fn_name")), bool(row["starter_code"])))
    assert len(rows) > 50
    assert kinds == {(True, True), (True, False), (False, False)}


def test_answers_are_those_of_the_problems(openthoughts: Rows) -> None:
    """Solved again from the wording alone, for the families that are easily parsed."""
    checked = 0
    for row in openthoughts:
        problem, answer = row["problem"], row["ground_truth_solution"]
        if found := re.match(r"How many whole numbers from 1 to (\d+) are divisible by (\d+) or by (\d+)", problem):
            n, a, b = map(int, found.groups())
            assert int(answer) == len([i for i in range(1, n + 1) if i % a == 0 or i % b == 0])
        elif found := re.match(r"Find the greatest common divisor of (\d+) and (\d+)", problem):
            a, b = map(int, found.groups())
            assert int(answer) == max(d for d in range(1, b + 1) if a % d == 0 and b % d == 0)
        elif found := re.match(r'How many times does the letter "(.)" occur in "(.*)"\?', problem):
            assert int(answer) == found[2].count(found[1])
        elif found := re.match(r"Solve (\d+)(\w) \+ (\d+) = (\d+)\w \+ (\d+)", problem):
            a, b, c, d = (int(found[i]) for i in (1, 3, 4, 5))
            assert a * int(answer) + b == c * int(answer) + d
        elif found := re.match(r"A culture of (\d+) bacteria doubles every (\d+) minutes.* after (\d+)", problem):
            start, minutes, span = map(int, found.groups())
            assert int(answer) == start * 2 ** (span // minutes)
        else:
            continue
        checked += 1
    assert checked > 50


def test_evaluation_problems_are_held_out(problems: Rows, openthoughts: Rows, lmsys: Rows) -> None:
    assert len({row["problem"] for row in problems}) == len(problems) == 48
    training = {row["problem"] for row in openthoughts}
    training |= {message["content"] for row in lmsys for message in row["conversation"]}
    for row in problems:
        assert set(row) == {"problem", "answer", "source"}
        assert re.fullmatch(r"\d+", row["answer"]) and row["source"].startswith("generated: ")
        assert not any(row["problem"] in text for text in training)
        a, b = map(int, re.findall(r"\d+", row["problem"]))
        solved = a + b if "gets" in row["problem"] else a - b if "gives" in row["problem"] else a * b
        assert int(row["answer"]) == solved


def test_same_seed_same_rows(load_script: Load, openthoughts: Rows, lmsys: Rows, problems: Rows) -> None:
    script = load_script(SCRIPT)
    again = script.make(42, num_reasoning=1000, num_conversations=500, num_problems=48)
    assert again == {"openthoughts": openthoughts, "lmsys": lmsys, "problems": problems}
    small = {"num_reasoning": 60, "num_conversations": 20, "num_problems": 5}
    other = script.make(43, **small)
    assert [len(rows) for rows in other.values()] == [60, 20, 5]
    assert other["problems"] != problems[:5]
    known = {row["problem"] for row in openthoughts}
    assert any(row["problem"] not in known for row in other["openthoughts"])


def test_slips_must_be_taken_back(load_script: Load) -> None:
    load_script(SCRIPT)
    from reasoning_data.trace import uncorrected

    assert uncorrected("So 17 × 6 = 92. Wait, 17 × 6 = 102, not 92.") == []
    assert uncorrected("So 17 × 6 = 92. Then 92 - 2 = 90.") == ["17 × 6 = 92"]
    assert uncorrected("2 + 3 × 4 = 14 and 7 = 3 × 2 + 1 and 320 × 8.9 = 2848 and 6 ÷ 4 = 1.5.") == []
    assert uncorrected("2 + 3 × 4 = 20, not 200") == ["2 + 3 × 4 = 20"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--num_reasoning", "0"], "at least 1"), (["--sed", "1"], "--seed"), ([], "--output_dir")],
)
def test_bad_arguments_are_one_line(
    load_script: Load, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    where = ["--output_dir", str(tmp_path / "out")] if arguments else []
    with pytest.raises(SystemExit) as exit_info:
        load_script(SCRIPT).main([*where, *arguments])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_folder_with_other_files_is_not_replaced(load_script: Load, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="other files"):
        load_script(SCRIPT).main(["--output_dir", str(tmp_path)])
    assert (tmp_path / "thesis.tex").read_text() == "precious"
