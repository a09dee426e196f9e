"""How far ReasonScore depends on which text was drawn: a bootstrap over blocks of rows, from sums already made.

The rows of the text were drawn at random, so blocks of them are exchangeable: a resample takes as many blocks as there
are, with replacement, and its scores follow from the blocks' sums by the same formulas, with shares again over all
features. What comes out says how the scores would vary with other text of the same source and size. It does not
correct for the choice of the best of many features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reasonscore.score import ActivationSums, rank_features, reason_scores

COVERAGE = 0.95
BYTES_AT_ONCE = 2**28
MIN_BLOCKS = 10
"""With fewer blocks of rows, resamples are too much alike for an interval to mean anything."""


class Stability(NamedTuple):
    """What the bootstrap says about the best features."""

    features: Tensor
    """int64 [k]: the k best features, best first."""
    low: Tensor
    """float64 [k]: lower end of the 95 % percentile interval of each one's score."""
    high: Tensor
    """float64 [k]: upper end."""
    in_top_k: Tensor
    """float64 [k]: share of the resamples that have the feature among their k best."""

    @property
    def overlap(self) -> float:
        """The share of a resample's k best features that are among the actual k best, on average."""
        return self.in_top_k.mean().item()


def resample_weights(n_resamples: int, n_blocks: int, seed: int) -> Tensor:
    """How often each resample takes each block, float64 [n_resamples, n_blocks]; every row sums to ``n_blocks``."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_blocks, (n_resamples, n_blocks), generator=generator)
    ones = torch.ones(n_resamples, n_blocks, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def bootstrap_top_features(sums: ActivationSums, *, alpha: float, k: int, n_resamples: int, seed: int) -> Stability:
    """Intervals for the scores of the ``k`` best features, and how stable their place among the best is.

    Memory is bounded: a few resamples at a time, of which only the scores of the ``k`` best stay.

    Args:
        sums: of all features of the SAE, on the CPU.
        alpha: as for `reason_scores`.
        k: how many features; all of them if the SAE has fewer.
        n_resamples: at least 1; 1,000 give interval ends that vary by a few per cent of the interval's width.
        seed: of the draws.
    """
    n_blocks, n_sets, d_sae = sums.by_block.shape
    weights = resample_weights(n_resamples, n_blocks, seed)
    positions = weights @ sums.positions_by_block.double()  # [n_resamples, |W| + 2]
    features = rank_features(reason_scores(sums.by_set, sums.n_positions, alpha=alpha).score.float())[:k]
    flat = sums.by_block.reshape(n_blocks, n_sets * d_sae)
    scores = torch.empty(n_resamples, len(features), dtype=torch.float64)
    times_in_top = torch.zeros(d_sae, dtype=torch.float64)
    at_once = max(1, BYTES_AT_ONCE // (8 * n_sets * d_sae))
    for start in range(0, n_resamples, at_once):
        resamples = slice(start, min(start + at_once, n_resamples))
        by_set = (weights[resamples] @ flat).view(-1, n_sets, d_sae)
        for index, (one, counted) in enumerate(zip(by_set, positions[resamples], strict=True), start=start):
            score = reason_scores(one, counted, alpha=alpha).score
            scores[index] = score[features]
            times_in_top[score.topk(len(features)).indices] += 1
    tail = (1 - COVERAGE) / 2
    low, high = torch.quantile(scores, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return Stability(features, low, high, times_in_top[features] / n_resamples)
