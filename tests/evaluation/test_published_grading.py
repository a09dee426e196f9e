"""`exact_match_published`: the published code's grading, case by case as its source decides, and through the tasks."""

import itertools
import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from engines import Scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager
from planted_runs import TASK, setting, write_run
from report.rows import summarize
from report.runs import read_runs

from lm_eval_sae import TASKS_DIR, register_filters
from lm_eval_sae.grading.published import PUBLISHED_RULES, last_box, published_metrics
from lm_eval_sae.grading.scoring import order_gpqa


@pytest.mark.parametrize(
    ("completion", "answer", "extracted", "right"),
    [
        (r"so $\boxed{\frac12}$", "0.5", r"\frac12", 0),  # texts are compared
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", r"\frac{1}{2}", 1),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", r"\dfrac{1}{2}", 0),
        (r"\boxed{073}", "73", "73", 1),  # whole numbers lose their zeros
        (r"\boxed{73}", "073", "73", 1),
        (r"\boxed{073}", "x", "073", 0),  # only if both are whole
        (r"\boxed{1,000}", "1000", "1,000", 0),
        (r"\boxed{ 73 }", "73", " 73 ", 0),  # and nothing is stripped
        (r"\boxed{-5}", "-5", "-5", 1),
        (r"first \boxed{4}, no: \boxed{5}, as I said", "5", "5", 1),  # the last box, text behind it or not
        (r"\boxed{5}. Answer: 6", "5", "5", 1),  # a box comes before "Answer:"
        (r"\boxed{5} and \boxed{6", "5", "0", 0),  # a last box that is not closed hides those before
        (r"\boxed{5} and \boxed", "5", "0", 0),
        (r"it is $\boxed 5$ or $\boxed{6}$", "5", "5", 1),  # with a space it comes before any other
        (r"$\boxed 4$, no: $\boxed 5$", "5", "5", 1),
        (r"it is $\boxed 5 = x$", "5", "5 = x", 0),
        ("Answer: 5", "5", "5", 1),
        ("answer : 5", "5", "5", 1),
        ("**Answer**: 5", "5", "0", 0),
        ("Answer: 5.", "5", "5.", 0),
        ("Answer: 5\n", "5", "5\n", 0),  # all that follows
        ("Answer: 4, no. Answer: 5", "5", "4, no. Answer: 5", 0),  # the first of two
        ("it is five", "5", "0", 0),  # no answer is 0,
        ("I cannot say", "0", "0", 1),  # which may be right
        ("", "0", "0", 1),
        (r"\boxed{}", "0", "", 0),
        # These end the published code: the box, or the digit, is none.
        (r"\fbox{5}. Answer: 5", "5", "5", 1),
        (r"\boxed5 of {5}", "5", "0", 0),
        (r"\boxed{²}", "2", "²", 0),
        (r"\boxed{" + "1" * 5000 + "}", "2", "1" * 5000, 0),
    ],
)
def test_a_mathematical_answer_as_published(completion: str, answer: str, extracted: str, right: int) -> None:
    for rule in ("aime", "math"):  # alike, if there is no solution to read
        scored = published_metrics(PUBLISHED_RULES[rule], {"answer": answer}, [completion])
        assert scored == {"exact_match_published": right, "extracted_answers": [extracted]}


def test_the_expected_answer_of_math_500_is_the_last_box_of_its_solution() -> None:
    doc = {"answer": "7", "solution": r"From $\boxed{3}$ we get $\boxed{04}$, thus 7."}
    for completion, right in ((r"\boxed{4}", 1), (r"\boxed{7}", 0)):
        assert published_metrics(PUBLISHED_RULES["math"], doc, [completion])["exact_match_published"] == right
        assert published_metrics(PUBLISHED_RULES["aime"], doc, [completion])["exact_match_published"] == 1 - right


@pytest.mark.parametrize(
    ("completion", "extracted", "right"),  # of a question whose answer is C
    [
        ("Answer: C", "C", 1),
        ("answer: c", "C", 1),
        (r"\boxed{C}", "C", 1),
        ("C", "C", 1),  # the whole completion
        ("Answer: B", "B", 0),
        (r"\boxed{B} Answer: C", "B", 0),
        ("Answer: C.", "None", 0),
        ("Answer: C\n", "None", 0),
        ("Answer: (C)", "None", 0),
        ("**Answer:** C", "None", 0),  # "** C" follows
        (r"\boxed{\text{C}}", "None", 0),
        ("The last line is 'Answer: $LETTER'.\n\nAnswer: C", "None", 0),  # all that follows the first
        ("The answer is C.", "None", 0),
        ("I cannot say", "None", 0),
        ("", "None", 0),
    ],
)
def test_a_letter_as_published(completion: str, extracted: str, right: int) -> None:
    scored = published_metrics(PUBLISHED_RULES["gpqa"], {"answer": "C"}, [completion])
    assert scored == {"exact_match_published": right, "extracted_answers": [extracted]}


@settings(max_examples=200, deadline=None)
@given(st.text("{}x$ ", max_size=12))
def test_the_content_of_a_box_ends_where_its_braces_are_even(text: str) -> None:
    even = [n for n in range(1, len(text) + 2) if ("{" + text)[:n].count("{") == ("{" + text)[:n].count("}")]
    expected = text[: even[0] - 2] if even else None
    assert last_box(r"\boxed{1} so \boxed{" + text) == expected


@pytest.mark.parametrize("answers", [*itertools.product("AB", repeat=4), ("B", "A", "A", "C", "A", "A")])
def test_repeats_count_from_the_first_on(answers: tuple[str, ...]) -> None:
    repeats = [f"Answer: {letter}" for letter in answers]
    scored = published_metrics(PUBLISHED_RULES["gpqa"], {"answer": "A"}, [repeats])
    expected: dict[str, Any] = {
        "exact_match_published": int(answers[0] == "A"),
        "extracted_answers": list(answers),
        "exact_matches": [int(letter == "A") for letter in answers],
    }
    for k in (2, 4):
        drawn = answers[:k]
        votes = {letter: drawn.count(letter) for letter in drawn}
        winners = [letter for letter in drawn if votes[letter] == max(votes.values())]
        expected[f"cov@{k}_published"] = int("A" in drawn)
        expected[f"maj@{k}_published"] = int(winners[0] == "A")
    assert scored == expected


def test_no_answer_has_a_vote() -> None:
    doc, repeats = {"answer": "12"}, [r"\boxed{12}", "nothing", "nothing", r"\boxed{12}"]
    scored = published_metrics(PUBLISHED_RULES["aime"], doc, [repeats])
    assert scored["maj@4_published"] == 1
    scored = published_metrics(PUBLISHED_RULES["aime"], doc, [["nothing", *repeats[:3]]])
    assert (scored["maj@4_published"], scored["cov@4_published"], scored["exact_match_published"]) == (0, 1, 0)


# ------------------------------------------------------------------------------------------------------------ the tasks


PROBLEM = {"problem": "2 − 1.5?", "solution": r"It is $\boxed{0.5}$.", "answer": r"\frac12"}
GPQA = {"Question": "Which?", "Correct Answer": "this", **{f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)}}
ANSWERS = [r"\boxed{\frac12}", r"\boxed{0.5}"]
LETTER = order_gpqa(GPQA)["answer"]


@pytest.mark.parametrize(
    ("task", "split", "row", "texts", "extracted", "gold"),
    [
        ("aime2024_nofigures", "train", PROBLEM, ANSWERS, [r"\frac12", "0.5"], r"\frac12"),
        ("math-500", "test", PROBLEM, ANSWERS, [r"\frac12", "0.5"], "0.5"),
        ("openai_gpqa_diamond", "train", GPQA, [f"Answer: {LETTER}.", f"Answer: {LETTER}"], ["None", LETTER], LETTER),
    ],
)
@pytest.mark.parametrize("repeats", [1, 4])
def test_every_task_reports_and_logs_it(
    task: str, split: str, row: dict[str, str], texts: list[str], extracted: list[str], gold: str, repeats: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    register_filters()
    (tmp_path / "data.json").write_text(json.dumps(row) + "\n")
    name = f"{task}_self_consistency" if repeats > 1 else task
    (tmp_path / "local.yaml").write_text(
        f"include: {TASKS_DIR / name}.yaml\ntask: local\ntag: []\nrepeats: {repeats}\ndataset_path: json\n"
        f"dataset_name: null\ndataset_kwargs: {{data_files: {{{split}: {tmp_path / 'data.json'}}}}}\n"
    )
    manager = TaskManager(include_path=[str(TASKS_DIR), str(tmp_path)], include_defaults=False)
    model = Scripted((texts * 2)[:repeats])
    run = lm_eval.simple_evaluate(model=model, tasks=["local"], task_manager=manager, bootstrap_iters=0)
    metrics = {key.removesuffix(",none"): value for key, value in run["results"]["local"].items()}
    (sample,) = run["samples"]["local"]
    assert metrics["exact_match_published"] == sample["exact_match_published"] == int(extracted[0] == gold)
    assert sample["extracted_answers"] == (extracted * 2)[:repeats] and metrics["extracted_answers"] == repeats
    if repeats > 1:
        matches = [int(answer == gold) for answer in extracted * 2]
        assert sample["exact_matches"] == matches and metrics["exact_matches"] == 4
        assert metrics["cov@2_published"] == metrics["cov@4_published"] == 1
        assert metrics["maj@2_published"] == metrics["maj@4_published"] == matches[0]
    else:
        assert "exact_matches" not in sample
    if task != "openai_gpqa_diamond":
        assert metrics["exact_match"] == 1, "for ours both mean the same"


def test_tags_name_the_tasks_of_a_kind() -> None:
    register_filters()
    manager = TaskManager(include_path=[str(TASKS_DIR)], include_defaults=False)
    tasks = ("aime2024_nofigures", "math-500", "openai_gpqa_diamond")
    tagged = {tag: {name for name in manager.all_subtasks if tag in manager.task_index[name].tags} for tag in (
        "math_word_problems", "self_consistency", "gpqa",
    )}  # fmt: skip
    assert set(manager.all_tags) == set(tagged)
    assert tagged == {
        "math_word_problems": {*tasks[:2], *(f"{task}_self_consistency" for task in tasks[:2])},
        "self_consistency": {f"{task}_self_consistency" for task in tasks},
        "gpqa": {tasks[2], f"{tasks[2]}_self_consistency"},
    }


def test_the_report_has_it_in_its_csv(tmp_path: Path) -> None:
    published = setting("results", TASK, "exact_match_published,none", value=0.25)
    run = write_run(tmp_path / "run", [[1], [0]], edit=published)
    (samples,) = run.glob("samples_*.jsonl")
    logged = {"exact_match_published": 1, "extracted_answers": ["12"]}
    samples.write_text("".join(json.dumps(json.loads(line) | logged) + "\n" for line in samples.open()))
    (row,) = summarize(read_runs([run]), n_resamples=10)
    assert (row.record["exact_match_published"], row.record["accuracy"]) == (0.25, 0.5)
