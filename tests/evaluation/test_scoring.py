"""Prompts to the letter, and answers checked for what they mean."""

import random

import pytest

from lm_eval_sae.completion import Completion
from lm_eval_sae.scoring import (
    clean_choice,
    gpqa_prompt,
    last_boxed,
    last_letter,
    math_prompt,
    order_gpqa,
    process_gpqa,
    process_math,
    process_short_math,
)


def test_math_prompt_to_the_letter() -> None:
    assert math_prompt({"problem": "Find $\\frac{1}{2}$ of {4}."}) == (
        "Please reason step by step, and put your final answer within \\boxed{}.\n"
        "Problem: Find $\\frac{1}{2}$ of {4}.\nAnswer:"
    )


def test_gpqa_prompt_to_the_letter() -> None:
    doc = {"Question": "Which {one}?", "choices": ["a", "b", "c", "d"]}
    assert gpqa_prompt(doc) == (
        "Answer the following multiple choice question. The last line of your response should be of the following "
        "format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before "
        "answering.\n\nWhich {one}?\n\nA) a\nB) b\nC) c\nD) d"
    )


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        (r"so $\boxed{0.5}$", r"\frac{1}{2}", True),
        (r"so \boxed{\frac12}", "0.5", True),
        (r"so \boxed{\dfrac{1}{2}}.", "0.5", True),
        (r"\boxed{073}", "73", True),
        (r"\boxed{73}", "073", True),
        (r"\boxed{72}", "73", False),
        (r"first \boxed{4}, no: \boxed{5}", "5", True),
        (r"first \boxed{5}, no: \boxed{4}", "5", False),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"\boxed{(\tfrac{\pi}{2}, 3)}", r"\left( 3, \frac{\pi}{2} \right)", False),
        (r"\boxed{\{3, 1, 2\}}", r"\{1,2,3\}", True),
        (r"\boxed{q - p}", "p - q", False),
        (r"\boxed{-q + p}", "p - q", True),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", True),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", True),
        ("Hence the answer: 0.5", r"\frac{1}{2}", True),
        ("**Answer:** 12.", "12", True),
        (r"it is \boxed{12", "12", False),
        ("we get 12 and then", "12", False),
        ("", "12", False),
    ],
)
def test_math_answers(completion: str, answer: str, right: bool) -> None:
    assert process_math({"answer": answer}, [completion]) == {"exact_match": float(right)}


def test_a_small_models_last_number_counts() -> None:
    assert process_short_math({"answer": "1200"}, ["9 + 3 = 12, so 1,200, he has."])["exact_match"] == 1
    assert process_short_math({"answer": "12"}, ["9 + 3 = 12, or 13."])["exact_match"] == 0
    assert process_short_math({"answer": "12"}, ["no idea"])["exact_match"] == 0


def test_lengths_come_with_the_completion() -> None:
    completion = Completion(r"\boxed{1}", 7, True)
    assert process_math({"answer": "1"}, [completion]) == {
        "exact_match": 1.0,
        "completion_tokens": 7,
        "truncated": 1.0,
    }


def test_last_boxed_holds_nested_braces() -> None:
    assert last_boxed(r"\boxed{1} then \boxed{\frac{a}{b}} end") == r"\frac{a}{b}"
    assert last_boxed("none") is None


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("Answer: B", "B"),
        ("Answer: A is wrong.\nAnswer: $C$", "C"),
        ("**Answer: D**", "D"),
        ("**Answer:** (B)", "B"),
        ("The answer is C.", "C"),
        (r"Answer: $\boxed{A}$", "A"),
        (r"so $\boxed{\text{B}}$", "B"),
        ("answer: Because", None),
        ("I cannot say", None),
    ],
)
def test_gpqa_letters(completion: str, letter: str | None) -> None:
    assert last_letter(completion) == letter


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
