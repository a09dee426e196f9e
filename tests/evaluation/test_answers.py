"""What a completion answers, and whether two answers mean the same."""

import threading
import time

import pytest

from lm_eval_sae import answers
from lm_eval_sae.answers import (
    boxes,
    check,
    final_answer,
    is_number,
    last_boxed,
    last_letter,
    last_number,
    strings_agree,
)


@pytest.mark.parametrize(
    ("answer", "expected", "agree"),
    [
        # numbers
        ("0.5", r"\frac{1}{2}", True),
        (r"\frac12", "0.5", True),
        (r"\dfrac{1}{2}", "0.5", True),
        ("3/56", r"\frac{3}{56}", True),
        (r"1\frac{1}{2}", "1.5", True),
        ("073", "73", True),
        ("73", "073", True),
        ("72", "73", False),
        ("10080", r"10,\!080", True),
        ("1{,}000", "1000", True),
        ("7.30", "7.3", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("3.14", r"\pi", False),
        ("0.333", r"\frac{1}{3}", False),
        # units, degrees, percent, dollars, and what stands around an answer
        (r"12\text{ cm}", "12", True),
        ("12", r"12\text{ cm}^2", True),
        (r"13\text{ cm}", "12", False),
        ("12 apples", "12", True),
        (r"90^\circ", "90", True),
        (r"50\%", "50", True),
        ("0.5", r"50\%", True),
        (r"\$18.90", "18.9", True),
        ("**12**.", "12", True),
        (r"\(12\)", "12", True),
        ("$12$.", "12", True),
        # sets, tuples, intervals
        (r"\{3, 1, 2\}", r"\{1,2,3\}", True),
        ("2, 1", "1,2", True),
        ("1, 3", "1,2", False),
        (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \tfrac{\pi}{2})", True),
        (r"(\tfrac{\pi}{2}, 3)", r"\left( 3, \frac{\pi}{2} \right)", False),
        ("(1,2)", "[1,2]", False),
        (r"1 \le x \le 2", "[1,2]", True),
        (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty) \cup (-\infty, 1)", True),
        # formulas
        ("-q + p", "p - q", True),
        ("q - p", "p - q", False),
        ("x = 5", "5", True),
        ("y = 2x+1", "y = 1+2x", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1\\2 \end{pmatrix}", True),
        # words
        (r"\text{Evelyn}", "Evelyn", True),
        ("EVELYN", r"\text{Evelyn}", True),
        ("June 20", r"\text{June 20}", True),
        (r"\text{(C)}", "C", True),
        ("B", r"\text{(C)}", False),
        ("silent", r"\text{listen}", None),  # the same letters: as products of variables they would be equal
        ("odd", r"\text{even}", None),
        ("twelve", "12", None),
        ("no solution", r"\text{none}", None),
        # what cannot be read
        ("??", "5", None),
        ("x^2-1)(", "x^2-1", None),
        (r"\frac{1}{", "5", None),
        ("9" * 2000, "5", None),
        ("{" * 300, "5", None),
        ("🙂\x00\ud83d", "5", None),
        ("", "5", None),
    ],
)
def test_two_answers_mean_the_same(answer: str, expected: str, agree: bool | None) -> None:
    assert check(answer, expected) is agree


def test_what_takes_too_long_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "CHECK_SECONDS", 1)
    check.cache_clear()
    assert check("0.5", "5") is False  # math-verify has been imported
    start = time.monotonic()
    assert check("(10^8)!", "5") is None
    assert time.monotonic() - start < 4
    check.cache_clear()


def test_outside_the_main_thread_answers_are_checked_too() -> None:
    check.cache_clear()
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(check("0.25", r"\frac14")))
    thread.start()
    thread.join()
    assert verdicts == [True]


@pytest.mark.parametrize(
    ("answer", "expected", "agree"),
    [
        ("073", "73", True),
        ("1,234", "1234", True),
        ("-05", "-5", True),
        ("0", "000", True),
        ("12,34", "1234", False),
        ("0.5", r"\frac{1}{2}", False),
        (r"\frac{1}{2}", r"\frac{1}{2}", True),
        ("7.0", "7", False),
        ("(C)", "C", False),
    ],
)
def test_plain_strings_agree(answer: str, expected: str, agree: bool) -> None:
    assert strings_agree(answer, expected) is agree


def test_whole_numbers_in_digits() -> None:
    assert all(is_number(text) for text in ("0", "073", "-5", "1,234,567", " 12 "))
    assert not any(is_number(text) for text in ("", "0.5", "12 cm", "1,23", "x", r"\frac12", "²"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{\frac{a}{b}} end", r"\frac{a}{b}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"put it within \boxed{}.", None),
        (r"\boxed{3}, as asked within \boxed{}", "3"),
        (r"\boxed{3}, or \boxed{4", "3"),
        ("none", None),
    ],
)
def test_the_last_complete_box_counts(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Hence the answer: 0.5", "0.5"),
        ("**Answer:** 12.", "12"),
        ("Answer: 3\nNo.\nFinal Answer: $4$", "4"),
        ("Answer:\n7", "7"),
        (r"Answer: 3, so \boxed{4}. Answer: 5", "4"),
        ("we get 12 and then", None),
        ("Answer: **", None),
        ("", None),
    ],
)
def test_a_box_else_the_last_answer_line_counts(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_a_last_number() -> None:
    assert last_number("9 + 3 = 12, so 1,200, he has.") == "1,200"
    assert last_number(r"\boxed{3} of 4") == "3"
    assert last_number("no idea") is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("Answer:B", "B"),
        ("ANSWER: D", "D"),
        ("Answer: B.", "B"),
        ("Answer: (C)", "C"),
        ("Answer: [C]", "C"),
        ("Answer: $C$", "C"),
        (r"Answer: \(C\)", "C"),
        ("Answer: 'C'", "C"),
        ("Answer - C", "C"),
        ("Answer:\nC", "C"),
        ("Answer: C) 10^-4 eV", "C"),
        ("Answer: C. The energy is", "C"),
        ("**Answer: D**", "D"),
        ("**Answer:** (B)", "B"),
        ("Answer: **B) ten**", "B"),
        ("### Answer: B", "B"),
        ("answer: c", "C"),
        ("Answer: (d).", "D"),
        ("The answer is C.", "C"),
        ("The answer would be **D**.", "D"),
        ("The answer is therefore B", "B"),
        ("The correct answer is option C", "C"),
        ("**Final Answer:** The correct option is **C**", "C"),
        ("Answer: Choice D", "D"),
        ("Therefore option C is correct.", "C"),
        ("Choice **(C)** is the best answer.", "C"),
        ("Answer：C", "C"),
        (r"Answer: $\boxed{A}$", "A"),
        (r"Answer: $\mathbf{D}$", "D"),
        (r"so $\boxed{\text{B}}$", "B"),
        (r"\boxed{C}", "C"),
        (r"\boxed{\textbf{(D)}}", "D"),
        (r"\boxed{C) 10^{-4}}", "C"),
        ("**Final Answer**\n\nThe final answer is: $\\boxed{C}$", "C"),
        # the last one counts
        ("Answer: A is wrong.\nAnswer: $C$", "C"),
        (r"Answer: A, no: \boxed{B}", "B"),
        (r"\boxed{B}, no. Answer: A", "A"),
        # not one of the choices
        ("Answer: B, no. Answer: E", "E"),
        # no letter
        ("answer: Because", None),
        ("I found the answer. A photon has", None),
        ("the answer is a bit odd", None),
        ("option A is wrong", None),
        ("option A is not correct", None),
        ("Answer: $LETTER", None),
        ("the answer is the third", None),
        (r"\boxed{10^{-4}}", None),
        (r"\boxed{C_6H_6}", None),
        (r"\boxed{D + 1}", None),
        ("I cannot say", None),
        ("", None),
    ],
)
def test_the_letter_stated_last(text: str, letter: str | None) -> None:
    assert last_letter(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 20_000,
        "{" * 50_000 + "}" * 50_000,
        "answer" + " " * 50_000,
        "answer: " + "**" * 50_000,
        "the answer is " * 10_000,
        "answer: the " + "option " * 20_000,
        "Answer: " + r"\text{" * 20_000,
    ],
)
def test_a_degenerate_completion_takes_no_time(text: str) -> None:
    start = time.monotonic()
    last_letter(text), final_answer(text), boxes(text), last_number(text)
    assert time.monotonic() - start < 2
