"""ReasonScore: which SAE features act on a reasoning vocabulary, as pure tensor code.

Everything is a function of sums over token positions, so that one pass over the text serves every feature and sums
of separate batches, ranks or shards simply add up. The definition (Galichin et al. 2025, arXiv 2503.18878):

A vocabulary of spellings is grouped into words w by ``lstrip().lower()``; |W| is the number of words. A position
belongs to w if it lies within ``left`` tokens before to ``right`` tokens after any token of a match of any spelling
of w, inside the same row. Ignored ids belong nowhere. P: positions of any word. N: all others that are not ignored.
With a_i(t) ≥ 0 the activation of feature i at position t, for SAE features whose decoder direction has unit norm,

    μ⁺_i = mean over P of a_i        μ⁻_i = mean over N        μ_i(w) = mean over positions of w
    p_i(w) = μ_i(w) / Σ_w' μ_i(w')   H_i = −Σ_w p_i(w) ln p_i(w) / ln |W|   (1 where |W| = 1)
    score_i = μ⁺_i / Σ_j μ⁺_j · H_i^α − μ⁻_i / Σ_j μ⁻_j          (ε = 1e-12 in each denominator)

where j runs over all features of the SAE. A mean over no positions is 0: a word that never occurs adds nothing to
the sum in H but counts in |W|.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-12
WordGroups = Mapping[str, Sequence[tuple[int, ...]]]


def group_spellings(
    spellings: Iterable[str], encode: Callable[[str], Sequence[int]]
) -> dict[str, list[tuple[int, ...]]]:
    """Words of the vocabulary, each with the distinct token sequences of its spellings, in order of first appearance.

    Args:
        spellings: for instance ``"wait"``, ``" wait"``, ``"Wait"``, ``" Wait"``: one word.
        encode: text to ids without special tokens around them.
    """
    groups: dict[str, list[tuple[int, ...]]] = {}
    for spelling in spellings:
        sequence = tuple(encode(spelling))
        sequences = groups.setdefault(spelling.lstrip().lower(), [])
        if sequence and sequence not in sequences:
            sequences.append(sequence)
    return groups


class Membership(NamedTuple):
    """Which positions of a batch belong to which set."""

    sets: Tensor
    """bool [batch, |W| + 2, pos]: one set for each word, then P (any word), then N (no word, not ignored)."""
    matches: Tensor
    """int64 [|W|]: how often a spelling of the word starts in the batch, ignored or not."""


def find_membership(
    tokens: Tensor, groups: WordGroups, *, left: int, right: int, ignored_ids: Sequence[int] = ()
) -> Membership:
    """Sort a batch's positions into the sets that ReasonScore averages over.

    A position counts once for a word however many of its matches reach it, and counts for every word that reaches it.

    Args:
        tokens: ids [batch, pos]; matches and windows end with the row.
        groups: what `group_spellings` gave.
        left: positions before a matched token that belong to it too.
        right: positions after it.
        ignored_ids: ids whose positions belong to no set.
    """
    batch, length = tokens.shape
    words = torch.zeros(batch, len(groups), length, dtype=torch.bool, device=tokens.device)
    matches = torch.zeros(len(groups), dtype=torch.int64, device=tokens.device)
    for index, sequences in enumerate(groups.values()):
        for sequence in sequences:
            starts = length - len(sequence) + 1
            if starts < 1:
                continue
            matched = torch.ones(batch, starts, dtype=torch.bool, device=tokens.device)
            for offset, token in enumerate(sequence):
                matched &= tokens[:, offset : offset + starts] == token
            for offset in range(len(sequence)):
                words[:, index, offset : offset + starts] |= matched
            matches[index] += matched.sum()
    words = _widen(words, left, right)
    kept = torch.ones_like(tokens, dtype=torch.bool)
    for ignored in ignored_ids:
        kept &= tokens != ignored
    words &= kept[:, None]
    any_word = words.any(dim=1, keepdim=True)
    return Membership(torch.cat([words, any_word, kept[:, None] & ~any_word], dim=1), matches)


def _widen(core: Tensor, left: int, right: int) -> Tensor:
    """Each true position [..., pos] also makes the ``left`` before and ``right`` after it true."""
    length = core.shape[-1]
    wide = core.clone()
    for shift in range(1, min(left, length - 1) + 1):
        wide[..., :-shift] |= core[..., shift:]
    for shift in range(1, min(right, length - 1) + 1):
        wide[..., shift:] |= core[..., :-shift]
    return wide


@dataclass
class ActivationSums:
    """What a pass over the text leaves behind: enough for the score and every statistic."""

    by_set: Tensor
    """float64 [|W| + 2, d_sae]: sum of activations over each set's positions."""
    n_positions: Tensor
    """int64 [|W| + 2]: positions of each set."""
    n_matches: Tensor
    """int64 [|W|]: matches of each word."""
    n_active: Tensor
    """int64 [d_sae]: positions, not ignored, where the feature is above 0."""
    maximum: Tensor
    """float32 [d_sae]: largest activation over positions that are not ignored."""

    @classmethod
    def zeros(cls, n_words: int, d_sae: int, device: torch.device | str = "cpu") -> ActivationSums:
        """Sums over no text."""

        def integers(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=device)

        return cls(
            by_set=torch.zeros(n_words + 2, d_sae, dtype=torch.float64, device=device),
            n_positions=integers(n_words + 2),
            n_matches=integers(n_words),
            n_active=integers(d_sae),
            maximum=torch.zeros(d_sae, device=device),
        )

    def count(self, membership: Membership) -> None:
        """Add a batch's positions and matches; once for each batch."""
        self.n_positions += membership.sets.sum(dim=(0, 2))
        self.n_matches += membership.matches

    def add(self, activations: Tensor, membership: Membership, features: slice = slice(None)) -> None:
        """Add a batch's activations for a block of features; each feature once for each batch.

        Rows are summed in the activations' precision (at least float32) and added to each other in float64, so the
        result hardly depends on how rows were put into batches.

        Args:
            activations: [batch, pos, features of the block]; overwritten with 0 at ignored positions.
            membership: of the same batch.
            features: which features of the SAE the block holds.
        """
        if activations.dtype not in (torch.float32, torch.float64):
            activations = activations.float()
        kept = membership.sets[:, -2:].any(dim=1)  # [batch, pos]
        activations.masked_fill_(~kept[..., None], 0)
        row_sums = torch.bmm(membership.sets.to(activations.dtype), activations)  # [batch, |W| + 2, features]
        self.by_set[:, features] += row_sums.double().sum(dim=0)
        self.n_active[features] += (activations > 0).sum(dim=(0, 1))
        self.maximum[features] = torch.maximum(self.maximum[features], activations.amax(dim=(0, 1)).float())


class ReasonScores(NamedTuple):
    """ReasonScore and its parts, float64."""

    score: Tensor
    """[d_sae]"""
    mean_pos: Tensor
    """[d_sae]: μ⁺, the mean activation on reasoning positions."""
    mean_neg: Tensor
    """[d_sae]: μ⁻, the mean activation on all others."""
    word_means: Tensor
    """[d_sae, |W|]: μ(w), the mean activation on each word's positions."""
    entropy: Tensor
    """[d_sae]: H, between 0 (one word only) and 1 (all words alike)."""


def reason_scores(by_set: Tensor, n_positions: Tensor, *, alpha: float) -> ReasonScores:
    """The score of every feature from the sums over all text.

    Args:
        by_set: `ActivationSums.by_set`, [|W| + 2, d_sae], of all features of the SAE.
        n_positions: `ActivationSums.n_positions`, [|W| + 2].
        alpha: weight of the entropy; 0 ignores how a feature spreads over the words.
    """
    means = by_set.double() / n_positions.clamp(min=1)[:, None]
    word_means, mean_pos, mean_neg = means[:-2], means[-2], means[-1]
    n_words = len(word_means)
    if n_words == 1:
        entropy = torch.ones_like(mean_pos)
    else:
        p = word_means / (word_means.sum(dim=0) + EPSILON)
        entropy = (-torch.xlogy(p, p).sum(dim=0) / math.log(n_words)).clamp(0, 1)
    share_pos = mean_pos / (mean_pos.sum() + EPSILON)
    share_neg = mean_neg / (mean_neg.sum() + EPSILON)
    return ReasonScores(share_pos * entropy**alpha - share_neg, mean_pos, mean_neg, word_means.T, entropy)
