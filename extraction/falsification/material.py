"""What the test works on: the two texts, the features' tokens, and the texts that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from falsification.injection import STRATEGIES, Injected, added_tokens, can_inject, inject, replaced
from falsification.tokens import FeatureTokens, NGrams, Text, find_ngrams, tokens_of_feature

TOKENS, CONTROL = 0, 1
"""Which tokens were put in."""
ALL, UNTOUCHED, SUM_UNTOUCHED = 0, 1, 2
"""The maximum over all positions, that without the injected ones, and the sum over the latter."""


@dataclass(frozen=True)
class Settings:
    """How the test is made."""

    comma: int
    """Id of a comma, for comma_list."""
    ignored_ids: tuple[int, ...] = ()
    """Ids at which activations count nowhere."""
    strategies: tuple[str, ...] = STRATEGIES
    n_texts: int = 500
    """Ordinary texts that tokens are put into, and as many reasoning texts."""
    text_length: int = 64
    """Tokens in a text."""
    seed: int = 42
    tokens_per_pass: int = 16 * 1024
    """Tokens in a forward pass: bounds the memory."""


class Observed(NamedTuple):
    """Rows of text, and the tested features' activations on them."""

    ids: np.ndarray
    """int64 [rows, context]"""
    parts: Sequence[np.ndarray]
    """float32 [features, rows, context] of one part of the rows after the other; 0 at ignored ids. May be mapped from
    files."""

    def of(self, feature: int) -> np.ndarray:
        """The activations of one feature, [rows, context]."""
        return np.concatenate([part[feature] for part in self.parts])


@dataclass
class PerText:
    """What was measured on each text; NaN: not yet, or not possible for the feature."""

    ordinary: np.ndarray
    """[features, texts]: the maximal activation."""
    reasoning: np.ndarray
    """[features, reasoning texts, length]: every activation."""
    changed: np.ndarray
    """[features, strategies + 1, TOKENS or CONTROL, ALL … SUM_UNTOUCHED, texts]; the last one is the removal of
    tokens, on the reasoning texts."""

    def arrays(self) -> dict[str, np.ndarray]:
        return {"ordinary": self.ordinary, "reasoning": self.reasoning, "changed": self.changed}


class Unit(NamedTuple):
    """A feature and what is done to its texts."""

    feature: int
    strategy: int
    """Index among the strategies; behind the last: the removal of tokens."""


class Experiment:
    """The texts and the features' tokens; everything but the model."""

    def __init__(self, reasoning: Observed, ordinary: Observed, settings: Settings) -> None:
        """Find every feature's tokens.

        Args:
            reasoning: rows of reasoning text.
            ordinary: rows of ordinary text, of the same context.
            settings: how the test is made.
        """
        self.reasoning, self.ordinary, self.settings = reasoning, ordinary, settings
        ids = np.concatenate([reasoning.ids, ordinary.ids])
        self.both = Text(ids, ~np.isin(ids, settings.ignored_ids))
        self.ngrams: list[NGrams] = [find_ngrams(self.both, n) for n in (1, 2, 3)]
        of_reasoning = Text(*(part[: len(reasoning.ids)] for part in self.both))
        self.tokens: list[FeatureTokens] = [
            tokens_of_feature(self.both, of_reasoning, self.ngrams, self.activations(feature))
            for feature in range(len(reasoning.parts[0]))
        ]
        self.removal = len(settings.strategies)
        """What stands for the removal of tokens among the strategies."""
        self.reasoning_texts, self.ordinary_texts = self._texts(reasoning), self._texts(ordinary)
        """ids [texts, length]"""

    def activations(self, feature: int) -> np.ndarray:
        """Of one feature on the reasoning rows, then on the ordinary ones: [rows, context]."""
        return np.concatenate([self.reasoning.of(feature), self.ordinary.of(feature)])

    def _texts(self, of: Observed) -> np.ndarray:
        """Pieces of the rows, the first of all rows before the second ones.

        If rows begin with ids that are ignored (bos), each of a row's pieces does.
        """
        starts_with_bos = int(np.isin(of.ids[:, 0], self.settings.ignored_ids).all())
        size = self.settings.text_length - starts_with_bos
        pieces = [
            np.concatenate([of.ids[:, :starts_with_bos], of.ids[:, start : start + size]], axis=1)
            for start in range(starts_with_bos, of.ids.shape[1] - size + 1, size)
        ]
        return np.concatenate(pieces)[: self.settings.n_texts]

    def units(self) -> list[Unit]:
        """All that is to be done, by length, so that texts of one length can share a pass."""
        strategies = self.settings.strategies
        order = sorted(range(len(strategies)), key=lambda index: added_tokens(strategies[index]))
        features = range(len(self.tokens))
        removals = [Unit(f, self.removal) for f in features if self.tokens[f].can_be_replaced]
        return removals + [Unit(f, s) for s in order for f in features if can_inject(self.tokens[f], strategies[s])]

    def variants(self, unit: Unit) -> tuple[list[Injected], ...]:
        """The changed texts of a unit: with the feature's tokens and with controls; for the removal, without them."""
        tokens, settings = self.tokens[unit.feature], self.settings
        if unit.strategy == self.removal:
            return (replaced(self.reasoning_texts, tokens),)
        texts = self.ordinary_texts
        first = int(np.isin(texts[:, 0], settings.ignored_ids).all())  # bos stays where it is
        strategy = settings.strategies[unit.strategy]
        seed = (settings.seed, unit.feature, STRATEGIES.index(strategy))
        return inject(texts, tokens, strategy, first=first, comma=settings.comma, seed=seed)

    def n_texts(self, unit: Unit) -> int:
        """Texts that `variants` gives for a unit."""
        if unit.strategy == self.removal:
            return len(self.reasoning_texts)
        return 2 * len(self.ordinary_texts)
