"""The quantities of the test, as functions of arrays: no model, no files."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_ind, wilcoxon

from falsification.tokens import MIN_COUNT, NGrams

RESAMPLES = 1000
MOST_OCCURRENCES = 2000
"""Of an n-gram in a text that are compared with those in the other; of more, as many are drawn."""


class Estimate(NamedTuple):
    """A number and its 95 % interval; all NaN where it is not defined."""

    value: float
    low: float
    high: float


NOT_DEFINED = Estimate(math.nan, math.nan, math.nan)


@functools.lru_cache(maxsize=8)
def bootstrap_weights(n_texts: int, seed: int, text: int = 0) -> np.ndarray:
    """How often each text is in each resample, divided by their number: float64 [RESAMPLES, n_texts].

    Args:
        n_texts: texts that are resampled.
        seed: decides the resamples; all quantities of a run have the same.
        text: tells reasoning text (1) from ordinary text (0), so that they are resampled independently.
    """
    random = np.random.default_rng([seed, text])
    return random.multinomial(n_texts, np.full(n_texts, 1 / n_texts), size=RESAMPLES) / n_texts


def interval(value: float, resampled: np.ndarray) -> Estimate:
    """A number with the percentile interval of its resamples."""
    if not math.isfinite(value):
        return NOT_DEFINED
    return Estimate(value, *(float(end) for end in np.nanquantile(resampled, (0.025, 0.975))))


def recovered_share(
    injected: np.ndarray,
    control: np.ndarray,
    ordinary: np.ndarray,
    reasoning: np.ndarray,
    seed: int,
) -> Estimate:
    """ρ = (A_injected − A_control) / (A_reasoning − A_ordinary), where A is the mean over texts.

    Resamples keep a text's three variants together. ρ is not defined if reasoning texts are not clearly more active
    than ordinary ones, that is if the lower end of the interval of their difference is not above 0.

    Args:
        injected: the maximal activation in each ordinary text with tokens put in, [texts].
        control: likewise with control tokens.
        ordinary: likewise as it was.
        reasoning: in each reasoning text, [reasoning texts].
        seed: of the bootstrap.
    """
    paired = bootstrap_weights(len(ordinary), seed) @ np.stack([injected - control, ordinary], axis=1)
    gap = bootstrap_weights(len(reasoning), seed, 1) @ reasoning - paired[:, 1]
    if not np.quantile(gap, 0.025) > 0:
        return NOT_DEFINED
    value = (injected - control).mean() / (reasoning.mean() - ordinary.mean())
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample without a gap says nothing, or "infinitely much"
        return interval(float(value), paired[:, 0] / gap)


def p_more_than_control(injected: np.ndarray, control: np.ndarray) -> float:
    """One-sided p of Wilcoxon's signed-rank test: the tokens activate the feature no more than control tokens do."""
    difference = injected - control
    if not difference.any():
        return 1.0
    return float(wilcoxon(difference, alternative="greater").pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values; NaN stays NaN and counts for nothing."""
    adjusted = np.full_like(p_values, np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(order) else scaled
    return adjusted


def ratio_over_texts(numerator: np.ndarray, denominator: np.ndarray, seed: int) -> Estimate:
    """Σ numerator / Σ denominator over texts, which are resampled; not defined if the denominator is 0."""
    if not denominator.sum() > 0:
        return NOT_DEFINED
    sums = bootstrap_weights(len(numerator), seed) @ np.stack([numerator, denominator], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return interval(float(numerator.sum() / denominator.sum()), sums[:, 0] / sums[:, 1])


def explained_by_tokens(
    activations: np.ndarray, counted: np.ndarray, unigrams: NGrams, bigrams: NGrams, seed: int
) -> dict[int, Estimate]:
    """R² of the activation from the current token's mean (1), and from that of (previous, current) (2).

    Cross-fitted: means from the even rows, R² on the odd ones, and the other way round; both residuals together over
    both variances. A token seen fewer than MIN_COUNT times takes the overall mean, such a pair its token's estimate.
    Intervals are over rows, for the means that were fitted.

    Args:
        activations: of one feature, [rows, context].
        counted: bool, likewise: positions that count.
        unigrams: of the same rows.
        bigrams: likewise.
        seed: of the bootstrap.

    Returns:
        Not defined if the feature does not vary.
    """
    residuals, total = np.zeros((2, len(activations))), np.zeros(len(activations))
    for parity in (0, 1):
        fit, rest = counted.copy(), np.arange(parity, len(activations), 2)
        fit[rest] = False
        mean = activations[fit].mean()
        by_token = _means(activations, fit, unigrams, otherwise=np.full(activations.shape, mean))
        by_pair = _means(activations, fit, bigrams, otherwise=by_token)
        for residual, estimate in zip((*residuals, total), (by_token, by_pair, mean), strict=True):
            residual[rest] = np.where(counted, (activations - estimate) ** 2, 0)[rest].sum(axis=1)
    left = [ratio_over_texts(residual, total, seed) for residual in residuals]
    return {n: Estimate(1 - share.value, 1 - share.high, 1 - share.low) for n, share in enumerate(left, start=1)}


def _means(activations: np.ndarray, fit: np.ndarray, ngrams: NGrams, *, otherwise: np.ndarray) -> np.ndarray:
    """At each position the mean over `fit` of its n-gram; what `otherwise` has where that was seen too rarely."""
    known = ngrams.of_position >= 0
    index, used = ngrams.of_position, fit & known
    counts = np.bincount(index[used], minlength=len(ngrams.counts))
    means = np.bincount(index[used], weights=activations[used], minlength=len(counts)) / np.maximum(counts, 1)
    often = known & (counts[index] >= MIN_COUNT)
    return np.where(often, means[index], otherwise)


def same_token_in_two_texts(
    activations: np.ndarray,
    is_reasoning: np.ndarray,
    ngrams: NGrams,
    chosen: Sequence[tuple[int, ...]],
    seed: int,
) -> Estimate:
    """AUROC of a feature's activation at an n-gram in reasoning text against the same n-gram in ordinary text.

    Ties count half. Averaged over the n-grams seen at least MIN_COUNT times in each text, by their occurrences. 0.5:
    the n-gram alone decides. Rows are resampled.

    Args:
        activations: of one feature on both texts, [rows, context].
        is_reasoning: bool [rows].
        ngrams: of both texts.
        chosen: the feature's n-grams.
        seed: of the bootstrap.
    """
    n_rows = (int(is_reasoning.sum()), int((~is_reasoning).sum()))
    weights = [bootstrap_weights(n, seed, text) * n for n, text in zip(n_rows, (1, 0), strict=True)]
    random = np.random.default_rng(seed)
    values, resampled, occurrences = [], [], []
    row_in_text = np.where(is_reasoning, np.cumsum(is_reasoning), np.cumsum(~is_reasoning)) - 1
    for gram in chosen:
        index = np.flatnonzero((ngrams.grams == gram).all(axis=1))
        rows, columns = np.nonzero(ngrams.of_position == index)
        value, inside = activations[rows, columns], is_reasoning[rows]
        if min(inside.sum(), (~inside).sum()) < MIN_COUNT:
            continue
        drawn = [random.permutation(np.flatnonzero(side))[:MOST_OCCURRENCES] for side in (inside, ~inside)]
        sides = [(row_in_text[rows[side]], value[side]) for side in drawn]
        wins = _wins(*sides, n_rows)
        n_pairs = [np.bincount(row, minlength=n) for (row, _), n in zip(sides, n_rows, strict=True)]
        values.append(wins.sum() / (n_pairs[0].sum() * n_pairs[1].sum()))
        with np.errstate(invalid="ignore"):
            pairs = (weights[0] @ n_pairs[0]) * (weights[1] @ n_pairs[1])
            resampled.append(((weights[0] @ wins) * weights[1]).sum(axis=1) / pairs)
        occurrences.append(len(rows))
    if not values:
        return NOT_DEFINED
    # A resample may lack an n-gram: there the others count.
    there = ~np.isnan(resampled) * np.array(occurrences)[:, None]
    with np.errstate(invalid="ignore"):
        averages = np.nansum(np.array(resampled) * there, axis=0) / there.sum(axis=0)
    return interval(float(np.average(values, weights=occurrences)), averages)


def _wins(
    reasoning: tuple[np.ndarray, np.ndarray], ordinary: tuple[np.ndarray, np.ndarray], n_rows: tuple[int, int]
) -> np.ndarray:
    """Pairs of occurrences in which the reasoning text's is the more active, by the two rows; ties count half."""
    (row_r, value_r), (row_o, value_o) = reasoning, ordinary
    wins = np.zeros(n_rows)
    compared = (np.sign(value_r[:, None] - value_o[None]) + 1) / 2  # [occurrences, occurrences]
    by_row = np.zeros((n_rows[0], len(row_o)))
    np.add.at(by_row, row_r, compared)
    np.add.at(wins.T, row_o, by_row.T)
    return wins


class MaEtAl(NamedTuple):
    """The verdict of Ma et al. 2026 on a feature, by their own procedure."""

    kind: str
    """token-driven, partially, weakly, or context-dependent."""
    d: float
    p: float
    strategy: str


def ma_et_al(ordinary: np.ndarray, injected: dict[str, np.ndarray]) -> MaEtAl:
    """Cohen's d of the strategy with the largest, and the class that it falls into with its p.

    d = difference of means / √((var + var)/2), variances with n in the denominator; 0 if nothing varies, as in their
    code. p of an unpaired t-test.

    Args:
        ordinary: the maximal activation in each ordinary text, [texts].
        injected: for each strategy, with tokens put in.
    """
    effects: dict[str, float] = {}
    for strategy, values in injected.items():
        spread = math.sqrt((values.var() + ordinary.var()) / 2)
        effects[strategy] = float(values.mean() - ordinary.mean()) / spread if spread > 0 else 0.0
    best = max(effects, key=lambda strategy: effects[strategy])
    d, p = effects[best], 1.0
    if injected[best].var() + ordinary.var() > 0:
        with warnings.catch_warnings():  # a feature that is almost constant has an imprecise p, and no other verdict
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="scipy")
            p = float(ttest_ind(injected[best], ordinary).pvalue)
    kind = "context-dependent"
    for name, least, level in (("weakly", 0.2, 0.05), ("partially", 0.5, 0.01), ("token-driven", 0.8, 0.01)):
        if d >= least and p < level:
            kind = name
    return MaEtAl(kind, d, p, best)
