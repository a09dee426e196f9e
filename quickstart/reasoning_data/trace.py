"""What every problem family shares: the record it returns, and the turns of speech of someone who reasons aloud.

Convention for mistakes: a trace may make a slip, and then names it. Wherever a trace states ``expression = wrong``, it
says ``not wrong`` further on; every other arithmetic statement in it is true (`uncorrected` finds what breaks this
rule).
"""

import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One problem with the reasoning that solves it, in the terms of OpenThoughts-114k."""

    problem: str
    reasoning: str  # what a model would think aloud
    solution: str  # what it would then answer
    answer: str  # the final answer alone
    domain: str  # code, math, puzzle, biology, chemistry or physics
    family: str  # which generator wrote it
    test_cases: str = ""  # code: JSON as in OpenThoughts
    starter_code: str | None = None  # code: the signature to fill in
    reference: str = ""  # code: the program that passed the test cases


class Voice:
    """Seeded choices, and phrases that each do one thing in an argument."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def number(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return self.rng.randint(low, high)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, *options: T) -> T:
        return self.rng.choice(options)

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` different options in random order."""
        return self.rng.sample(list(options), count)

    def begin(self) -> str:
        return self.pick(
            "Okay, let me work through this one carefully.",
            "Let me see what is given and what is asked.",
            "Alright. What do I know, and what is asked?",
            "So, let me think about what the problem says.",
            "Hmm, let me see what we have here.",
            "First I want to be clear about what is asked.",
            "Let me take this one step at a time.",
            "Okay, so this looks manageable, but I should not rush it.",
        )

    def hmm(self) -> str:
        return self.pick("Hmm, ", "Hmm, ", "Hmm. Well, ", "Hmm, okay: ")

    def check(self) -> str:
        """Opens a check of something just written."""
        return self.pick(
            "Wait, let me check that.",
            "Wait, is that right?",
            "Wait, I should double-check this step.",
            "Wait. Let me verify it before going on.",
            "Hold on, let me make sure.",
            "Wait, that went a little fast.",
        )

    def try_out(self) -> str:
        """Introduces a plan that may or may not work; a clause follows."""
        return self.pick(
            "Maybe I can", "Maybe it helps to", "Perhaps I can", "Perhaps it is easiest to", "Maybe I should"
        )

    def second(self) -> str:
        """Introduces a second method; a clause follows."""
        return self.pick(
            "Alternatively, ",
            "Alternatively, ",
            "Another way to see it: ",
            "Another check: ",
            "To be safe, alternatively: ",
            "But is there an independent check? Yes: ",
        )

    def contrast(self) -> str:
        """Introduces something that stands against what was just said; a clause follows."""
        return self.pick("However, ", "However, ", "But ", "But ")

    def agree(self) -> str:
        return self.pick(
            "That agrees with the first result.",
            "The two methods agree, good.",
            "Same number as before, so I trust it.",
            "Both ways lead to the same value.",
        )

    def therefore(self) -> str:
        """Introduces a conclusion; a clause follows."""
        return self.pick(
            "Therefore, ", "Therefore, ", "Therefore ", "So, all in all, ", "That settles it, and therefore "
        )


PEOPLE = (
    "Ada", "Ben", "Carla", "Deniz", "Emil", "Fatima", "Goran", "Hana", "Ivan", "Jun", "Kofi", "Lena",
    "Marta", "Nils", "Olga", "Pedro", "Rosa", "Samir", "Tariq", "Uma", "Vera", "Wen", "Yara", "Zoe",
)  # fmt: skip


def paragraphs(*parts: str) -> str:
    """The parts that are not empty, with a blank line between them."""
    return "\n\n".join(part.strip() for part in parts if part.strip())


def boxed(sentence: str, answer: object) -> str:
    """A closing solution with its answer in a box."""
    return f"{sentence}\n\n\\boxed{{{answer}}}"


_NUMBER = r"\d+(?:\.\d+)?"
_TERM = rf"-?{_NUMBER}"
_EXPRESSION = rf"{_TERM}(?: ?[-+×*÷] ?{_NUMBER})*"
_STARTS = r"(?<![\w.)/^-])(?<![-+×*÷/] )"  # not in the middle of a longer expression
_ENDS = r"(?![\w(/^%]| ?[-+×*÷/^(]|\.\d)"
_STATEMENT = re.compile(rf"{_STARTS}{_EXPRESSION}(?: ?= ?{_EXPRESSION})+{_ENDS}")
_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "×": operator.mul,
    "*": operator.mul,
    "÷": operator.truediv,
    "+": operator.add,
    "-": operator.sub,
}


def _value(expression: str) -> Fraction:
    """Evaluate +, -, × and ÷ with the usual precedence, exactly."""
    first, *rest = re.findall(rf"^-?{_NUMBER}|[-+×*÷]|{_NUMBER}", expression.strip())
    total, term = Fraction(0), Fraction(first)
    for sign, digits in zip(rest[::2], rest[1::2], strict=True):
        number = Fraction(digits)
        if sign in "×*÷":
            term = _OPERATORS[sign](term, number)
        else:
            total, term = total + term, _OPERATORS[sign](Fraction(0), number)
    return total + term


def statements(text: str) -> list[list[str]]:
    """The sides of every arithmetic statement in ``text``: ``"so 2 × 3 = 6."`` holds ``["2 × 3", "6"]``."""
    return [re.split(r" ?= ?", match.group()) for match in _STATEMENT.finditer(text)]


def is_true(sides: list[str]) -> bool:
    """Whether all the sides of a statement have the same value."""
    return len({_value(side) for side in sides}) == 1


def uncorrected(text: str) -> list[str]:
    """False statements of ``text`` that it does not take back with a later ``not <value>``."""
    false = []
    for match in _STATEMENT.finditer(text):
        sides = re.split(r" ?= ?", match.group())
        taken_back = re.search(rf"\bnot {re.escape(sides[-1])}(?!\d|\.\d)", text[match.end() :])
        if not is_true(sides) and not taken_back:
            false.append(match.group())
    return false
