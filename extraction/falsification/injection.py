"""The eight ways of putting a feature's tokens into a text, after Ma et al. 2026 (arXiv 2601.05679), on token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from falsification.tokens import FeatureTokens, NGram

STRATEGIES = (
    "prepend", "intersperse", "replace", "comma_list",
    "bigram_before", "inject_bigram", "trigram", "inject_trigram",
)  # fmt: skip
LENGTH = dict.fromkeys(STRATEGIES, 1) | {"bigram_before": 2, "inject_bigram": 2, "trigram": 3, "inject_trigram": 3}
"""Of the n-grams that a strategy puts in."""
TIMES = {1: 3, 2: 2, 3: 1}
"""How many n-grams of each length are put into a text."""


class Injected(NamedTuple):
    """A text with tokens in it that were not there before."""

    ids: np.ndarray
    """int64 [length]"""
    there: np.ndarray
    """bool [length]: at the tokens that were put in."""


def added_tokens(strategy: str) -> int:
    """By how many tokens a strategy makes a text longer."""
    n = LENGTH[strategy]
    return {"replace": 0, "comma_list": 2 * TIMES[n] - 1}.get(strategy, n * TIMES[n])


def can_inject(tokens: FeatureTokens, strategy: str) -> bool:
    """Whether the feature has what the strategy puts in."""
    source = {"inject_bigram": tokens.bigrams, "inject_trigram": tokens.trigrams}.get(strategy, tokens.top)
    return bool(source) and tokens.can_be_replaced


def draw(tokens: FeatureTokens, strategy: str, random: np.random.Generator) -> list[NGram]:
    """The n-grams to put into one text, drawn without replacement as long as there are enough.

    A token that never has a neighbour before it in reasoning text stands there twice: all draws are of one length.
    """
    n = LENGTH[strategy]
    source = {"inject_bigram": tokens.bigrams, "inject_trigram": tokens.trigrams}.get(strategy, tokens.top)
    chosen = [source[index] for index in _sample(len(source), TIMES[n], random)]
    if strategy not in ("bigram_before", "trigram"):
        return chosen

    def neighbour(found: dict[int, tuple[int, ...]], token: int) -> int:
        return int(random.choice(found[token])) if found[token] else token

    if strategy == "bigram_before":
        return [(neighbour(tokens.before, token), token) for (token,) in chosen]
    return [(neighbour(tokens.before, token), token, neighbour(tokens.after, token)) for (token,) in chosen]


def _sample(available: int, wanted: int, random: np.random.Generator) -> list[int]:
    order = random.permutation(available).tolist()
    return (order * (wanted // max(available, 1) + 1))[:wanted]


def place(
    text: np.ndarray, grams: Sequence[NGram], strategy: str, *, first: int, comma: int, random: np.random.Generator
) -> Injected:
    """Put n-grams into a text.

    Args:
        text: ids [length].
        grams: all of one length.
        strategy: of STRATEGIES.
        first: the first position that may move; 1 if the text begins with bos.
        comma: the id of a comma, for ``comma_list``.
        random: where positions are drawn from.
    """
    length = len(text)
    if strategy == "replace":
        ids, there = text.copy(), np.zeros(length, dtype=bool)
        positions = first + random.permutation(length - first)[: len(grams)]
        ids[positions], there[positions] = [token for (token,) in grams], True
        return Injected(ids, there)
    if strategy == "prepend":
        pieces = [(first, grams)]
    elif strategy == "comma_list":
        listed = [grams[0], *((comma, *gram) for gram in grams[1:])]
        pieces = [(int(random.integers(first, length + 1)), listed)]
    else:
        pieces = [(int(random.integers(first, length + 1)), [gram]) for gram in grams]
    ids, there, done = [], [], 0
    for position, inserted in sorted(pieces, key=lambda piece: piece[0]):
        new = [token for gram in inserted for token in gram]
        ids += [*text[done:position].tolist(), *new]
        there += [False] * (position - done) + [True] * len(new)
        done = position
    return Injected(np.array([*ids, *text[done:].tolist()]), np.array(there + [False] * (length - done)))


def inject(
    texts: np.ndarray, tokens: FeatureTokens, strategy: str, *, first: int, comma: int, seed: Sequence[int]
) -> tuple[list[Injected], list[Injected]]:
    """Every text with the feature's tokens, and with control tokens at the same places.

    Args:
        texts: ids [texts, length].
        tokens: of the feature.
        strategy: of STRATEGIES.
        first: the first position that may move.
        comma: the id of a comma.
        seed: decides all draws.

    Returns:
        The injected texts and their controls.
    """

    def controls(grams: Sequence[NGram]) -> list[NGram]:
        return [tuple(tokens.controls.of_token[token] for token in gram) for gram in grams]

    def drawn(change: Callable[[Sequence[NGram]], Sequence[NGram]]) -> list[Injected]:
        random = np.random.default_rng(list(seed))  # the same draws for both
        return [
            place(text, change(draw(tokens, strategy, random)), strategy, first=first, comma=comma, random=random)
            for text in texts
        ]

    return drawn(list), drawn(controls)


def replaced(texts: np.ndarray, tokens: FeatureTokens) -> list[Injected]:
    """Every text with each of the feature's top tokens replaced by its control: is the token needed?"""
    top = [token for (token,) in tokens.top]
    there = np.isin(texts, top)
    ids = texts.copy()
    for token in top:
        ids[texts == token] = tokens.controls.of_token[token]
    return [Injected(*pair) for pair in zip(ids, there, strict=True)]
