"""In which training stages a feature of the final SAE is there already.

A feature with decoder direction d is present in a stage at a threshold c if some decoder row r of the stage's SAE has
cos(d, r) ≥ c. The largest cosine therefore says all: presence at every threshold, and the nearest row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

THRESHOLDS = np.arange(10, 50) / 50  # 0.2 to 0.98
BLOCK = 8192  # rows of a decoder that are compared at once


class Nearest(NamedTuple):
    """The decoder row nearest to each of n directions."""

    row: Tensor
    """Its index, int64 [n]."""
    cosine: Tensor
    """float32 [n]."""


class Share(NamedTuple):
    """A share of features at each threshold, with the ends of its 95 % interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def nearest_rows(directions: Tensor, decoder: Tensor) -> Nearest:
    """The row of `decoder`, [d_sae, d_in], with the largest cosine to each of `directions`, [n, d_in]."""
    unit = normalize(directions.float(), dim=1)
    best = Nearest(torch.zeros(len(unit), dtype=torch.int64), torch.full((len(unit),), -2.0))
    for start in range(0, len(decoder), BLOCK):
        cosine, row = (unit @ normalize(decoder[start : start + BLOCK].float(), dim=1).T).max(dim=1)
        nearer = cosine > best.cosine
        best = Nearest(torch.where(nearer, row + start, best.row), torch.where(nearer, cosine, best.cosine))
    return best


def present(cosine: Tensor) -> np.ndarray:
    """The part of each group of features that is present at each of `THRESHOLDS`.

    Args:
        cosine: the largest cosines, [groups, features of a group].

    Returns:
        [groups, thresholds].
    """
    return (cosine.numpy()[:, :, None] >= THRESHOLDS).mean(axis=1)


def share_with_interval(part: np.ndarray, *, n_resamples: int, seed: int) -> Share:
    """The mean over groups, with an interval by bootstrap over groups (percentiles).

    Args:
        part: [groups, thresholds], from `present`, or the difference of two such.
        n_resamples: of the bootstrap.
        seed: equal seeds draw equal groups.
    """
    n = len(part)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)  # [resamples, groups]
    low, high = np.quantile(counts @ part / n, [0.025, 0.975], axis=0)
    return Share(part.mean(axis=0), low, high)
