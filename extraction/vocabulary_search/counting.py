"""How often words and phrases occur in reasoning and in solutions, in two readings of the text and bounded memory.

A word is a run of letters, with apostrophes inside it, in lower case: "Let's", "naïve". Digits and all other characters
end it: "x2" has the word "x", "\\frac" the word "frac". A phrase is two or three words with nothing but white space
between them. The second reading counts phrases of the words that occur often enough: no other can itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import regex
from tqdm import tqdm

from transformer_lens_r1.chat_format import END_THINK, THINK, MalformedRow

# Letters with their marks, which the scripts of India write as characters of their own.
WORD = regex.compile(r"[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)*")
WORD_OR_OTHER = regex.compile(WORD.pattern + r"|\S")
PHRASE_LENGTHS = (2, 3)
LIMIT = 3_000_000
"""Different words, or phrases of one length, that are counted at a time: some 1 GB for each."""


class PairedTexts:
    """Reasoning and solution of each row, one row after the other, as often as wanted."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        split: Callable[[Mapping[str, Any]], tuple[str, str]],
        n_rows: int | None,
    ) -> None:
        self.rows, self.split, self.n_rows = rows, split, n_rows
        self.faults: list[tuple[int, str]] = []
        """Index and fault of each malformed row; they are left out."""

    def read(self, what: str) -> Iterator[tuple[str, str]]:
        """All pairs, with a progress bar called ``what``; afterwards `n_rows` and `faults` are known."""
        self.faults, index = [], -1
        for index, row in enumerate(tqdm(self.rows, desc=what, total=self.n_rows, unit="row", unit_scale=True)):
            try:
                yield self.split(row)
            except MalformedRow as error:
                self.faults.append((index, str(error)))
        self.n_rows = index + 1


def split_columns(row: Mapping[str, Any], columns: tuple[str, str]) -> tuple[str, str]:
    """Reasoning and solution where each has a column.

    Raises:
        MalformedRow: one of them is not text.
    """
    for column in columns:
        if not isinstance(row[column], str):
            raise MalformedRow(f"field {column!r} is a {type(row[column]).__name__}, expected text")
    return row[columns[0]], row[columns[1]]


def split_thought(row: Mapping[str, Any], column: str) -> tuple[str, str]:
    """What stands between ``<think>`` and ``</think>``, and what follows; without ``<think>``, all that stands before.

    Raises:
        MalformedRow: the column is not text, or does not have ``</think>`` exactly once.
    """
    text, _ = split_columns(row, (column, column))
    before, end, solution = text.partition(END_THINK)
    if not end:
        raise MalformedRow(f"field {column!r} has no {END_THINK}")
    if THINK in solution or END_THINK in solution:
        raise MalformedRow(f"field {column!r} has several thoughts, so that text is not one or the other")
    return before.rpartition(THINK)[2], solution


class Counts:
    """Occurrences in reasoning and in solutions of the most frequent of some words or phrases.

    Above ``limit`` different ones the rarer half is forgotten. So a count may be too small, both texts together by no
    more than `short_by`; one forgotten and seen again starts at 0 (lossy counting, Manku & Motwani 2002).
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.short_by = limit, 0
        self.texts: tuple[Counter[Hashable], Counter[Hashable]] = (Counter(), Counter())

    def add(self, text: int, found: Iterable[Hashable]) -> None:
        """Count what was found in reasoning (``text`` 0) or in a solution (1)."""
        self.texts[text].update(found)
        if sum(map(len, self.texts)) > self.limit:
            self._forget()

    def frequent(self, min_count: int) -> dict[Hashable, tuple[int, int]]:
        """Both counts of all that occur ``min_count`` times, both texts together."""
        reasoning, solution = self.texts
        return {key: (reasoning[key], solution[key]) for key in self._totals(min_count)}

    def _totals(self, at_least: int) -> dict[Hashable, int]:
        reasoning, solution = self.texts
        totals = {key: count + solution[key] for key, count in reasoning.items()}
        totals |= {key: count for key, count in solution.items() if key not in reasoning}
        return {key: total for key, total in totals.items() if total >= at_least}

    def _forget(self) -> None:
        totals = self._totals(0)
        median = sorted(totals.values())[len(totals) // 2]
        for key, total in totals.items():
            if total <= median:
                for counter in self.texts:
                    del counter[key]  # a Counter takes an absent key for one of count 0
        self.short_by += median


def count_words(texts: PairedTexts) -> tuple[Counts, tuple[int, int]]:
    """The first reading: the words, and the number of all words in reasoning and in solutions."""
    counts, n_words = Counts(), [0, 0]
    for pair in texts.read("words"):
        for text, content in enumerate(pair):
            words = WORD.findall(content.lower())
            n_words[text] += len(words)
            counts.add(text, words)
    return counts, (n_words[0], n_words[1])


def count_phrases(texts: PairedTexts, words: Iterable[str]) -> dict[int, Counts]:
    """The second reading: the phrases of these words, as tuples, by length."""
    known = {word: word for word in words}  # so that a word of many phrases is in memory once
    counts = {length: Counts() for length in PHRASE_LENGTHS}
    for pair in texts.read("phrases"):
        for text, content in enumerate(pair):
            found = [known.get(word) for word in WORD_OR_OTHER.findall(content.lower())]
            for length in PHRASE_LENGTHS:
                grams = zip(*(found[start:] for start in range(length)), strict=False)
                counts[length].add(text, (gram for gram in grams if None not in gram))
    return counts
