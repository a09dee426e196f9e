"""Tokens as people write them: no Ġ, Ċ or ▁, line breaks visible, and the bytes of a cut character as bytes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍", "\N{ZERO WIDTH SPACE}": "␣", "\N{NO-BREAK SPACE}": " "})
CUT = "\N{REPLACEMENT CHARACTER}"
"""What decoders give for a character of which not all bytes are there."""


def token_text(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    """A function from one id to its text, and from a list of ids to a list; an id below 0 is no text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}

    @functools.cache
    def one(token: int) -> str:
        if token < 0:
            return ""
        text = span_text(tokenizer, [token])
        piece = tokenizer.convert_ids_to_tokens(token) or ""
        if CUT in text and (match := re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece)):
            return f"\\x{match[1].lower()}"
        if CUT in text and all(character in byte_of for character in piece):
            text = bytes(byte_of[character] for character in piece).decode("utf-8", "backslashreplace")
        return text.translate(VISIBLE)

    def decode(tokens: Any) -> Any:
        if hasattr(tokens, "tolist"):
            tokens = tokens.tolist()
        return one(tokens) if isinstance(tokens, int) else [decode(token) for token in tokens]

    return decode


def span_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of neighbouring ids, characters that lie across several of them whole, line breaks visible."""
    if not tokens:
        return ""
    text = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    # SentencePiece's decoders take the space away that the first word begins with.
    if (tokenizer.convert_ids_to_tokens(tokens[0]) or "").startswith("▁") and not text.startswith(" "):
        text = f" {text}"
    return text.translate(VISIBLE)
