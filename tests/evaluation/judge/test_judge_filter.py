"""Which answers the judge is asked about, and where its verdicts go: real task files, scripted completions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from engines import TASK_DATA, Scripted, write_local_task
from judge_server import KEY, JudgeServer
from lm_eval.tasks import TaskManager

from lm_eval_sae import TASKS_DIR, register_filters
from lm_eval_sae.grading.completion import Completion
from lm_eval_sae.grading.scoring import order_gpqa
from lm_eval_sae.judge.client import JudgeQuestion, get_judge
from lm_eval_sae.judge.filter import JudgeFilter


@dataclass
class ScriptedJudge:
    """Holds right what contains "right", wrong what contains "wrong", and cannot say otherwise."""

    mode: str = "undecided"
    asked: list[JudgeQuestion] = field(default_factory=list)

    def decide(self, questions: Sequence[JudgeQuestion]) -> list[bool | None]:
        self.asked += questions
        return [True if "right" in q.answer else False if "wrong" in q.answer else None for q in questions]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ScriptedJudge]:
    """A function that sets up a judge in a mode."""

    def make(mode: str) -> ScriptedJudge:
        scripted = ScriptedJudge(mode)
        monkeypatch.setattr("lm_eval_sae.judge.client.get_judge", lambda: scripted)
        return scripted

    return make


DOCS = [{"problem": "How many?", "answer": "12"}, {"problem": "Who?", "answer": r"\text{Evelyn}"}]


def verdicts(filtered: list[list[str]]) -> list[list[bool | None]]:
    return [[getattr(completion, "judged", None) for completion in repeats] for repeats in filtered]


def test_without_a_judge_every_repeat_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_sae.judge.client.get_judge", lambda: None)
    resps = [["a", Completion("b", 3)], ["c", r"\boxed{?}"]]
    filtered = JudgeFilter(answers="math").apply(resps, DOCS)
    assert all(a is b for given, kept in zip(resps, filtered, strict=True) for a, b in zip(given, kept, strict=True))


def test_requests_that_only_even_out_the_work_of_processes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_sae.judge.client.get_judge", lambda: None)
    assert JudgeFilter().apply([["a", "b"], ["c", "d", "c", "d"]], DOCS) == [["a", "b"], ["c", "d"]]


def test_undecided_asks_only_what_the_checker_cannot_decide(judge: Callable[[str], ScriptedJudge]) -> None:
    scripted = judge("undecided")
    resps = [
        [r"\boxed{12}", r"\boxed{right dozen}", "no answer", r"\boxed{13}"],
        [r"\boxed{Evelyn}", r"\boxed{wrong girl}", r"\boxed{someone}", Completion(r"\boxed{right girl}", 5, False)],
    ]
    filtered = JudgeFilter(answers="math").apply(resps, DOCS)
    assert [(q.problem, q.expected, q.answer) for q in scripted.asked] == [
        ("How many?", "12", "right dozen"),
        ("Who?", r"\text{Evelyn}", "wrong girl"),
        ("Who?", r"\text{Evelyn}", "someone"),
        ("Who?", r"\text{Evelyn}", "right girl"),
    ]
    assert verdicts(filtered) == [[None, True, None, None], [None, False, None, True]]
    assert filtered == resps and filtered[1][3].completion_tokens == 5


def test_all_asks_everything_but_whole_numbers(judge: Callable[[str], ScriptedJudge]) -> None:
    scripted = judge("all")
    cut_off, long = Completion("so we", 8, True), "x" * 5000 + " I am right"
    resps = [[r"\boxed{013}", r"\boxed{12.0}", "", cut_off, long], [r"\boxed{Evelyn}", r"\boxed{7}", "", "", ""]]
    filtered = JudgeFilter(answers="math").apply(resps, DOCS)
    assert [q.answer for q in scripted.asked] == ["12.0", long[-1000:], "Evelyn", "7"]
    assert verdicts(filtered) == [[None, None, None, None, True], [None] * 5]


def test_a_question_of_gpqa_comes_with_its_choices(judge: Callable[[str], ScriptedJudge]) -> None:
    scripted = judge("undecided")
    doc = order_gpqa(GPQA_ROWS[0])
    JudgeFilter(answers="letter").apply([["Answer: A", "Answer: the right one"]], [doc])
    (question,) = scripted.asked
    assert question.problem.startswith("Which one?\n\nA) ") and question.problem.count("\n") == 5
    assert question.expected == f"{doc['answer']}) this" and question.answer == "the right one"


MATH_ROWS = [{"problem": p, "solution": "…", "answer": a} for p, a in (("2 − 1.5?", r"\frac{1}{2}"), ("Find n.", "73"))]
GPQA_ROWS = TASK_DATA["openai_gpqa_diamond"]


def evaluate(
    task: str, rows: list[dict[str, str]], texts: list[str], folder: Path
) -> tuple[dict[str, Any], list[dict]]:
    """Metrics and samples of a task of ours, with its data from a local file and completions from a list."""
    register_filters()
    name = write_local_task(task, folder, rows)
    manager = TaskManager(include_path=[str(TASKS_DIR), str(folder)], include_defaults=False)
    run = lm_eval.simple_evaluate(model=Scripted(texts), tasks=[name], task_manager=manager, bootstrap_iters=0)
    metrics = {key.removesuffix(",none"): value for key, value in run["results"][name].items()}
    return metrics, run["samples"][name]


LETTER = order_gpqa(GPQA_ROWS[0])["answer"]
OTHER_LETTER = "B" if LETTER == "A" else "A"


@pytest.mark.parametrize(
    ("task", "row", "answers"),  # with exact_match, exact_match_string, undecided
    [
        ("math-500", MATH_ROWS[0], {r"\boxed{0.5}": (1, 0, 0), r"\boxed{2}": (0, 0, 0), r"\boxed{?}": (0, 0, 1)}),
        ("aime2024_nofigures", MATH_ROWS[1], {r"\boxed{073}": (1, 1, 0), r"\boxed{730}": (0, 0, 0), "": (0, 0, 0)}),
        ("openai_gpqa_diamond", GPQA_ROWS[0], {
            f"Answer: {LETTER}": (1, 1, 0), f"Answer: {OTHER_LETTER}": (0, 0, 0), "I cannot say": (0, 0, 1),
        }),
    ],
)  # fmt: skip
def test_a_task_scores_right_wrong_and_undecided_answers(
    task: str, row: dict[str, str], answers: dict[str, tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr("lm_eval_sae.judge.client.get_judge", lambda: None)
    _, samples = evaluate(task, [row] * len(answers), list(answers), tmp_path)
    got = {s["doc_id"]: tuple(s[m] for m in ("exact_match", "exact_match_string", "undecided")) for s in samples}
    assert [got[i] for i in range(len(answers))] == list(answers.values())


def test_a_judge_behind_a_server(server: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"problem": f"{n} eggs?", "solution": "…", "answer": "12"} for n in ("12", "A dozen", "Ten")]
    texts = [text for text in (r"\boxed{12}", r"\boxed{a dozen}", r"\boxed{ten of them}") for _ in range(4)]
    for name, value in {"PROCESSOR": "m", "PROCESSOR_BASE_URL": server.base_url, "OPENROUTER_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    metrics, _ = evaluate("math-500_self_consistency", rows, texts, tmp_path)
    report = get_judge().report()
    # Equal questions once.
    assert sorted(server.asked()) == [("A dozen eggs?", "12", "a dozen"), ("Ten eggs?", "12", "ten of them")]
    assert metrics["exact_match"] == metrics["maj@4"] == pytest.approx(2 / 3) and metrics["undecided"] == 0
    assert (report["questions"], report["asked"], report["right"], report["wrong"]) == (8, 2, 4, 4)


@pytest.mark.parametrize(
    ("task", "rows", "right"),
    [
        ("math-500_self_consistency", MATH_ROWS, [r"\boxed{0.5}", r"\boxed{73}"]),
        ("aime2024_nofigures_self_consistency", MATH_ROWS[1:], [r"\boxed{073}"]),
        ("openai_gpqa_diamond_self_consistency", GPQA_ROWS, ["Answer: " + order_gpqa(GPQA_ROWS[0])["answer"]]),
    ],
)
def test_self_consistency_keeps_every_repeat(
    task: str, rows: list[dict[str, str]], right: list[str], benchmark_facts: dict[str, Any], tmp_path: Path
) -> None:
    n = benchmark_facts["self_consistency_repeats"][task]
    texts = [text for answer in right for text in [answer, *[f"none {i}" for i in range(n - 1)]]]
    metrics, samples = evaluate(task, rows, texts, tmp_path)
    assert metrics["repeats"] == n and len(samples) == len(rows)
    for sample, answer in zip(samples, right, strict=True):
        assert sample["resps"] == [[answer, *[f"none {i}" for i in range(n - 1)]]]
        assert [row["exact_match"] for row in sample["repeats"]] == [1] + [0] * (n - 1)
    powers = [2**i for i in range(n.bit_length())]
    assert {name for name in metrics if name.startswith(("cov@", "maj@"))} >= {
        f"{m}@{k}" for m in ("cov", "maj") for k in powers
    }
    assert not any(name.endswith(f"@{2 * n}") for name in metrics)
    for k in powers:  # one of n is right, and the only one that votes
        assert metrics[f"cov@{k}"] == metrics[f"maj@{k}"] == pytest.approx(k / n)
    assert metrics["exact_match"] == pytest.approx(1 / n)
