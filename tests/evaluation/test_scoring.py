"""Prompts to the letter, and the metrics of scripted completions."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_sae.grading.completion import Completion
from lm_eval_sae.grading.scoring import (
    clean_choice,
    gpqa_prompt,
    math_prompt,
    order_gpqa,
    process_gpqa,
    process_math,
    process_short_math,
    repeats_per_question,
)


def test_math_prompt_to_the_letter(benchmark_facts: dict[str, Any]) -> None:
    problem = "Find $\\frac{1}{2}$ of {4}."
    expected = benchmark_facts["math"].replace("{problem}", problem)
    assert "\\boxed{}.\nProblem: " in expected
    assert math_prompt({"problem": problem}) == expected


def test_gpqa_prompt_to_the_letter(benchmark_facts: dict[str, Any]) -> None:
    expected = benchmark_facts["gpqa"].replace("{Question}", "Which {one}?")
    for i, choice in enumerate("wxyz", start=1):
        expected = expected.replace(f"{{choice{i}}}", choice)
    assert gpqa_prompt({"Question": "Which {one}?", "choices": list("wxyz")}) == expected


@pytest.mark.parametrize(
    ("completion", "answer", "metrics"),  # exact_match, exact_match_string, undecided
    [
        (r"so $\boxed{0.5}$", r"\frac{1}{2}", (1, 0, 0)),
        (r"so $\boxed{\frac{1}{2}}$", r"\frac{1}{2}", (1, 1, 0)),
        (r"\boxed{073}", "73", (1, 1, 0)),
        (r"\boxed{72}", "73", (0, 0, 0)),
        (r"first \boxed{5}, no: \boxed{4}", "5", (0, 0, 0)),
        (r"\boxed{12\text{ cm}}", "12", (1, 0, 0)),
        ("**Answer:** 12.", "12", (1, 1, 0)),
        (r"\boxed{the twelfth}", "12", (0, 0, 1)),
        (r"\boxed{\frac{1}{}", "12", (0, 0, 0)),
        ("we get 12 and then", "12", (0, 0, 0)),
        ("", "12", (0, 0, 0)),
    ],
)
def test_metrics_of_a_mathematical_answer(completion: str, answer: str, metrics: tuple[int, int, int]) -> None:
    exact_match, exact_match_string, undecided = metrics
    assert process_math({"answer": answer}, [completion]) == {
        "exact_match": exact_match,
        "exact_match_string": exact_match_string,
        "undecided": undecided,
    }


@pytest.mark.parametrize(
    ("completion", "metrics"),  # of a question whose answer is C
    [
        ("Answer: C", (1, 1, 0)),
        ("Answer: C) 10^-4 eV", (1, 0, 0)),
        ("Answer: B", (0, 0, 0)),
        (r"\boxed{10^{-4}}", (0, 0, 1)),
        ("I cannot say", (0, 0, 1)),
        ("<think>\nAnswer: B\n</think>\nThe correct answer is **C**.", (1, 0, 0)),
        ("Answer: C\n</think>\nThe answer is either C or D.", (0, 1, 1)),
        (" \n", (0, 0, 0)),
    ],
)
def test_metrics_of_a_letter(completion: str, metrics: tuple[int, int, int]) -> None:
    scored = process_gpqa({"answer": "C"}, [completion])
    assert (scored["exact_match"], scored["exact_match_string"], scored["undecided"]) == metrics


def test_without_a_letter_only_what_ended_by_itself_is_undecided() -> None:
    for text, truncated, undecided in [
        ("It is the third.", None, 1),
        ("It is the third.", False, 1),
        ("It is the third.", True, 0),
        ("the third\n\nC", True, 0),  # may be the start of a word
        ("", False, 0),
    ]:
        scored = process_gpqa({"answer": "C"}, [Completion(text, 5, truncated)])
        assert (scored["exact_match"], scored["undecided"]) == (0, undecided), (text, truncated)


@pytest.mark.parametrize(
    ("text", "metrics"),  # exact_match, undecided where D is right
    [
        ("Answer: D-glucose", (1, 0)),
        ("The answer is B cells.", (0, 0)),
        ("Answer: D 10 eV", (0, 1)),
        ("Answer: C 10 eV", (0, 0)),
        (r"\boxed{10 eV}", (0, 0)),
        ("Answer: A photon", (0, 1)),  # A or B
    ],
)
def test_the_text_of_a_choice_is_its_letter(text: str, metrics: tuple[int, int]) -> None:
    doc = {"answer": "D", "choices": ["photon", "A photon", "10 eV", "D-glucose"]}
    if "cells" in text:
        doc["choices"][0] = "B cells"
    scored = process_gpqa(doc, [text])
    assert (scored["exact_match"], scored["undecided"]) == metrics


def test_a_letter_and_the_text_of_its_choice_vote_together() -> None:
    doc = {"answer": "D", "choices": ["one", "two", "10 eV", "four"]}
    scored = process_gpqa(doc, [["Answer: D", r"\boxed{10 eV}", "Answer: C", "nothing that I know"]])
    assert scored["undecided"] == 0.25
    assert scored["maj@4"] == 0, "C has two votes, D one, and what gives no answer has none"


def test_a_small_models_last_number_counts() -> None:
    scored = process_short_math({"answer": "1200"}, ["9 + 3 = 12, so 1,200, he has."])
    assert scored == {"exact_match": 1, "exact_match_string": 1, "undecided": 0}
    assert process_short_math({"answer": "12"}, ["9 + 3 = 12, or 13."])["exact_match"] == 0


def test_the_judges_verdict_comes_before_the_checkers() -> None:
    for text, judged, expected in [
        (r"\boxed{the twelfth}", True, (1, 0)),
        (r"\boxed{the twelfth}", False, (0, 0)),
        (r"\boxed{the twelfth}", None, (0, 1)),
        (r"\boxed{12}", False, (0, 0)),
        ("twelve, then", True, (1, 0)),
    ]:
        scored = process_math({"answer": "12"}, [Completion(text, judged=judged)])
        assert (scored["exact_match"], scored["undecided"]) == expected


def test_metrics_of_repeats() -> None:
    texts = [r"\boxed{0.5}", r"\boxed{\frac12}", r"\boxed{7}", r"\boxed{7.0}", r"\boxed{?}", "nothing"]
    repeats = [Completion(text, 10 * (i + 1), i == 5, 5 * (i + 1)) for i, text in enumerate(texts)]
    scored = process_math({"answer": "0.5"}, [repeats])
    rows = scored.pop("repeats")
    assert rows == [process_math({"answer": "0.5"}, [completion]) for completion in repeats]
    assert repeats_per_question([rows, rows]) == 6
    assert scored == {
        "exact_match": pytest.approx(2 / 6),
        "exact_match_string": pytest.approx(1 / 6),
        "undecided": pytest.approx(1 / 6),
        "completion_tokens": 35,
        "truncated": pytest.approx(1 / 6),
        "reasoning_tokens": 17.5,
        "cov@1": pytest.approx(2 / 6),
        "cov@2": pytest.approx(1 - 6 / 15),  # C(4, 2) of C(6, 2) pairs hold no right one
        "cov@4": pytest.approx(1 - 1 / 15),
        "maj@1": pytest.approx(2 / 6),
        # Pairs: 2 right (1); right and 7 (4, half each), right and ? (2, half each), right and nothing (2).
        "maj@2": pytest.approx((1 + 4 / 2 + 2 / 2 + 2) / 15),
        # Fours: 2 right, 2 sevens (1, half); 2 right, 1 or 0 sevens (2 + 2 + 1); 1 right, 1 seven, ?, nothing (4,
        # a third each); 1 right and 2 sevens (4, lost).
        "maj@4": pytest.approx((1 / 2 + 5 + 4 / 3) / 15),
    }


def test_a_repeat_that_the_judge_holds_right_votes_with_the_right_ones() -> None:
    repeats = [Completion(r"\boxed{the half}", judged=True), r"\boxed{0.5}", r"\boxed{7}", r"\boxed{8}"]
    scored = process_math({"answer": "0.5"}, [repeats])
    assert scored["exact_match"] == 0.5 and scored["maj@4"] == 1


PIECES = st.sampled_from(
    [
        r"\boxed{", "}", "{", "Answer: ", "answer is ", "**", "$", r"\frac", r"\text{", r"\sqrt", "^", "_", "(", ")",
        "[", r"\left", r"\infty", r"\sum", r"\int", r"\\", "!", "9", "x", "C", ",", "=", r"\le", r"\%", "\n", " ",
        "🙂", "\x00", "\ud83d",
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_whatever_a_model_writes_is_scored(text: str) -> None:
    for completion in (text, f"\\boxed{{{text}}}"):
        for process, answer in ((process_math, r"\frac{1}{2}"), (process_short_math, "12"), (process_gpqa, "C")):
            scored = process({"answer": answer}, [completion])
            assert scored["exact_match"] + scored["undecided"] <= 1
            if scored["exact_match_string"]:
                assert scored["exact_match"], "what is equal as text is right"


def gpqa_row(i: int) -> dict[str, str]:
    wrong = {f"Incorrect Answer {k}": f"wrong {k} of {i}" for k in (1, 2, 3)}
    return {"Question": f"Question {i}?", "Correct Answer": f"right {i}", **wrong}


def test_gpqa_order_depends_on_the_question_alone() -> None:
    rows = [order_gpqa(gpqa_row(i)) for i in range(200)]
    random.seed(7)
    assert [order_gpqa(gpqa_row(i)) for i in reversed(range(200))] == rows[::-1]
    for i, row in enumerate(rows):
        assert row["choices"]["ABCD".index(row["answer"])] == f"right {i}"
        assert process_gpqa(row, [f"Answer: {row['answer']}"])["exact_match"] == 1
    # Fixed for good: an order that moved would make old results incomparable.
    assert "".join(row["answer"] for row in rows[:12]) == "DABAABBCACDD"
    counts = {letter: sum(row["answer"] == letter for row in rows) for letter in "ABCD"}
    assert min(counts.values()) > 30, "each letter is right about a quarter of the time"


def test_gpqa_choices_are_cleaned() -> None:
    assert clean_choice(" 10 [title] eV [sic] x ") == "10. eV x"
