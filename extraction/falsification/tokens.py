"""Which tokens and n-grams a feature is most active on, and tokens as frequent on which it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MIN_COUNT = 5
"""Occurrences that a token or n-gram needs before anything is said about it."""
TOP = 10
"""Top tokens, bigrams and trigrams of a feature."""
CONTEXTS = 3
"""Most frequent neighbours of a top token that contextual strategies draw from."""
SILENT = 0.05
"""A feature is silent on a token if its mean there is at most this share of its mean on its top tokens."""
NGram = tuple[int, ...]


class Text(NamedTuple):
    """Rows of tokens and what the features do on them."""

    ids: np.ndarray
    """int64 [rows, context]"""
    counted: np.ndarray
    """bool [rows, context]: False at ignored ids."""


class Controls(NamedTuple):
    """What is put in instead of a feature's tokens."""

    of_token: dict[int, int]
    """Of each token, one of like frequency; empty if there are too few."""
    silent: bool
    """Whether the feature is silent on all of them."""


@dataclass(frozen=True)
class FeatureTokens:
    """What is injected for a feature, and what as a control."""

    top: tuple[NGram, ...]
    """Top tokens, each as an n-gram of length 1."""
    bigrams: tuple[NGram, ...]
    trigrams: tuple[NGram, ...]
    before: dict[int, tuple[int, ...]]
    """Of each top token, the tokens most often before it in reasoning text."""
    after: dict[int, tuple[int, ...]]
    controls: Controls

    @property
    def can_be_replaced(self) -> bool:
        """Whether there are tokens to put in or take out, and controls of them."""
        return bool(self.top and self.controls.of_token)


class NGrams(NamedTuple):
    """The distinct n-grams of a text, and where each is."""

    grams: np.ndarray
    """int64 [n_grams, n]"""
    of_position: np.ndarray
    """int64 [rows, context]: which n-gram ends at the position; -1 if none does."""
    counts: np.ndarray
    """int64 [n_grams]"""


def find_ngrams(text: Text, n: int) -> NGrams:
    """All n-grams of a text that lie within a row and contain no ignored id."""
    base = int(text.ids.max()) + 1  # below 2^21 for every tokenizer there is, so that three ids are one int64
    starts = text.ids.shape[1] - n + 1
    keys, whole = np.zeros((len(text.ids), starts), dtype=np.int64), np.ones((len(text.ids), starts), dtype=bool)
    for offset in range(n):
        keys = keys * base + text.ids[:, offset : offset + starts]
        whole &= text.counted[:, offset : offset + starts]
    found, inverse, counts = np.unique(keys[whole], return_inverse=True, return_counts=True)
    of_position = np.full(text.ids.shape, -1, dtype=np.int64)
    of_position[:, n - 1 :][whole] = inverse
    grams = np.stack([found // base**power % base for power in range(n - 1, -1, -1)], axis=1)
    return NGrams(grams, of_position, counts)


def mean_by_ngram(ngrams: NGrams, activations: np.ndarray) -> np.ndarray:
    """Mean activation at the last token of each n-gram, float64 [n_grams].

    Args:
        ngrams: of the text.
        activations: of one feature, [rows, context].
    """
    at = ngrams.of_position >= 0
    sums = np.bincount(ngrams.of_position[at], weights=activations[at], minlength=len(ngrams.counts))
    return sums / np.maximum(ngrams.counts, 1)


def top_ngrams(ngrams: NGrams, means: np.ndarray, k: int = TOP) -> list[NGram]:
    """The k n-grams with the highest mean activation among those seen often enough and active at all."""
    often = (ngrams.counts >= MIN_COUNT) & (means > 0)
    candidates = np.flatnonzero(often)
    best = candidates[np.argsort(-means[candidates], kind="stable")[:k]]
    return [tuple(gram) for gram in ngrams.grams[best].tolist()]


def neighbours(text: Text, tokens: Sequence[int], offset: int) -> dict[int, tuple[int, ...]]:
    """Of each token, those most often ``offset`` positions from it, most frequent first; none at the ends of rows."""
    found: dict[int, tuple[int, ...]] = {}
    shifted = np.roll(text.ids, -offset, axis=1)
    valid = text.counted & np.roll(text.counted, -offset, axis=1)
    valid[:, slice(-offset, None) if offset > 0 else slice(0, -offset)] = False
    for token in tokens:
        counts = Counter(shifted[valid & (text.ids == token)].tolist())
        found[token] = tuple(
            neighbour for neighbour, _ in sorted(counts.items(), key=lambda c: (-c[1], c[0]))[:CONTEXTS]
        )
    return found


def match_controls(tokens: Sequence[int], unigrams: NGrams, means: np.ndarray, top: Sequence[NGram]) -> Controls:
    """Of each token, another of like frequency on which the feature is silent; different ones if there are enough.

    Of a feature that is active on most tokens, the quieter half of all tokens serves instead.

    Args:
        tokens: that need a control.
        unigrams: of both texts together.
        means: the feature's mean activation on each, [n_grams].
        top: the feature's top tokens.
    """
    ids = unigrams.grams[:, 0]
    place = {token: index for index, token in enumerate(ids.tolist())}
    level = np.mean([means[place[token]] for (token,) in top]) if top else 0.0
    others = (unigrams.counts >= MIN_COUNT) & ~np.isin(ids, list(tokens))
    free = np.flatnonzero(others & (means <= SILENT * level))
    silent = len(free) >= len(tokens)
    if not silent:
        free = np.flatnonzero(others & (means <= np.median(means[others]))) if others.any() else free
    log_counts = np.log(unigrams.counts)
    found: dict[int, int] = {}
    candidates = free
    for token in sorted(tokens, key=lambda token: -unigrams.counts[place[token]]):  # frequent ones have fewest peers
        if not len(candidates):
            return Controls({}, silent)
        free = free if len(free) else candidates
        nearest = int(np.abs(log_counts[free] - log_counts[place[token]]).argmin())
        found[token] = int(ids[free[nearest]])
        free = np.delete(free, nearest)
    return Controls(found, silent)


def tokens_of_feature(both: Text, reasoning: Text, ngrams: Sequence[NGrams], activations: np.ndarray) -> FeatureTokens:
    """A feature's tokens by the method of Ma et al. 2026, and our controls of them.

    Args:
        both: reasoning and ordinary text together.
        reasoning: the reasoning text alone.
        ngrams: of both texts, for n of 1, 2 and 3.
        activations: of the feature on both texts, [rows, context].
    """
    means = [mean_by_ngram(found, activations) for found in ngrams]
    top, bigrams, trigrams = (tuple(top_ngrams(*pair)) for pair in zip(ngrams, means, strict=True))
    ids = [token for (token,) in top]
    before, after = neighbours(reasoning, ids, -1), neighbours(reasoning, ids, 1)
    used = {*ids, *(token for gram in (*bigrams, *trigrams) for token in gram)}
    used |= {token for found in (before, after) for some in found.values() for token in some}
    return FeatureTokens(top, bigrams, trigrams, before, after, match_controls(sorted(used), ngrams[0], means[0], top))
