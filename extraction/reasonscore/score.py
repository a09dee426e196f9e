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

Beside the score, four shares say where on P a feature acts, because the window also takes in whatever stands next to a
word. Each position of P is in one part, the first that applies: ``white_space``, its token decodes to white space
only; ``on_words``, it is a token of a match; ``before``, a match starts at most ``left`` after it; ``after``, a match
ends at most ``right`` before it. Where both do, the nearer one decides; equally near, it is before. A part's share is
the sum of a_i over the part, divided by that over P; a feature that is silent on P has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from transformer_lens_r1.shared.vocabulary import word_of

EPSILON = 1e-12
N_BLOCKS = 64
"""Blocks of rows that sums are kept for: enough for a bootstrap, few enough for 65,536 features (0.4 GB)."""
PARTS = ("on_words", "before", "after", "white_space")
"""Of the reasoning positions P."""
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
        sequences = groups.setdefault(word_of(spelling), [])
        if sequence and sequence not in sequences:
            sequences.append(sequence)
    return groups


class Membership(NamedTuple):
    """Which positions of a batch belong to which set."""

    sets: Tensor
    """bool [batch, |W| + 6, pos]: one set for each word, P (any word), N (no word, not ignored), the `PARTS` of P."""
    matches: Tensor
    """int64 [|W|]: how often a spelling of the word starts in the batch, ignored or not."""
    ignored: Tensor
    """int64 [ignored positions]: where they are among the batch's positions, counted through all rows."""

    def to(self, device: torch.device | str) -> Membership:
        """The same on another device; to CUDA without making the host wait."""
        if torch.device(device).type == "cpu":
            return self
        return Membership(*(part.pin_memory().to(device, non_blocking=True) for part in self))


def find_matches(tokens: Tensor, sequence: Sequence[int]) -> Tensor:
    """Where a token sequence starts, bool [batch, pos − len(sequence) + 1]; no match reaches over the row's end.

    Args:
        tokens: ids [batch, pos].
        sequence: at least one id.
    """
    starts = max(0, tokens.shape[1] - len(sequence) + 1)
    matched = tokens[:, :starts] == sequence[0]
    for offset in range(1, len(sequence)):
        matched &= tokens[:, offset : offset + starts] == sequence[offset]
    return matched


def find_membership(
    tokens: Tensor,
    groups: WordGroups,
    *,
    left: int,
    right: int,
    ignored_ids: Sequence[int] = (),
    white_space_ids: Sequence[int] = (),
    published_windows: bool = False,
) -> Membership:
    """Sort a batch's positions into the sets that ReasonScore averages over, and the parts of P.

    A position counts once for a word however many of its matches reach it, and counts for every word that reaches it.

    Args:
        tokens: ids [batch, pos], best on the CPU; matches and windows end with the row.
        groups: what `group_spellings` gave.
        left: positions before a matched token that belong to it too.
        right: positions after it.
        ignored_ids: ids whose positions belong to no set.
        white_space_ids: ids that decode to white space only.
        published_windows: with the published code's mistake at the start of rows, see `_widen_as_published`.
    """
    batch, length = tokens.shape
    words = torch.zeros(batch, len(groups), length, dtype=torch.bool, device=tokens.device)
    matches = torch.zeros(len(groups), dtype=torch.int64, device=tokens.device)
    matched_tokens = torch.zeros_like(tokens, dtype=torch.bool)
    for index, sequences in enumerate(groups.values()):
        for sequence in sequences:
            matched = find_matches(tokens, sequence)
            spelt = torch.zeros_like(tokens, dtype=torch.bool)
            for offset in range(len(sequence)):
                spelt[:, offset : offset + matched.shape[1]] |= matched
            matched_tokens |= spelt
            words[:, index] |= _widen_as_published(spelt, left, right) if published_windows else spelt
            matches[index] += matched.sum()
    if not published_windows:
        words = _widen(words, left, right)
    kept = torch.ones_like(tokens, dtype=torch.bool)
    for ignored in ignored_ids:
        kept &= tokens != ignored
    words &= kept[:, None]
    any_word = words.any(dim=1, keepdim=True)
    white_space = torch.isin(tokens, torch.tensor(list(white_space_ids), dtype=tokens.dtype, device=tokens.device))
    parts = any_word & _parts(matched_tokens, white_space, left, right)
    sets = torch.cat([words, any_word, kept[:, None] & ~any_word, parts], dim=1)
    return Membership(sets, matches, (~kept).flatten().nonzero()[:, 0])


def _widen(core: Tensor, left: int, right: int) -> Tensor:
    """Each true position [..., pos] also makes the ``left`` before and ``right`` after it true."""
    length = core.shape[-1]
    wide = core.clone()
    for shift in range(1, min(left, length - 1) + 1):
        wide[..., :-shift] |= core[..., shift:]
    for shift in range(1, min(right, length - 1) + 1):
        wide[..., shift:] |= core[..., :-shift]
    return wide


def _widen_as_published(core: Tensor, left: int, right: int) -> Tensor:
    """`_widen` for one spelling, [batch, pos], as the published code does it.

    It counts windows open at each position: one more where a window begins, one less after its end. Windows that the
    start of the row cuts off all begin at 0, which counts once, but each of their ends counts. So the count is too low
    in the rest of the row, and later windows of the spelling are lost.
    """
    length = core.shape[1]
    begins, ends = torch.zeros_like(core), torch.zeros_like(core)
    begins[:, 0] = core[:, : left + 1].any(dim=1)
    begins[:, 1 : max(1, length - left)] = core[:, left + 1 :]
    ends[:, right + 1 :] = core[:, : max(0, length - right - 1)]
    return (begins.int() - ends.int()).cumsum(dim=1) > 0


def _parts(matched: Tensor, white_space: Tensor, left: int, right: int) -> Tensor:
    """Which of the `PARTS` a position near a match is in, bool [batch, 4, pos].

    Args:
        matched: whether a position is a token of a match, [batch, pos].
        white_space: whether its token is white space only, [batch, pos].
    """
    taken = matched.clone()
    before, after = torch.zeros_like(matched), torch.zeros_like(matched)
    for distance in range(1, min(max(left, right), matched.shape[1] - 1) + 1):
        for side, reach, shift in ((before, left, -distance), (after, right, distance)):
            if distance <= reach:
                near = pad(matched, (shift, -shift)) & ~taken  # moved, and cut off at the row's end
                side |= near
                taken |= near
    return torch.stack([matched & ~white_space, before & ~white_space, after & ~white_space, white_space], dim=1)


class BlockOfRows(NamedTuple):
    """Rows of a batch that belong to the same block of the text."""

    block: int
    rows: slice


def blocks_of_rows(first: int, batch: int, n_rows: int, n_blocks: int = N_BLOCKS) -> list[BlockOfRows]:
    """The blocks that a batch's rows belong to: row r of the text is in block ⌊r · n_blocks / n_rows⌋.

    Args:
        first: the batch's first row within the text.
        batch: rows in the batch.
        n_rows: rows of the text.
        n_blocks: at most one for each row.
    """
    n_blocks = min(n_blocks, n_rows)
    parts: list[BlockOfRows] = []
    start = 0
    while start < batch:
        block = (first + start) * n_blocks // n_rows
        behind = -(-(block + 1) * n_rows // n_blocks)  # the first row of the next block
        stop = min(batch, behind - first)
        parts.append(BlockOfRows(block, slice(start, stop)))
        start = stop
    return parts


@dataclass
class ActivationSums:
    """What a pass over the text leaves behind: enough for the score, every statistic and the bootstrap.

    The text's rows, which were shuffled, are cut into contiguous blocks; sums are kept for each block.
    """

    by_block: Tensor
    """float64 [n_blocks, |W| + 2, d_sae]: sum of activations over each set's positions in each block."""
    positions_by_block: Tensor
    """int64 [n_blocks, |W| + 2]: positions of each set in each block."""
    n_matches: Tensor
    """int64 [|W|]: matches of each word."""
    n_active: Tensor
    """int64 [d_sae]: positions, not ignored, where the feature is above 0."""
    maximum: Tensor
    """float32 [d_sae]: largest activation over positions that are not ignored."""
    by_part: Tensor
    """float64 [4, d_sae]: sum of activations over each of the `PARTS` of P."""

    @classmethod
    def zeros(
        cls, n_words: int, d_sae: int, *, n_blocks: int = N_BLOCKS, device: torch.device | str = "cpu"
    ) -> ActivationSums:
        """Sums over no text. What is counted in tokens stays on the CPU, what comes from activations on ``device``."""
        return cls(
            by_block=torch.zeros(n_blocks, n_words + 2, d_sae, dtype=torch.float64, device=device),
            positions_by_block=torch.zeros(n_blocks, n_words + 2, dtype=torch.int64),
            n_matches=torch.zeros(n_words, dtype=torch.int64),
            n_active=torch.zeros(d_sae, dtype=torch.int64, device=device),
            maximum=torch.zeros(d_sae, device=device),
            by_part=torch.zeros(len(PARTS), d_sae, dtype=torch.float64, device=device),
        )

    @property
    def by_set(self) -> Tensor:
        """float64 [|W| + 2, d_sae]: sum of activations over each set's positions."""
        return self.by_block.sum(dim=0)

    @property
    def n_positions(self) -> Tensor:
        """int64 [|W| + 2]: positions of each set."""
        return self.positions_by_block.sum(dim=0)

    @property
    def shares(self) -> dict[str, Tensor]:
        """Of a feature's activation on P, the share in each of the `PARTS`, float64 [d_sae]; NaN if there is none."""
        return dict(zip(PARTS, self.by_part / self.by_part.sum(dim=0), strict=True))

    def count(self, membership: Membership, blocks: Sequence[BlockOfRows]) -> None:
        """Add a batch's positions and matches; once for each batch.

        Args:
            membership: of the batch, on the CPU.
            blocks: what `blocks_of_rows` gave for the batch.
        """
        positions = membership.sets[:, : self.positions_by_block.shape[1]].sum(dim=2)  # [batch, |W| + 2]
        for block, rows in blocks:
            self.positions_by_block[block] += positions[rows].sum(dim=0)
        self.n_matches += membership.matches

    def add(
        self,
        activations: Tensor,
        membership: Membership,
        blocks: Sequence[BlockOfRows],
        features: slice = slice(None),
    ) -> None:
        """Add a batch's activations for a block of features; each feature once for each batch.

        Rows are summed in the activations' precision (at least float32) and added to each other in float64, so the
        result hardly depends on how rows were put into batches. On CUDA the host waits for nothing.

        Args:
            activations: [batch, pos, features]; overwritten.
            membership: of the same batch, on the activations' device.
            blocks: what `blocks_of_rows` gave for the batch.
            features: which of the sums' features these are.
        """
        if activations.dtype not in (torch.float32, torch.float64):
            activations = activations.float()
        by_position = activations.view(-1, activations.shape[-1])  # [batch · pos, features]
        by_position.index_fill_(0, membership.ignored, 0)
        row_sums = torch.bmm(membership.sets.to(activations.dtype), activations)  # [batch, |W| + 6, features]
        row_sums, parts = row_sums.split([self.by_block.shape[1], len(PARTS)], dim=1)
        for block, rows in blocks:
            self.by_block[block, :, features] += row_sums[rows].double().sum(dim=0)
        self.by_part[:, features] += parts.double().sum(dim=0)
        self.maximum[features] = torch.maximum(self.maximum[features], by_position.amax(dim=0).float())
        # Ones where the feature is active, summed as a product with ones: a sum over booleans takes ten times as long.
        active = by_position.gt_(0)
        self.n_active[features] += (active.new_ones(1, len(active)) @ active)[0].long()

    def of_features(self, features: slice) -> ActivationSums:
        """The sums of some of the features."""
        return replace(
            self,
            by_block=self.by_block[..., features].contiguous(),  # ranks add up memory as it lies
            n_active=self.n_active[features],
            maximum=self.maximum[features],
            by_part=self.by_part[:, features].contiguous(),
        )

    def to(self, device: torch.device | str) -> ActivationSums:
        """The sums on another device; what is counted in tokens stays on the CPU."""
        return replace(
            self,
            by_block=self.by_block.to(device),
            n_active=self.n_active.to(device),
            maximum=self.maximum.to(device),
            by_part=self.by_part.to(device),
        )


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


def rank_features(scores: Tensor) -> Tensor:
    """Feature indices from the highest score down; equal scores by index."""
    return torch.sort(scores, descending=True, stable=True).indices


def ranks_of(scores: Tensor) -> list[int]:
    """Each feature's rank by score, from 1."""
    ranks = torch.empty(len(scores), dtype=torch.int64)
    ranks[rank_features(scores)] = torch.arange(1, len(scores) + 1)
    return ranks.tolist()
