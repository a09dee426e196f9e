"""Metrics of several completions of one question: coverage and majority, as expectations over all samples of k.

Of the N repeats of a question each set of k is as likely to have been generated as any other, so both are averaged
over all of them: exact, without a seed, and with less variance than the first k alone.
"""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from lm_eval_sae.grading.answers import check, clean


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, … up to n."""
    return [2**i for i in range(n.bit_length())]


def coverage(right: int, n: int, k: int) -> float:
    """cov@k: the probability that k of n completions, drawn without replacement, hold a right one.

    1 − C(n − right, k) / C(n, k): the unbiased estimator of pass@k of Chen et al. 2021 (arXiv 2107.03374, eq. 1).
    """
    return float(1 - Fraction(math.comb(n - right, k), math.comb(n, k)))


def majority(right: int, wrong: Sequence[int], n: int, k: int) -> float:
    """maj@k: the probability that the most frequent answer of k of n completions, drawn without replacement, is right.

    Where several answers are the most frequent, each is taken with equal probability. Completions without an answer
    have no vote.

    Args:
        right: completions with the right answer.
        wrong: completions with each of the wrong answers.
        n: all completions, those without an answer included.
        k: how many are drawn.
    """
    silent = n - right - sum(wrong)
    total = Fraction(0)
    for votes in range(1, min(right, k) + 1):  # for the right answer
        # (wrong answers drawn, how many of their classes have as many votes) → number of ways, none with more votes
        ways = Counter({(0, 0): 1})
        for count in wrong:
            extended: Counter[tuple[int, int]] = Counter()
            for (drawn, tied), number in ways.items():
                for taken in range(min(count, votes, k - votes - drawn) + 1):
                    extended[drawn + taken, tied + (taken == votes)] += number * math.comb(count, taken)
            ways = extended
        for (drawn, tied), number in ways.items():
            silent_ways = math.comb(silent, k - votes - drawn)
            total += Fraction(math.comb(right, votes) * number * silent_ways, tied + 1)
    return float(total / math.comb(n, k))


def count_wrong_answers(answers: Sequence[str], unreadable: Sequence[str] = ()) -> list[int]:
    """How often each wrong answer was given.

    Those that `check` holds equal count as one, under the first of them; those that it could not compare with the
    expected answer (`unreadable`) where their text is the same, without regard to case.
    """
    counts: Counter[str] = Counter()
    for answer, number in Counter(answers).items():
        same = next((known for known in counts if check(answer, known)), answer)
        counts[same] += number
    return [*counts.values(), *Counter(clean(answer).casefold() for answer in unreadable).values()]
