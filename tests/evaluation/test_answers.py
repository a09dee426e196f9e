"""What a completion answers, and whether two answers mean the same."""

import threading
import time

import pytest

from lm_eval_sae.grading import answers
from lm_eval_sae.grading.answers import (
    boxes,
    check,
    final_answer,
    is_number,
    labelled_answer,
    last_boxed,
    last_number,
    strings_agree,
)
from lm_eval_sae.grading.letters import last_letter


@pytest.mark.parametrize(
    ("answer", "expected", "agree"),
    [
        # numbers
        ("0.5", r"\frac{1}{2}", True),
        (r"\frac12", "0.5", True),
        (r"3+4\mathrm{i}", "3+4i", True),
        (r"\mathrm{e}^2", "e^2", True),
        (r"\mathrm{e}^2", "e^3", False),
        (r"\text{(1,2)}", "(1,2)", True),
        (r"\text{(1,2)}", "(2,1)", False),
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
        (r"12.5\%", "12.5", True),
        ("12.5", r"12.5\%", True),
        ("12.5%", "12.5", True),
        (r"62.5\%", "62.5", True),
        (r"1.25\%", "1.25", True),
        (r"0.5\%", "0.5", True),
        (r"5.0\%", "5", True),
        (r"\frac{100}{3}\%", r"\frac{100}{3}", True),
        (r"12.5\%", "0.125", True),
        (r"12.5\%", "12.6", False),
        (r"12.5\%", r"12.6\%", False),
        ("12.5 percent", "12.5", None),
        ("5 dollars", "5", True),
        ("6 dollars", "5", False),
        ("20 dollars", r"\$20", True),
        (r"\text{5 dollars}", "5", True),
        ("12 cm^2", "12", True),
        ("12", "12 cm^{2}", True),
        ("13 cm^2", "12", False),
        ("100 km/h", "100", True),
        ("100 miles per hour", "100", True),
        ("9.8 m/s^2", "9.8", True),
        ("9.7 m/s^2", "9.8", False),
        ("2 hours", "120 minutes", None),
        ("3 square yards", "4", False),
        ("13 apples", "12", None),  # a word that is no known unit may change the number: 5 dozen are 60
        ("5 dozen", "60", None),
        ("x > 1 and x < 3", "(1,4)", None),
        ("2 hours", "2 minutes", None),
        (r"5.4\text{ dollars}", r"5.4 \text{ cents}", None),
        (r"\$5", r"5\text{ cents}", None),
        (r"\$5", r"5\text{ dollars}", True),
        ("$5$", r"5\text{ cents}", True),  # formula marks
        (r"5\text{ km}", r"5\text{ m}", None),
        (r"\text{5 km}", r"5\text{ m}", None),
        ("5 m", "5 cm", None),
        (r"\pi\text{ cm}", r"\pi\text{ m}", None),
        (r"\frac{1}{2}\text{ km}", r"\frac12\text{ miles}", None),
        (r"15\text{ cm}^2", r"15\text{ cm}^3", None),
        (r"15\text{ cm}^2", r"15\text{ cm}", None),
        (r"12\text{ apples}", r"12\text{ pears}", None),
        (r"12\text{ apples}", "12", True),
        (r"20^\circ\text{C}", r"20^\circ\text{F}", None),
        (r"20^\circ", r"20\text{ degrees Celsius}", True),
        (r"90^\circ", r"90\text{ radians}", None),
        (r"18\text{ ft}^2", r"18\text{ square feet}", True),
        (r"10\text{ cm}^{2}", r"10\text{ sq. cm}", True),
        (r"60\text{ miles per hour}", r"60\text{ mph}", True),
        (r"10\text{ m/s}^2", "10 m/s^2", True),
        (r"10\text{ m/s}^2", r"11\text{ m/s}^2", False),
        (r"1\text{ hour}", r"1\text{ h}", True),
        (r"2\text{ million dollars}", r"2\text{ dollars}", None),
        # words and signs that change a number
        (r"5\text{ dozen}", "5", None),
        (r"5\text{ hundredths}", "5", None),
        (r"6\text{ squared}", "6", None),
        (r"\frac{10}{2}\text{ dozen}", r"5\text{ dozen}", True),
        (r"\text{not }5", "5", None),
        (r"\neq 5", "5", None),
        (r"x \ne 5", "5", None),
        ("> 5", "5", None),
        (r"x \neq 5", r"x \neq 5", True),
        ("90°", "90", True),
        ("90 °", r"90^\circ", True),
        ("90°", "91", False),
        # the notation of numbers
        (r"1.5 \text{ million}", "1500000", True),
        ("1 million", "1000000", True),
        ("2 Million dollars", r"2{,}000{,}000", True),
        ("1 million", "2000000", False),
        ("1 7/8", "1.875", True),
        ("-1 7/8", "-1.875", True),
        ("1 5/8", "1.875", False),
        ("1.0e-4", "0.0001", True),
        ("1.0E-4", "0.001", False),
        (".5", "0.5", True),
        (r"12\,345", "12345", True),
        ("12345", r"12\,345", True),
        (r"36\,000", "36,000", True),
        (r"1\;000\;000", "1000000", True),
        ("1 000", "1000", True),
        ("1 000", "1001", False),
        ("1 125/200", "1.625", True),  # a mixed number, not 1125/200
        (r"1 \\ 200", "1200", False),
        # times of day
        ("11:00", r"11\text{:}00", True),
        ("6:00", r"\text{6:00}", True),
        ("6:48 PM", "6:48", True),
        ("6:48", r"6:48\text{ p.m.}", True),
        ("18:48", "6:48 PM", True),
        ("6:48 PM", "6:48 AM", False),
        ("6:49 PM", "6:48", False),
        ("06:48", "6:48", True),
        ("52_9", "52_8", False),
        ("1101_{2}", "1101_3", False),
        ("1A_{16}", "1A_{12}", False),
        ("42_{10}", "52_8", None),  # the same number, but perhaps not the notation that was asked for
        ("2516", "2516_8", True),
        ("2516_{8}", "2516_8", True),
        ("2517", "2516_8", False),
        ("9_{1}", "9_{37}", False),
        # sets, tuples, intervals
        (r"\emptyset", r"\varnothing", True),
        (r"\varnothing", r"\{1\}", False),
        (r"\{3, 1, 2\}", r"\{1,2,3\}", True),
        ("2, 1", "1,2", True),
        ("1, 3", "1,2", False),
        (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \tfrac{\pi}{2})", True),
        (r"(\tfrac{\pi}{2}, 3)", r"\left( 3, \frac{\pi}{2} \right)", False),
        ("(1,2)", "[1,2]", False),
        (r"1 \le x \le 2", "[1,2]", True),
        (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty) \cup (-\infty, 1)", True),
        (r"x \le -2 \text{ or } x \ge 3", r"(-\infty,-2]\cup[3,\infty)", True),
        (r"(-\infty,-2]\cup[3,\infty)", r"x \le -2 \text{ or } x \ge 3", True),
        (r"x \ge 3 \text{ or } x \le -2", r"(-\infty,-2]\cup[3,\infty)", True),
        (r"x < -2 \text{ or } x \ge 3", r"(-\infty,-2]\cup[3,\infty)", False),
        ("x < -2 or x > 3", r"(-\infty,-2)\cup(3,\infty)", True),
        ("-2 > x or 3 < x", r"x < -2 \text{ or } x > 3", True),
        (r"1 < x \le 2 \text{ or } x > 5", r"(1,2]\cup(5,\infty)", True),
        (r"x=1\text{ or }x=2", "1,2", True),
        (r"\{1,2\}", "(1,2)", False),
        ("{1,2}", "(1,2)", False),
        (r"\left(1,2\right)", r"\left\{1,2\right\}", False),
        ("1,2", "(1,2)", None),
        ("(1,2)", "1,2", None),
        ("1,3", "(1,2)", False),
        ("1,2", r"\{1,2\}", True),
        ("(x,y)=(1,2)", "(1,2)", True),
        ("(1,2), (3,4)", r"\{(3,4), (1,2)\}", True),
        ("1 < x < 2", "(1,2)", True),
        # formulas
        ("-q + p", "p - q", True),
        ("q - p", "p - q", False),
        ("x = 5", "5", True),
        ("y = 2x+1", "y = 1+2x", True),
        ("5x^2", "5", False),
        ("5 m^2", "5", False),  # m may be a variable
        (r"2\sin x", r"2\cos x", False),
        ("2 sin x", "2 cos x", False),
        ("5 theta", "5", False),
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
        (r"\framebox{5}", "5"),
        (r"\boxed 5", "5"),
        (r"so $\boxed -1,234$.", "-1,234"),
        (r"\boxed{3} then \boxed 4.", "4"),
        (r"\boxed{3}, as asked in a \boxed one", "3"),
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
        ("Answer: .5", ".5"),
        ("Answer: $.75", ".75"),
        ("Answer: **$.75$**.", ".75"),
        ("Answer: ...", None),
        (r"Answer: 3, so \boxed{4}. Answer: 5", "4"),
        ("we get 12 and then", None),
        ("Answer: **", None),
        ("**Answer**: 5", "5"),
        ("__Answer:__ 12", "12"),
        ("__Answer__: 12", "12"),
        ("Answer：12", "12"),
        ("**Answer:**\n\n\\[\n5\n\\]", "5"),
        ("**Answer:**\n\n$$\nx = \n5\n$$\nas said", "x = 5"),
        ("Answer: \\[5\nand then", "\\[5"),
        ("", None),
    ],
)
def test_a_box_else_the_last_answer_line_counts(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer
    assert labelled_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 5.", "5"),
        ("The answer is **0.5**. It was easy.", "0.5"),
        ("So the answer is 3. No, the final answer is $x + 1$.", "x + 1"),
        ("The answer is A photon.", "A photon"),
        ("Answer: 5\nThe answer is 6 where x is odd.", "5"),
        (r"\boxed{5}, as the answer is 6 elsewhere", "5"),
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
        "{" * 50_000 + "}" * 50_000,
        "answer" + " " * 50_000,
        "answer: " + "**" * 50_000,
        "the answer is " * 10_000,
        "answer: the " + "option " * 20_000,
        "Answer: " + r"\text{" * 20_000,
        "correct option " * 5_000,
        "the answer to the question of " * 2_000,
        "answer " + "to the " * 10_000,
        "Answer: B or " * 5_000,
        "Answer: B, no " * 5_000,
        "Answer: B" + " (" * 20_000,
        "Answer: B is " + "clearly " * 10_000,
        "Answer choice A: 10 eV\n" * 2_000,
        "# " * 30_000 + "\n" * 30_000,
        "Answer" + "\n" * 30_000,
        "The final correct " * 3_000,
        r"\boxed{B - }" * 5_000,
        r"\boxed{B" + " - " * 20_000 + "}",
        r"\boxed " * 10_000,
        r"\boxed 1" * 10_000,
        "Answer: \\[ " * 10_000,
        "answer" + "*" * 50_000,
        "the answer is a " * 10_000,
        "the answer is 5. " * 5_000,
    ],
)
def test_a_degenerate_completion_takes_no_time(text: str) -> None:
    start = time.monotonic()
    last_letter(text), final_answer(text), boxes(text), last_number(text)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "text",
    ["5" + " " * 900 + "x", "5 " + "cm " * 300 + "x", "5 " + "square " * 140, "5 " + "m/" * 450, "5e" * 450, "%" * 900]
    + ["5" + "°" * 900, "5 " + r"\text{ cm}" * 90, "1" + r"\,000" * 180, "x < 1 or " * 100, "5 cm^2" + " " * 900 + "x"]
    + ["(" * 900, "6:" * 450, "5" + "^" * 900],
)
def test_a_degenerate_answer_takes_no_time(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(answers, "verify_mathematics", lambda answer, expected: False)  # its time has its own limit
    check.cache_clear()
    start = time.monotonic()
    check(text, "5")
    assert time.monotonic() - start < 0.5
    check.cache_clear()
