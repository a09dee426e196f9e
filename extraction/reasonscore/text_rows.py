"""Rows of tokens to score features on and to show them on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def holds_tokens(dataset: Dataset, column: str) -> bool:
    """True if the column holds rows of ids, False if it holds text.

    Raises:
        UserError: it holds neither.
    """
    feature = dataset.features[column]
    inner = getattr(feature, "feature", None)
    if inner is not None and getattr(inner, "dtype", "").startswith(("int", "uint")):
        return True
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        return False
    raise UserError(f"column {column!r} holds {feature}; expected text, or rows of token ids")


def sample_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str,
    context_size: int,
    prepend_bos: bool,
    n_samples: int,
    vocab_size: int,
    seed: int = 42,
) -> Tensor:
    """The first ``n_samples`` rows of tokens after a seeded shuffle (all rows where there are fewer).

    A column of ids is taken as it is. Text becomes rows as `transformer_lens_r1.tokenize_and_concatenate` says:
    documents joined by eos, cut into ``context_size`` ids, rows that would need padding left out.

    Args:
        dataset: one document or one row of ids per row.
        tokenizer: the model's.
        column: where the text or the ids are.
        context_size: ids in a row made from text; the SAE's own context.
        prepend_bos: start each row made from text with bos; what the SAE was trained with.
        n_samples: rows wanted.
        vocab_size: the model's; ids at or above it are refused.
        seed: of the shuffle.

    Returns:
        int64 [rows, context].

    Raises:
        UserError: less text than one row, rows of ids that differ in length, or an id outside the vocabulary.
    """
    import torch

    from transformer_lens_r1 import tokenize_and_concatenate

    if holds_tokens(dataset, column):
        rows = dataset.select_columns([column])
    else:
        rows = tokenize_and_concatenate(
            dataset,
            tokenizer,
            context_size=context_size,
            column=column,
            add_bos=prepend_bos,
            vocab_size=vocab_size,
        )
        column = "tokens"
    if len(rows) == 0:
        raise UserError(f"the text gives no row of {context_size} tokens: more text or a smaller context is needed")
    rows = rows.with_format(None).shuffle(seed=seed)
    rows = rows.select(range(min(n_samples, len(rows))))
    lists = rows[:][column]
    lengths = {len(row) for row in lists}
    if len(lengths) != 1 or 0 in lengths:
        raise UserError(f"the rows of ids are {min(lengths)} to {max(lengths)} long; expected all of one length")
    tokens = torch.tensor(lists, dtype=torch.int64)
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise UserError(
            f"the rows hold ids from {tokens.min()} to {tokens.max()}, but the model knows 0 to {vocab_size - 1}: "
            "they were made with another tokenizer"
        )
    return tokens


def ignored_ids(
    choice: list[int] | None,
    excluded: list[int] | bool | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
) -> list[int]:
    """Ids that count nowhere: those asked for, else those the SAE was trained without, else bos and eos.

    Args:
        choice: what the user asked for; an empty list is a choice too.
        excluded: the SAE's ``exclude_special_tokens``: a list of ids, true for every special token, or nothing.
        tokenizer: the model's.
        vocab_size: likewise.

    Raises:
        UserError: the user asked for an id that the model has not.
    """
    if choice is not None:
        for token in choice:
            if not 0 <= token < vocab_size:
                raise UserError(f"--ignore_tokens {token}: the model knows ids 0 to {vocab_size - 1}")
        return choice
    if isinstance(excluded, list):
        return [int(token) for token in excluded]
    if excluded is True:
        return sorted(set(tokenizer.all_special_ids))
    return sorted({tokenizer.bos_token_id, tokenizer.eos_token_id} - {None})
