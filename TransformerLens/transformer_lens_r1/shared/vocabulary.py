"""The reasoning vocabulary: the file of spellings, and which word a spelling belongs to."""

import json
from pathlib import Path

from transformer_lens_r1.shared.errors import UserError


def word_of(spelling: str) -> str:
    """The word that a spelling belongs to: ``"wait"``, ``" wait"``, ``"Wait"`` and ``" Wait"`` are one."""
    return spelling.lstrip().lower()


def read_vocabulary(path: Path) -> list[str]:
    """The spellings of the reasoning words.

    Raises:
        UserError: no such file, not a JSON list of strings, or nothing in it.
    """
    try:
        spellings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the vocabulary --tokens_str_path {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the vocabulary {path} is not JSON ({error}); expected a list of strings") from error
    if not isinstance(spellings, list) or not all(isinstance(spelling, str) for spelling in spellings):
        raise UserError(f"the vocabulary {path} is not a list of strings")
    if not any(spelling.strip() for spelling in spellings):
        raise UserError(f'the vocabulary {path} is empty: expected words like "wait", " wait", "Wait"')
    return [spelling for spelling in spellings if spelling.strip()]
