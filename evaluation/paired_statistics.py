"""Statistics of paired evaluations: what a steered run changes, with its uncertainty.

The unit is the question. A question that was answered several times enters with the mean of its answers, so that
resampling questions resamples whole clusters: repeats of one question are not independent of one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
MIN_QUESTIONS = 30
"""With fewer questions the intervals cover clearly less than they say (benchmarks/interval_coverage.py)."""
MIN_DISCORDANT = 6
"""With fewer questions that changed sides the exact McNemar test cannot reach 5 %: 2 · 0.5⁵ = 0.0625."""
MIN_NOT_ZERO = 10
"""A relative change has an interval where so many questions have something of the quantity in the plain run, or all do.
With fewer, resamples that hold none of it leave intervals without an upper end: with 5 expected, a fifth of those that
benchmarks/interval_coverage.py simulates; with 10, such a resample is one in 20,000 (e⁻¹⁰)."""
TINY = 1e-9
"""Differences below this are rounding."""
ELEMENTS_AT_ONCE = 2**24


class Estimate(NamedTuple):
    """A statistic with its 95 % interval."""

    value: float
    low: float | None
    """None, like ``high``, where the sample cannot say how the statistic varies: all questions are alike in it."""
    high: float | None


class Discordance(NamedTuple):
    """Questions that one run answered right and the other wrong."""

    right_to_wrong: int
    wrong_to_right: int
    p_value: float
    """Two-sided, of the exact McNemar test."""


def mean_and_stderr(values: ArrayLike) -> tuple[float, float | None]:
    """The mean over questions and its standard error s / √n, s² with n − 1 (None for one question).

    Args:
        values: [n], one number per question.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), None
    return float(array.mean()), float(array.std(ddof=1) / len(array) ** 0.5)


def resampled_means(columns: ArrayLike, *, n_resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of every column over resamples of the rows, the same resamples for all columns.

    Args:
        columns: [n, m], m numbers for each of n questions.
        n_resamples: how many times n rows are drawn with replacement.
        seed: of the draws.

    Returns:
        float64 [n_resamples, m].
    """
    data = np.asarray(columns, dtype=np.float64)
    n = len(data)
    generator = np.random.default_rng(seed)
    means = np.empty((n_resamples, data.shape[1]))
    at_once = max(1, ELEMENTS_AT_ONCE // n)
    for start in range(0, n_resamples, at_once):
        rows = min(at_once, n_resamples - start)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means[start : start + rows] = weights @ data / n
    return means


def bootstrap_differences(plain: ArrayLike, steered: ArrayLike, *, n_resamples: int, seed: int) -> list[Estimate]:
    """Mean of steered − plain for each column, with the percentile interval of a paired bootstrap over questions.

    Args:
        plain: [n, m], m quantities of n questions; a question's mean where it has several answers.
        steered: [n, m], the same questions in the same order.
        n_resamples: 10,000 make the ends of the interval vary by about 2 % of its width from seed to seed.
        seed: of the draws.
    """
    differences = np.asarray(steered, dtype=np.float64) - np.asarray(plain, dtype=np.float64)
    means = resampled_means(differences, n_resamples=n_resamples, seed=seed)
    return [
        _percentile(value, column, varies=bool(np.ptp(difference) > TINY))
        for value, column, difference in zip(differences.mean(axis=0), means.T, differences.T, strict=True)
    ]


def bootstrap_relative_changes(
    plain: ArrayLike, steered: ArrayLike, *, n_resamples: int, seed: int, per: tuple[ArrayLike, ArrayLike] | None = None
) -> list[Estimate | None]:
    """Σ steered / Σ plain − 1 for each column, with the percentile interval of a paired bootstrap over questions.

    Args:
        plain: [n, m], m quantities ≥ 0 of n questions.
        steered: [n, m].
        n_resamples: as for `bootstrap_differences`.
        seed: of the draws.
        per: what to divide the quantities by first, plain and steered, each [n]: with numbers of tokens, it is the
            rate per token whose change is given.

    Returns:
        None for a column whose plain quantity is 0; without an interval where all questions change alike, or the plain
        quantity is above 0 in fewer than MIN_NOT_ZERO questions but not in all.
    """
    a, b = np.asarray(plain, dtype=np.float64), np.asarray(steered, dtype=np.float64)
    n, m = a.shape
    units = np.ones((2, n)) if per is None else np.array([np.asarray(unit, dtype=np.float64) for unit in per])
    everything = np.column_stack([a, b, units.T])  # [n, 2m + 2]
    means = resampled_means(everything, n_resamples=n_resamples, seed=seed)
    exact = everything.mean(axis=0)
    estimates: list[Estimate | None] = []
    for column in range(m):
        if exact[column] <= 0 or exact[2 * m] <= 0 or exact[2 * m + 1] <= 0:
            estimates.append(None)
            continue
        value = _ratio(exact[None], column, m)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = _ratio(means, column, m)
        # A resample without any of the plain quantity: its ratio lies above all others.
        ratios[~np.isfinite(ratios)] = np.inf
        enough = int((a[:, column] > 0).sum()) >= min(n, MIN_NOT_ZERO)
        estimates.append(_percentile(value, ratios, varies=enough and bool(ratios.max() - ratios.min() > TINY)))
    return estimates


def _ratio(means: NDArray[np.float64], column: int, m: int) -> NDArray[np.float64]:
    return (means[:, m + column] / means[:, 2 * m + 1]) / (means[:, column] / means[:, 2 * m]) - 1


def _percentile(value: float, resampled: NDArray[np.float64], *, varies: bool) -> Estimate:
    if not varies:
        return Estimate(float(value), None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Estimate(float(value), float(low), float(high))


def mcnemar_exact(plain: ArrayLike, steered: ArrayLike) -> Discordance:
    """The exact McNemar test of two runs that answered each question once.

    Under the hypothesis of no effect each question that changed sides did so in either direction with probability ½
    (McNemar 1947, doi:10.1007/BF02295996).

    Args:
        plain: [n], 1 where the question was answered right, else 0.
        steered: [n].
    """
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = np.asarray(plain) > 0.5, np.asarray(steered) > 0.5
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return Discordance(table[0][1], table[1][0], float(mcnemar(table, exact=True).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted to bound the chance of any false positive among them (Holm 1979)."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]
