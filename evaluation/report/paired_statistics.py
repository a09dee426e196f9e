"""Statistics of paired evaluations: what steering changes, with its uncertainty.

The unit is the question. A question that was answered several times enters with the mean of its answers, so that
resampling questions resamples whole clusters: repeats of one question are not independent of one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
MIN_QUESTIONS = 30
"""With fewer questions the intervals cover clearly less than they say (benchmarks/interval_coverage.py)."""
MIN_DISCORDANT = 6
"""With fewer questions that changed sides the exact McNemar test cannot reach 5 %: 2 · 0.5⁵ = 0.0625."""
MIN_NOT_ZERO = 10
"""A relative change has an interval if this many questions have something of the quantity in the baseline, or all do.
With fewer, resamples that hold none of it leave intervals without an upper end: with 5 expected, a fifth of those that
benchmarks/interval_coverage.py simulates; with 10, such a resample is one in 20,000 (e⁻¹⁰)."""
TINY = 1e-9
"""Differences below this are rounding."""
ELEMENTS_AT_ONCE = 2**24


class Estimate(NamedTuple):
    """A statistic with its 95 % interval."""

    value: float
    low: float | None
    """None, like ``high``, if the sample cannot say how the statistic varies: all questions are alike in it."""
    high: float | None


def bootstrap_differences(baseline: ArrayLike, steered: ArrayLike, *, n_resamples: int, seed: int) -> list[Estimate]:
    """Mean of steered − baseline for each column, with the percentile interval of a paired bootstrap over questions.

    Args:
        baseline: [n, m], m quantities of n questions in the baseline; a question's mean if it has several answers.
        steered: [n, m], the same questions in the same order.
        n_resamples: 10,000 make the ends of the interval vary by about 2 % of its width from seed to seed.
        seed: of the draws.
    """
    differences = np.asarray(steered, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    return _bootstrap(differences, lambda means: means, n_resamples=n_resamples, seed=seed)


def bootstrap_relative_changes(
    baseline: ArrayLike,
    steered: ArrayLike,
    *,
    n_resamples: int,
    seed: int,
    per: tuple[ArrayLike, ArrayLike] | None = None,
) -> list[Estimate | None]:
    """Σ steered / Σ baseline − 1 for each column, with the percentile interval of a paired bootstrap over questions.

    Args:
        baseline: [n, m], m quantities ≥ 0 of n questions in the baseline.
        steered: [n, m].
        n_resamples: as for `bootstrap_differences`.
        seed: of the draws.
        per: what to divide the quantities by first, baseline and steered, each [n]: with numbers of tokens, it is the
            rate per token whose change is given.

    Returns:
        None for a column that is 0 in the baseline; without an interval if all questions change alike, or if the
        baseline's quantity is above 0 in fewer than MIN_NOT_ZERO questions but not in all.
    """
    a, b = np.asarray(baseline, dtype=np.float64), np.asarray(steered, dtype=np.float64)
    n, m = a.shape
    units = np.ones((2, n)) if per is None else np.array([np.asarray(unit, dtype=np.float64) for unit in per])

    def change(means: NDArray[np.float64]) -> NDArray[np.float64]:
        ratios = (means[:, m : 2 * m] / means[:, 2 * m + 1 :]) / (means[:, :m] / means[:, 2 * m : 2 * m + 1]) - 1
        # A resample without any of the baseline quantity: its ratio lies above all others.
        return np.where(np.isfinite(ratios), ratios, np.inf)

    with np.errstate(divide="ignore", invalid="ignore"):
        found = _bootstrap(np.column_stack([a, b, units.T]), change, n_resamples=n_resamples, seed=seed)
    enough = (a > 0).sum(axis=0) >= min(n, MIN_NOT_ZERO)
    return [
        None if np.isinf(estimate.value) else estimate if known else Estimate(estimate.value, None, None)
        for estimate, known in zip(found, enough, strict=True)
    ]


def _bootstrap(
    questions: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    n_resamples: int,
    seed: int,
) -> list[Estimate]:
    """Statistics of the columns' means, with percentile intervals over resamples of the rows.

    Args:
        questions: [n, k].
        statistic: of means [rows, k], gives [rows, m]; the same resamples serve all m.
        n_resamples: how many times n rows are drawn with replacement.
        seed: of the draws.
    """
    n = len(questions)
    values = statistic(questions.mean(axis=0, keepdims=True))[0]
    if n < 2:
        return [Estimate(float(value), None, None) for value in values]

    def of_resamples(drawn: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        drawn = drawn.reshape(-1, n)  # [rows, n], places of questions
        rows = len(drawn)
        # How often each question was drawn: one matrix product then gives the means of all columns.
        weights = np.bincount((drawn + n * np.arange(rows)[:, None]).ravel(), minlength=rows * n).reshape(rows, n)
        return statistic(weights @ questions / n).T

    found = scipy.stats.bootstrap(
        (np.arange(n),), of_resamples, vectorized=True, method="percentile", confidence_level=CONFIDENCE,
        n_resamples=n_resamples, batch=max(1, ELEMENTS_AT_ONCE // n), rng=np.random.default_rng(seed),
    )  # fmt: skip
    interval = found.confidence_interval
    varies = np.ptp(found.bootstrap_distribution, axis=-1) > TINY
    return [
        Estimate(float(value), float(low), float(high)) if known else Estimate(float(value), None, None)
        for value, low, high, known in zip(values, interval.low, interval.high, varies, strict=True)
    ]


def mcnemar_exact(baseline: ArrayLike, steered: ArrayLike) -> tuple[int, int, float]:
    """The exact McNemar test of two runs that answered each question once.

    Under the hypothesis of no effect each question that changed sides did so in either direction with probability ½
    (McNemar 1947, doi:10.1007/BF02295996).

    Args:
        baseline: [n], 1 where the baseline answered the question right, else 0.
        steered: [n].

    Returns:
        Questions that went from right to wrong, those that went from wrong to right, and the two-sided p.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = np.asarray(baseline) > 0.5, np.asarray(steered) > 0.5
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return table[0][1], table[1][0], float(mcnemar(table, exact=True).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted to bound the chance of any false positive among them (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []
