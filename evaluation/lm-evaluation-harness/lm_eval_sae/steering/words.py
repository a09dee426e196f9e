"""The words alone: a logit bias that makes them likelier while nothing is steered, a control of steering."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.files import read_content


@dataclass(frozen=True)
class WordBias:
    """What is added to the logits of tokens that are words by themselves."""

    bias: float
    tokens: Mapping[str, tuple[int, ...]]
    """Word → ids of the tokens that are one of its spellings; none for a word that takes several tokens."""

    @property
    def of_tokens(self) -> dict[int, float]:
        """Token id → what is added to its logit."""
        return {token: self.bias for tokens in self.tokens.values() for token in tokens}

    def record(self) -> dict[str, Any]:
        """Plain values for the results file."""
        return {"bias": self.bias, "tokens": {word: list(tokens) for word, tokens in self.tokens.items()}}


def read_word_bias(bias: float, file: Path, load_tokenizer: Callable[[], Any]) -> WordBias:
    """The tokens of a vocabulary's words.

    Args:
        bias: on each of their logits.
        file: JSON list of spellings, such as extraction/reason_tokens.json. A word is all spellings that are alike
            without capitals and leading spaces; each spelling counts with and without a space before it.
        load_tokenizer: returns the model's.

    Raises:
        UserError: it is no list of spellings, or no token is a word by itself.
    """
    spellings = read_content(file.expanduser(), name="sae_words")
    if not isinstance(spellings, list) or not all(isinstance(spelling, str) for spelling in spellings):
        raise UserError(f"{file} is not a JSON list of words, such as extraction/reason_tokens.json")
    tokenizer = load_tokenizer()
    tokens: dict[str, dict[int, None]] = {}
    for spelling in filter(None, map(str.strip, spellings)):
        of_word = tokens.setdefault(spelling.lower(), {})
        for text in (spelling, f" {spelling}"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == 1:
                of_word[ids[0]] = None
    if not any(tokens.values()):
        raise UserError(f"no word of {file} is a token of the model by itself: a logit bias cannot make it likelier")
    return WordBias(bias, {word: tuple(ids) for word, ids in tokens.items()})
