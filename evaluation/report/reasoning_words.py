"""How often a text uses the words of the reasoning vocabulary.

Spellings are grouped into words as ReasonScore groups them, by ``lstrip().lower()``. In text a spelling counts where it
stands as whole words in the vocabulary's own capitals: "Wait," and "wait" for ``wait``, but neither "waiting", nor
"but" where the vocabulary has only "But", which begins sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformer_lens_r1.shared.vocabulary import word_of

PER = 1000
"""Rates are per so many tokens."""


class WordCounter:
    """Counts the words of a vocabulary; ``words`` are in the order of their first spelling."""

    words: tuple[str, ...]

    def __init__(self, spellings: Sequence[str]) -> None:
        forms = dict.fromkeys(" ".join(spelling.split()) for spelling in spellings)
        self.words = tuple(dict.fromkeys(map(word_of, forms)))
        self._place = {form: self.words.index(word_of(form)) for form in forms}
        # The longest first: of "let me" and "let me see" the longer one counts.
        self.forms = sorted(forms, key=lambda form: (-len(form), form))
        alternatives = "|".join(r"\s+".join(map(re.escape, form.split())) for form in self.forms)
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)")

    def count(self, text: str) -> list[int]:
        """How often each of ``words`` occurs."""
        counts = [0] * len(self.words)
        for match in self._pattern.finditer(text):
            counts[self._place[" ".join(match.group().split())]] += 1
        return counts
