"""Short problems for the evaluation, of the kind that a model of 135 million parameters solves about half the time.

They come from families of their own, which the training text does not use.
"""

import random
from collections.abc import Callable

from reasoning_data.trace import PEOPLE, Voice

THINGS = ("apples", "books", "coins", "pens", "shells", "cards", "stamps", "marbles")


def more(v: Voice) -> tuple[str, int]:
    name, thing, a, b = v.pick(*PEOPLE), v.pick(*THINGS), v.number(3, 40), v.number(2, 9)
    return f"{name} has {a} {thing} and gets {b} more {thing}. How many {thing} does {name} have now?", a + b


def fewer(v: Voice) -> tuple[str, int]:
    name, thing, a, b = v.pick(*PEOPLE), v.pick(*THINGS), v.number(2, 12), v.number(2, 9)
    return f"{name} has {a + b} {thing} and gives {b} of them to a friend. How many {thing} does {name} have left?", a


def boxes(v: Voice) -> tuple[str, int]:
    name, thing, a, b = v.pick(*PEOPLE), v.pick(*THINGS), v.number(2, 9), v.number(3, 12)
    return f"{name} has {a} boxes with {b} {thing} in each box. How many {thing} does {name} have in total?", a * b


FAMILIES: tuple[Callable[[Voice], tuple[str, int]], ...] = (more, boxes, more, boxes, fewer)


def evaluation_problems(rng: random.Random, count: int) -> list[dict[str, str]]:
    """``count`` different problems as rows with ``problem``, ``answer`` (a whole number) and ``source``."""
    voice, rows = Voice(rng), {}
    while len(rows) < count:
        family = FAMILIES[len(rows) % len(FAMILIES)]
        problem, answer = family(voice)
        rows.setdefault(
            problem, {"problem": problem, "answer": str(answer), "source": f"generated: quickstart {family.__name__}"}
        )
    return list(rows.values())
