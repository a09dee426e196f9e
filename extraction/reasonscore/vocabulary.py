"""What a tokenizer makes of the reasoning vocabulary, for people to check before the pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from transformer_lens_r1.shared.vocabulary import word_of

if TYPE_CHECKING:
    from torch import Tensor


def contains(sequence: Sequence[int], part: Sequence[int]) -> bool:
    """Whether ``part`` stands in ``sequence``, contiguous."""
    width = len(part)
    return any(tuple(sequence[start : start + width]) == tuple(part) for start in range(len(sequence) - width + 1))


def vocabulary_report(
    spellings: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    token_text: Callable[[int], str],
    tokens: Tensor,
) -> list[str]:
    """Lines that say how each word is matched, then warnings of spellings whose matches may surprise.

    Warned of: a spelling whose token sequence is part of another word's (each match of that word is one of this word
    too), one that never occurs in the text, and one that gives no tokens.

    Args:
        spellings: what `read_vocabulary` gave.
        encode: text to ids without special tokens around them.
        token_text: an id as the tokenizer shows it.
        tokens: the rows that will be scored, int64 [rows, context].
    """
    from reasonscore.score import find_matches, group_spellings

    words = list(group_spellings(spellings, encode))
    sequences = {spelling: tuple(encode(spelling)) for spelling in dict.fromkeys(spellings)}
    counts = {
        sequence: int(find_matches(tokens, sequence).sum()) if sequence else 0 for sequence in set(sequences.values())
    }
    lines, warnings, absent = [], [], []
    for word in words:
        own = {spelling: sequence for spelling, sequence in sequences.items() if word_of(spelling) == word}
        shown = []
        for spelling, sequence in own.items():
            ids = " ".join(map(str, sequence))
            shown.append(f"{spelling!r} [{ids}] {'|'.join(map(token_text, sequence))}")
            if not sequence:
                warnings.append(f"warning: {spelling!r} gives no tokens, so it is never matched")
                continue
            if counts[sequence] == 0:
                absent.append(f"{spelling!r} [{ids}]")
            for other, longer in sequences.items():
                if word_of(other) != word and contains(longer, sequence):
                    warnings.append(
                        f"warning: {spelling!r} [{ids}] is part of {other!r} [{' '.join(map(str, longer))}]: where "
                        f"that is matched, it counts for {word!r} as well as for {word_of(other)!r}"
                    )
        lines.append(f"{word}: " + ", ".join(shown))
    if absent:
        warnings.append(f"warning: never in the text: {', '.join(absent)}")
    return ["words and their token sequences:", *(f"  {line}" for line in lines), *warnings]
