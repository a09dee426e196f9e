"""Coverage and majority at k equal what all draws of k completions give when they are counted one by one."""

import itertools
from collections import Counter

import pytest

from lm_eval_sae.grading.consistency import coverage, majority, powers_of_two

ANSWERS = [
    ["x", "x", "a", "a", "b", None, "x", "c"],
    ["x", "a", "b", "c", "d"],
    ["a", "a", "a", "b"],
    ["x", "x", "x"],
    ["x", None, None, None],
    ["x", "a", "a", "b", "b", "b", "x", "x", None],
]
"""Answers to a question whose right answer is x; None gives none."""


def counts(answers: list[str | None]) -> tuple[int, list[int]]:
    wrong = Counter(answer for answer in answers if answer not in ("x", None))
    return answers.count("x"), list(wrong.values())


def majority_of(drawn: tuple[str | None, ...]) -> float:
    votes = Counter(answer for answer in drawn if answer is not None)
    winners = [answer for answer, number in votes.items() if number == max(votes.values())]
    return winners.count("x") / len(winners) if winners else 0.0


@pytest.mark.parametrize("answers", ANSWERS)
def test_coverage_and_majority_equal_the_mean_over_all_draws(answers: list[str | None]) -> None:
    right, wrong = counts(answers)
    n = len(answers)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(answers, k))
        assert coverage(right, n, k) == pytest.approx(sum("x" in draw for draw in draws) / len(draws), abs=1e-12)
        assert majority(right, wrong, n, k) == pytest.approx(sum(map(majority_of, draws)) / len(draws), abs=1e-12)


def test_at_the_paper_s_size_majority_of_one_is_accuracy_and_of_all_is_the_plurality() -> None:
    wrong = [1] * 20 + [9, 9]
    assert majority(10, wrong, 64, 1) == pytest.approx(10 / 64, abs=1e-12)
    assert [majority(right, wrong, 64, 64) for right in (8, 9, 10)] == [0, pytest.approx(1 / 3), 1]
    assert coverage(10, 64, 64) == 1 and coverage(0, 64, 64) == 0
    assert powers_of_two(64) == [1, 2, 4, 8, 16, 32, 64] and powers_of_two(6) == [1, 2, 4]
