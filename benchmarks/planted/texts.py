"""Texts of a small language, reasoning and ordinary ones; what differs between the two is planted.

A stream of sentences is cut into rows, each with one token before it: THINK in reasoning text, BOS in ordinary text. A
sentence is one of the openers, words, and a full stop. Reasoning text has shorter sentences, and more of the planted
tokens; the other words are alike in both, frequent and rare ones as in a language (Zipf).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BOS, THINK = 0, 1
N_IDS = 210


@dataclass(frozen=True)
class Vocabulary:
    """Which id is what. All differ."""

    stop: int
    comma: int
    lone: int
    """Of the feature that fires on one token."""
    three: tuple[int, ...]
    """Of the feature that fires on any of three."""
    left: int
    right: int
    """Of the feature that fires on `right`, but only just after `left`."""
    openers: tuple[int, ...]
    """Sentences begin with one of these, which are nowhere else."""
    words: tuple[int, ...]
    """The rest, frequent ones first."""

    @property
    def planted(self) -> tuple[int, ...]:
        return (self.lone, *self.three, self.left, self.right)


@dataclass(frozen=True)
class Kind:
    """How often things are in a kind of text: probabilities at each place for a word."""

    marker: int
    """The token before each row."""
    sentence: tuple[int, int]
    """Shortest and longest sentence, in tokens, full stop included."""
    lone: float
    three: float
    """Of each of the three."""
    pair: float
    """Of `left` and `right` after it."""
    left: float = 0.01
    """Of `left` and another word after it."""
    right: float = 0.02
    comma: float = 0.03


REASONING = Kind(THINK, (6, 24), lone=0.02, three=0.01, pair=0.015)
ORDINARY = Kind(BOS, (40, 200), lone=0.002, three=0.001, pair=0.002)


def draw_vocabulary(random: np.random.Generator) -> Vocabulary:
    stop, comma, lone, a, b, c, left, right, *rest = (random.permutation(N_IDS - 2) + 2).tolist()
    return Vocabulary(stop, comma, lone, (a, b, c), left, right, tuple(rest[:8]), tuple(rest[8:]))


def draw_rows(kind: Kind, vocabulary: Vocabulary, n_rows: int, context: int, random: np.random.Generator) -> np.ndarray:
    """Rows of one kind of text, int64 [n_rows, context]; the first begins within a sentence, as the others do."""
    choices = [(vocabulary.lone,), *((token,) for token in vocabulary.three), (vocabulary.left, vocabulary.right)]
    weights = [kind.lone, *[kind.three] * 3, kind.pair]
    zipf = 1 / (np.arange(len(vocabulary.words)) + 2.7)
    zipf /= zipf.sum()
    choices += [(vocabulary.right,), (vocabulary.comma,), *((word,) for word in vocabulary.words)]
    weights += [kind.right, kind.comma]
    # `left` without `right` has a frequent or rare word after it, so that it is never before `right` by chance.
    choices += [(vocabulary.left, word) for word in vocabulary.words]
    weights = [*weights, *((1 - sum(weights) - kind.left) * zipf), *(kind.left * zipf)]

    wanted, skipped = n_rows * (context - 1), int(random.integers(kind.sentence[1]))
    stream: list[int] = []
    drawn = iter(random.choice(len(choices), size=skipped + wanted + kind.sentence[1], p=weights).tolist())
    while len(stream) < skipped + wanted:
        end = len(stream) + int(random.integers(kind.sentence[0], kind.sentence[1] + 1)) - 1
        stream.append(int(random.choice(vocabulary.openers)))
        while len(stream) < end:
            stream += choices[next(drawn)]
        stream.append(vocabulary.stop)
    rows = np.array(stream[skipped : skipped + wanted]).reshape(n_rows, context - 1)
    return np.concatenate([np.full((n_rows, 1), kind.marker), rows], axis=1)
