"""What a completion answers, and whether two answers mean the same."""

import subprocess
import sys
import threading
import time
import tracemalloc

import pytest

from lm_eval_sae.grading import answers, mathematics
from lm_eval_sae.grading.answers import check, is_number, strings_agree
from lm_eval_sae.grading.extraction import boxes, final_answer, labelled_answer, last_boxed, last_number
from lm_eval_sae.grading.letters import last_letter

# Expected answers of MATH-500 and AIME, with what models write for them.
SAME = {
    "73": ["073", "73", "**73**.", r"\(73\)", "$73$."],
    r"\frac 34": [r"\frac{3}{4}", r"\dfrac{3}{4}", "3/4", "0.75", r"\frac34"],
    r"11\sqrt2": [r"11\sqrt{2}", r"\sqrt{242}"],
    r"1\frac{4}{5}": [r"\frac{9}{5}", "1.8", "1 4/5"],
    ".0000672": ["0.0000672", r"6.72 \times 10^{-5}", "6.72e-5"],
    "58,500": ["58500", r"58,\!500", "58{,}500", r"58\,500", "58 500"],
    r"11,\! 111,\! 111,\! 100": ["11111111100", "11,111,111,100"],
    r"\$32,\!348": [r"\$32,348", "32348", r"32348\text{ dollars}", "$32348"],
    r"15\mbox{ cm}^2": [r"15 \text{ cm}^2", r"15\ \text{cm}^{2}", "15", "15 cm^2"],
    r"864 \mbox{ inches}^2": [r"864\, \text{square inches}", "864"],
    r"5.4 \text{ cents}": ["5.4", "5.4 cents", "5.40"],
    r"106^\circ": ["106", "106°", r"106^{\circ}", r"106\text{ degrees}"],
    r"\frac{270}7\text{ degrees}": [r"\frac{270}{7}^\circ", r"38\frac{4}{7}^\circ"],
    "12": [r"12\text{ apples}", r"12\text{ ways}", r"12\%", r"\text{12 dollars}"],
    "0.15": [r"15\%"],
    r"\text{Evelyn}": ["Evelyn", "EVELYN", r"\text{ evelyn }"],
    r"\text{June 20}": ["June 20", r"\text{June } 20"],
    r"\text{(B)}": ["B", "(B)", r"\text{B}", r"\textbf{(B)}"],
    "2516_8": ["2516_{8}", "2516"],
    "x=5": ["5", "x = 5"],
    "y = 2x + 3": ["2x+3", "y = 3 + 2x"],
    r"\cot x": [r"\cot(x)"],
    "6 - 5i": ["-5i+6", r"6-5\mathrm{i}"],
    "(a+5)(b+2)": ["(b+2)(a+5)"],
    "1,-2": ["-2, 1", r"\{1,-2\}", r"1 \text{ and } -2", r"x=1\text{ or }x=-2"],
    "3, 5, 7": [r"3, 5, \text{ and } 7", "7,5,3"],
    r"\{1\pm\sqrt{5},-2\}": [r"-2, 1 + \sqrt{5}, 1 - \sqrt{5}", r"\left\{ -2, 1 \pm \sqrt{5} \right\}"],
    r"\left( 3, \frac{\pi}{2} \right)": [r"(3, \tfrac{\pi}{2})", r"(r,\theta) = (3, \frac{\pi}{2})"],
    r"x \in [-2,7]": ["[-2, 7]", r"-2 \leq x \leq 7"],
    r"(-\infty, 2) \cup (3, \infty)": [r"(3,\infty) \cup (-\infty,2)", r"x \in (-\infty, 2) \cup (3, \infty)"],
    r"\emptyset": [r"\varnothing"],
    r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}": [r"\begin{bmatrix} -\frac{1}{3} \\ \frac{2}{3} \end{bmatrix}"],
}
DIFFERENT = {
    "73": ["72", "7.3", "5x", "73^2"],
    r"\frac13": ["0.333"],
    "12": [r"13\text{ cm}", "13 dollars", "13%", "1200"],
    "(1,2)": ["(2,1)", "[1,2]", r"\{1,2\}", "{1,2}", "1,3"],
    "3, 5, 7": ["357", "3, 5", "(3, 5)"],
    "2516_8": ["2517", "2517_8", "1358"],
    "p - q": ["q - p"],
    r"1 \pm \sqrt{19}": [r"1+\sqrt{19}"],
    r"\cot x": [r"\tan x"],
    "17/8": ["1 7/8"],
    "x=5,y=6": ["x=4,y=6"],
    "1 200": ["1 201"],
    r"\text{(C)}": ["B"],
    "0.15": [r"0.16", r"16\%"],
}
# What the libraries by themselves would take for right, and what they cannot read.
UNDECIDED = {
    "12": [r"12\text{ dozen}", r"\neq 12", "> 12", r"\text{not }12", "twelve", "12 apples"],
    "5": ["??", r"\frac{1}{", "9" * 2000, ""],
    "1": [r"1 \text{ hundredths}", "1 million"],
    r"5.4 \text{ cents}": [r"5.4\text{ dollars}", r"\$5.4", "$5.4"],
    r"15\text{ cm}^2": [r"15\text{ cm}^3", r"15\text{ cm}", r"15\text{ m}^2"],
    "5 cm": ["5 m"],
    r"90^\circ": [r"90\text{ radians}"],
    r"20^\circ\text{C}": [r"20^\circ\text{F}"],
    "52_8": ["52_9", "42_{10}"],
    "(1,2)": ["1,2"],
    "6:48": ["6:48 PM", "7:00"],
    r"\text{even}": ["odd", r"\text{even function}"],
    r"\text{listen}": ["silent"],  # equal as products of variables
    r"(-\infty,2)\cup(3,\infty)": [r"x < 2 \text{ or } x > 3", "x<2 and x>3"],
    "0.3": [r"0.\overline{3}"],
}


@pytest.mark.parametrize(("agree", "table"), [(True, SAME), (False, DIFFERENT), (None, UNDECIDED)])
def test_two_answers_mean_the_same(agree: bool | None, table: dict[str, list[str]]) -> None:
    for expected, given in table.items():
        for answer in given:
            assert check(answer, expected) is agree, (answer, expected)
            assert check(expected, expected) is True


def test_what_takes_too_long_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """9^{9^{9^9}} would fill the memory in a call that no signal interrupts; the next answer is checked as before."""
    monkeypatch.setattr(mathematics, "SECONDS", 1)
    check.cache_clear()
    start = time.monotonic()
    assert check("(10^8)!", "5") is None and check("9^{9^{9^9}}", "5") is None
    assert time.monotonic() - start < 20 and check("0.25", r"\frac14") is True
    check.cache_clear()


def test_a_checker_that_cannot_start_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer would be undecided, and so wrong."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="math-verify does not start"):
        mathematics.Checker().verdict("1", "1.0")


def test_a_low_limit_of_memory_is_kept_to() -> None:
    code = "from lm_eval_sae.grading.mathematics import verify_mathematics as v; print(v('1/2', '0.5'))"
    command = f'ulimit -v 1900000; exec {sys.executable} -c "{code}"'
    assert subprocess.run(["bash", "-c", command], capture_output=True, text=True).stdout == "True\n"


def test_outside_the_main_thread_answers_are_checked_too() -> None:
    check.cache_clear()
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(check("0.25", r"\frac14")))
    thread.start()
    thread.join()
    assert verdicts == [True]


def test_plain_strings_agree() -> None:
    same = [("073", "73"), ("1,234", "1234"), ("-05", "-5"), ("0", "000"), (r"\frac{1}{2}", r"\frac{1}{2}")]
    other = [("12,34", "1234"), ("0.5", r"\frac{1}{2}"), ("7.0", "7"), ("(C)", "C")]
    assert all(strings_agree(answer, expected) for answer, expected in same)
    assert not any(strings_agree(answer, expected) for answer, expected in other)


def test_whole_numbers_in_digits() -> None:
    assert all(is_number(text) for text in ("0", "073", "-5", "1,234,567", " 12 "))
    assert not any(is_number(text) for text in ("", "0.5", "12 cm", "1,23", "x", r"\frac12", "²"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{\frac{a}{b}} end", r"\frac{a}{b}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"put it within \boxed{}.", None),
        (r"\boxed{3}, as asked within \boxed{}", "3"),
        (r"\framebox{5}", "5"),
        (r"so $\boxed -1,234$.", "-1,234"),
        ("none", None),
    ],
)
def test_the_last_complete_box_counts(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("**Answer:** 12.", "12"),
        ("Answer: 3\nNo.\nFinal Answer: $4$", "4"),
        ("Answer: **$.75$**.", ".75"),
        ("Answer: ...", None),
        (r"Answer: 3, so \boxed{4}. Answer: 5", "4"),
        ("we get 12 and then", None),
        ("__Answer__: 12", "12"),
        ("Answer：12", "12"),
        ("**Answer:**\n\n$$\nx = \n5\n$$\nas said", "x = 5"),
        ("", None),
    ],
)
def test_a_box_else_the_last_answer_line_counts(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer
    assert labelled_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is **0.5**. It was easy.", "0.5"),
        ("So the answer is 3. No, the final answer is $x + 1$.", "x + 1"),
        ("Answer: 5\nThe answer is 6 where x is odd.", "5"),
        ("The answer is not obvious.", None),
        ("the answer is a number", None),
        ("The answer is either C or D", None),
    ],
)
def test_a_sentence_counts_where_neither_box_nor_line_does(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_the_plain_string_rule_reads_no_sentences() -> None:
    assert labelled_answer("The answer is 5.") is None


def test_a_last_number() -> None:
    assert last_number("9 + 3 = 12, so 1,200, he has.") == "1,200"
    assert last_number(r"\boxed{3} of 4") == "3"
    assert last_number("so .75, or 1.25?") == "1.25"
    assert last_number("it costs $.75.") == ".75"
    assert last_number("The answer is 3/4.") == "3/4" and last_number("that is -1/2") == "-1/2"
    assert last_number("on pages 3-5") == "5" and last_number("x = (2)-7") == "7" and last_number("it is -7") == "-7"
    assert last_number("no idea") is None


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 20_000,
        r"\boxed{" * 14_000 + "C" + "}" * 14_000,
        "{" * 50_000 + "}" * 50_000,
        "answer" + " " * 50_000,
        "answer: " + "**" * 50_000,
        "Answer: \\[ " * 10_000,
        "the answer to the question of " * 2_000,
        "answer: the " + "option " * 20_000,
        "Answer: " + r"\text{" * 20_000,
        "Answer: B or " * 5_000,
        "Answer: C</think>" * 4_000,
        "# " * 30_000 + "\n" * 30_000,
        "best choice would " * 5_000,
    ],
)
def test_a_degenerate_completion_takes_no_time(text: str) -> None:
    start = time.process_time()
    last_letter(text), final_answer(text), boxes(text), last_number(text)
    assert time.process_time() - start < 2


def test_nested_boxes_take_no_memory() -> None:
    text = r"\boxed{" * 14_000 + "C" + "}" * 14_000
    tracemalloc.start()
    assert last_letter(text) == last_boxed(text) == "C" and len(boxes(text)) == 1
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    ["5" + " " * 900 + "x", "5 " + "cm " * 300 + "x", "5 " + "square " * 140, "5 " + "m/" * 450, "5e" * 450, "%" * 300]
    + ["5" + "°" * 300, "5 " + r"\text{ cm}" * 90, "1" + r"\,000" * 180, "x < 1 or " * 100, "(" * 900, "5" + "^" * 900],
)
def test_a_degenerate_answer_takes_no_time(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(answers, "verify_mathematics", lambda answer, expected: False)  # its time has its own limit
    check.cache_clear()
    start = time.process_time()
    check(text, "5")
    assert time.process_time() - start < 0.5
    check.cache_clear()
