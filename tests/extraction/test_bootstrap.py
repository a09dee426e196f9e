"""Intervals and stability against a bootstrap written as a loop over blocks, and against fresh draws of the text."""

import math

import numpy as np
import pytest
import torch
from reasonscore import bootstrap
from reasonscore.score import ActivationSums


def numpy_scores(sums: np.ndarray, positions: np.ndarray, alpha: float) -> np.ndarray:
    means = sums / np.maximum(positions, 1)[:, None]
    words = means[:-2]
    shares = words / (words.sum(axis=0) + 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(shares > 0, shares * np.log(shares), 0).sum(axis=0) / math.log(len(words))
    return means[-2] / means[-2].sum() * np.clip(entropy, 0, 1) ** alpha - means[-1] / means[-1].sum()


def draw_text(rng: np.random.Generator, n_blocks: int, d_sae: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of blocks whose features have means of their own on words and elsewhere, and positions that vary."""
    positions = rng.integers(5, 15, size=(n_blocks, 5))
    positions[:, 3] = positions[:, :3].sum(axis=1)
    positions[:, 4] = 100 - positions[:, 3]
    strength = np.linspace(0.5, 1.5, d_sae)
    means = np.stack([strength, strength[::-1] + 0.2, np.ones(d_sae), strength, np.ones(d_sae)])
    noise = rng.gamma(4.0, 0.25, size=(n_blocks, 5, d_sae))
    by_block = means * noise * positions[:, :, None]
    by_block[:, 3] = by_block[:, :3].sum(axis=1)
    return torch.from_numpy(by_block), torch.from_numpy(positions)


def activation_sums(by_block: torch.Tensor, positions: torch.Tensor) -> ActivationSums:
    d_sae = by_block.shape[-1]
    ones = torch.ones(d_sae)
    return ActivationSums(by_block, positions, torch.ones(3).long(), ones.long(), ones, torch.ones(4, d_sae))


def test_intervals_and_stability_equal_a_loop_over_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    by_block, positions = draw_text(np.random.default_rng(1), 9, 20)
    sums = activation_sums(by_block, positions)
    monkeypatch.setattr(bootstrap, "BYTES_AT_ONCE", 8 * 5 * 20 * 7)  # seven resamples at a time
    got = bootstrap.bootstrap_top_features(sums, alpha=0.7, k=6, n_resamples=200, seed=3)

    weights = bootstrap.resample_weights(200, 9, 3).numpy()
    assert (weights.sum(axis=1) == 9).all() and len(np.unique(weights, axis=0)) > 150
    resampled = np.empty((200, 20))
    for index, counts in enumerate(weights):
        drawn = [block for block, count in enumerate(counts) for _ in range(int(count))]
        chosen, counted = np.zeros((5, 20)), np.zeros(5)
        for block in drawn:
            chosen += by_block[block].numpy()
            counted += positions[block].numpy()
        resampled[index] = numpy_scores(chosen, counted, 0.7)
    actual = numpy_scores(by_block.sum(0).numpy(), positions.sum(0).numpy(), 0.7)
    best = np.argsort(-actual)[:6]
    in_top = np.array([np.isin(best, np.argsort(-row)[:6]) for row in resampled])

    assert got.features.tolist() == best.tolist()
    np.testing.assert_allclose(got.low, np.percentile(resampled[:, best], 2.5, axis=0), rtol=1e-9)
    np.testing.assert_allclose(got.high, np.percentile(resampled[:, best], 97.5, axis=0), rtol=1e-9)
    np.testing.assert_allclose(got.in_top_k, in_top.mean(axis=0), rtol=1e-12)
    assert got.overlap == pytest.approx(in_top.mean()) and 0.3 < got.overlap < 1


def test_intervals_hold_the_true_score_in_about_95_of_100_texts() -> None:
    rng = np.random.default_rng(7)
    by_block, positions = draw_text(rng, 50_000, 12)
    true = torch.from_numpy(numpy_scores(by_block.sum(0).numpy(), positions.sum(0).numpy(), 0.7))
    held = total = 0
    for text in range(100):
        by_block, positions = draw_text(rng, 64, 12)
        sums = activation_sums(by_block, positions)
        got = bootstrap.bootstrap_top_features(sums, alpha=0.7, k=12, n_resamples=200, seed=text)
        held += int(((got.low <= true[got.features]) & (true[got.features] <= got.high)).sum())
        total += 12
    assert 0.91 <= held / total <= 0.98
