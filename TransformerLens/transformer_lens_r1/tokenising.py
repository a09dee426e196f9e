"""Text to rows of tokens, the way the paper's data sets were cut.

Documents are taken in groups of `DOCUMENTS_PER_GROUP`, in order. A group's documents are joined by the
end-of-sequence id and cut into rows of equal length; what is left over at the end of a group is dropped. The groups
are part of the definition (another size gives other rows), which is why it is one constant and one process here: the
result depends on nothing but the texts and the tokenizer. It equals TransformerLens 3.9's
`transformer_lens.utilities.tokenize_and_concatenate(…, num_proc=None)`, except that rows which that function would pad
are dropped.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

DOCUMENTS_PER_GROUP = 1000


def rows_from_documents(
    documents: list[list[int]], *, row_length: int, eos_id: int, bos_id: int | None = None
) -> np.ndarray:
    """Join one group of tokenised documents and cut it into rows.

    Args:
        documents: token ids of each document, without special tokens added around it.
        row_length: ids in a row, the bos included if there is one.
        eos_id: put between two documents (not after the last).
        bos_id: put in front of each row; None for rows of text alone.

    Returns:
        int64 [rows, row_length]; no rows at all where the group is shorter than one row.
    """
    text_length = row_length - (bos_id is not None)
    separator = np.array([eos_id], dtype=np.int64)
    pieces = [separator] * max(0, 2 * len(documents) - 1)
    pieces[::2] = [np.asarray(document, dtype=np.int64) for document in documents]
    joined = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
    n_rows = len(joined) // text_length
    rows = joined[: n_rows * text_length].reshape(n_rows, text_length)
    if bos_id is not None:
        rows = np.pad(rows, ((0, 0), (1, 0)), constant_values=bos_id)
    return rows


def tokenize_and_concatenate(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_size: int,
    column: str = "text",
    add_bos: bool = False,
    vocab_size: int | None = None,
) -> Dataset:
    """Rows of tokens from a column of texts.

    A bos or eos that the tokenizer would add by itself is left out; `add_bos` puts one bos at the start of every row.
    A text that spells out the tokenizer's separate pad token, or a token that the model has no embedding for, costs
    the rows it stands in.

    Args:
        texts: one document per row.
        tokenizer: its eos joins the documents.
        context_size: ids in a row.
        column: the column that holds the text.
        add_bos: start each row with the bos id.
        vocab_size: the model's; rows with ids at or above it are dropped. None: not checked.

    Returns:
        Dataset with the single column `tokens`, each row `context_size` int64 ids.

    Raises:
        UserError: the column is missing, or the tokenizer has no eos (or no bos where one is asked for).
    """
    from datasets import Features, Sequence, Value

    if column not in texts.column_names:
        raise UserError(f"no column '{column}' to tokenise; the columns are {', '.join(texts.column_names)}")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no eos token, which joins the documents; use one that has")
    if add_bos and tokenizer.bos_token_id is None:
        raise UserError("the tokenizer has no bos token to start rows with; use one that has, or no bos")
    if context_size < 1 + add_bos:
        raise UserError(f"a context of {context_size} tokens holds no text; expected at least {1 + add_bos}")
    bos_id = tokenizer.bos_token_id if add_bos else None
    pad_id = tokenizer.pad_token_id
    pad_is_separate = pad_id is not None and pad_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)

    def tokenise_group(group: list[str]) -> dict[str, np.ndarray]:
        # verbose=False: documents longer than the model's context are no mistake here, rows are cut from them.
        encoded = tokenizer(group, add_special_tokens=False, return_attention_mask=False, verbose=False)
        rows = rows_from_documents(
            encoded["input_ids"], row_length=context_size, eos_id=tokenizer.eos_token_id, bos_id=bos_id
        )
        usable = np.ones(len(rows), dtype=bool)
        if pad_is_separate:
            usable &= (rows != pad_id).all(axis=1)
        if vocab_size is not None:
            usable &= (rows < vocab_size).all(axis=1)
        return {"tokens": rows[usable]}

    return texts.select_columns([column]).map(
        tokenise_group,
        batched=True,
        batch_size=DOCUMENTS_PER_GROUP,
        input_columns=[column],
        remove_columns=[column],
        features=Features({"tokens": Sequence(Value("int64"))}),
        # The library's cache key misses what a tokenizer carries inside, so a stale result could be reused.
        load_from_cache_file=False,
        desc="tokenising",
    )


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a tokenizer's token → id table: equal where ids mean the same text."""
    table = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
    return hashlib.sha256(table.encode()).hexdigest()
