"""What a tokenizer makes of the reasoning vocabulary, for people to check before the pass, and of white space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, tensor

from reasonscore.score import find_matches
from transformer_lens_r1.shared.vocabulary import word_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def white_space_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that decode to white space only, in order; some milliseconds for each 1,000 ids."""
    ids = sorted(tokenizer.get_vocab().values())
    # Each id twice, because some decoders take away the space that a text begins with.
    texts = tokenizer.batch_decode([[token, token] for token in ids], clean_up_tokenization_spaces=False)
    return [token for token, text in zip(ids, texts, strict=True) if text.isspace()]


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
    sequences = {spelling: tuple(encode(spelling)) for spelling in spellings}
    shown = {spelling: f"{spelling!r} [{' '.join(map(str, ids))}]" for spelling, ids in sequences.items()}
    lines: dict[str, list[str]] = {}
    warnings, absent = [], []
    for spelling, ids in sequences.items():
        word = word_of(spelling)
        lines.setdefault(word, []).append(f"{shown[spelling]} {'|'.join(map(token_text, ids))}")
        if not ids:
            warnings.append(f"warning: {spelling!r} gives no tokens, so it is never matched")
            continue
        if not find_matches(tokens, ids).any():
            absent.append(shown[spelling])
        warnings += [
            f"warning: {shown[spelling]} is part of {shown[other]}: where that is matched, it counts for {word!r} as "
            f"well as for {word_of(other)!r}"
            for other, longer in sequences.items()
            if word_of(other) != word and find_matches(tensor([longer]), ids).any()
        ]
    if absent:
        warnings.append(f"warning: never in the text: {', '.join(absent)}")
    words = [f"  {word}: " + ", ".join(spellings) for word, spellings in lines.items()]
    return ["words and their token sequences:", *words, *warnings]
