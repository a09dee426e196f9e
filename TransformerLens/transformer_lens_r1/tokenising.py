"""Text to rows of tokens, the way the paper's data sets were cut.

Documents are taken in groups of `DOCUMENTS_PER_GROUP`, in order. A group's documents are joined by the
end-of-sequence id and cut into rows of equal length; what is left over at the end of a group is dropped. The groups
are part of the definition (another size gives other rows), which is why it is one constant: the result depends on
nothing but the texts and the tokenizer, and groups can be tokenised in any number of processes. It equals
TransformerLens 3.9's `transformer_lens.utilities.tokenize_and_concatenate(…, num_proc=None)`, except that rows which
that function would pad are dropped.

How this differs from TransformerLens 2.x, with which the paper's own data sets were made: that version joined the
*text* of a group's documents with the eos token's text, cut the string into 20 pieces of equal length, tokenised
the pieces, padding the shorter ones, and took the pad ids out again. Some 19 times in a group it so cut through a word
or a special token, whose halves became other tokens, and a bos that the tokenizer adds by itself stood in the text
at each of these places. Each process of its map had groups of its own. Here documents are tokenised one by one, so none
of this happens; away from those places the ids are the same, at other positions of other rows. Its rows can be had too
(`published_ids`, `published_shards`), again without those that it would pad.

What a tokenizer brings with it changes nothing: a pad that is its eos (Llama-3's, the R1 distills') or none at all,
because nothing is padded; a bos or eos that it adds by itself, because special tokens around a document are left out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

DOCUMENTS_PER_GROUP = 1000
PUBLISHED_PIECES = 20
# A tokenizer keeps over a hundred bytes per token until its batch is read: batches bound that.
CHARACTERS_PER_BATCH = 2**19


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> pa.ListArray:
    """Token ids of each text, in order, without special tokens around it, padding or truncation.

    The ids are those of ``tokenizer(text, add_special_tokens=False)``; a fast tokenizer's own batch call is used, which
    leaves out what only character offsets need.

    Returns:
        One list of int32 ids for each text.
    """
    documents = [np.array(ids, dtype=np.int32) for ids in _encode(tokenizer, texts)]
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int32)
    ids = np.concatenate(documents) if documents else np.empty(0, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[list[int]]:
    if not tokenizer.is_fast:
        for batch in _batches(texts):
            # verbose=False: documents longer than the model's context are no mistake here, rows are cut from them.
            yield from tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        return
    backend = tokenizer.backend_tokenizer
    # A tokenizer.json may ask for these; transformers turns them off for each call too.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    for batch in _batches(texts):
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            yield encoding.ids


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= CHARACTERS_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def published_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """The stream of ids that TransformerLens 2.x made of one group of documents.

    The pieces need no padding here, because the pad ids would only be taken out again; those that the text spells out
    are.

    Args:
        tokenizer: its eos joins the documents; special tokens that it adds by itself stand around each piece.
        texts: at most `DOCUMENTS_PER_GROUP` documents.

    Returns:
        int64 [tokens]; nothing for a group without text.
    """
    text = tokenizer.eos_token.join(texts)
    if not text.strip():
        return np.empty(0, dtype=np.int64)
    length = math.ceil(len(text) / PUBLISHED_PIECES)
    pieces = [text[start * length : (start + 1) * length] for start in range(PUBLISHED_PIECES)]
    ids = np.concatenate([np.array(piece, dtype=np.int64) for piece in tokenizer(pieces, verbose=False)["input_ids"]])
    return ids[ids != tokenizer.pad_token_id]


def published_shards(texts: Dataset, n_shards: int) -> list[Dataset]:
    """Documents as a map in `n_shards` processes shares them out: in order, each part with groups of its own."""
    n_shards = max(1, min(n_shards, len(texts)))
    return [texts.shard(num_shards=n_shards, index=index, contiguous=True) for index in range(n_shards)]


class Group(NamedTuple):
    """What one group of documents gave."""

    rows: np.ndarray
    """int64 [rows, context_size]"""
    tokens: int
    """Ids of all its documents and of the eos between them."""
    unusable: int
    """Rows left out because they hold the pad id, or an id that the model does not have."""


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Cuts groups of tokenised documents into rows.

    A text that spells out the tokenizer's separate pad token, or a token that the model has no embedding for, costs the
    rows it stands in.

    Raises:
        UserError: the tokenizer has no eos (or no bos if rows are to start with one), or a row would hold no text.
    """

    tokenizer: PreTrainedTokenizerBase
    """Its eos joins the documents."""
    context_size: int
    """Ids in a row."""
    add_bos: bool = False
    """Start each row with the tokenizer's bos."""
    vocab_size: int | None = None
    """The model's; rows with ids at or above it are left out. None: not checked."""

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos token, which joins the documents; use one that has")
        if self.add_bos and self.tokenizer.bos_token_id is None:
            raise UserError("the tokenizer has no bos token to start rows with; use one that has, or no bos")
        if self.context_size < 1 + self.add_bos:
            raise UserError(
                f"a context of {self.context_size} tokens holds no text; expected at least {1 + self.add_bos}"
            )

    @property
    def separate_pad_id(self) -> int | None:
        """The id of a pad token that is neither bos nor eos, and so can stand for nothing but padding."""
        pad_id = self.tokenizer.pad_token_id
        return None if pad_id in (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id) else pad_id

    def __call__(self, documents: pa.ListArray) -> Group:
        """The rows of one group of at most `DOCUMENTS_PER_GROUP` documents, from `encode_documents`."""
        lengths = documents.value_lengths().to_numpy()
        # The eos goes between two documents, not behind the last.
        ids = np.insert(documents.flatten().to_numpy(), np.cumsum(lengths)[:-1], self.tokenizer.eos_token_id)
        return self.cut(ids)

    def published(self, texts: Sequence[str]) -> Group:
        """The rows of one group of at most `DOCUMENTS_PER_GROUP` documents, as TransformerLens 2.x made them."""
        return self.cut(published_ids(self.tokenizer, texts))

    def cut(self, ids: np.ndarray) -> Group:
        """The rows of a group's ids [tokens]; what is left over at the end is dropped."""
        text_length = self.context_size - self.add_bos
        n_rows = len(ids) // text_length
        rows = ids[: n_rows * text_length].reshape(n_rows, text_length).astype(np.int64)
        if self.add_bos:
            rows = np.pad(rows, ((0, 0), (1, 0)), constant_values=self.tokenizer.bos_token_id)
        usable = np.ones(n_rows, dtype=bool)
        if self.separate_pad_id is not None:
            usable &= (rows != self.separate_pad_id).all(axis=1)
        if self.vocab_size is not None:
            usable &= (rows < self.vocab_size).all(axis=1)
        return Group(rows[usable], tokens=len(ids), unusable=int((~usable).sum()))


def as_column(rows: np.ndarray) -> pa.Table:
    """Rows [rows, context_size] as a table with the single column `tokens`."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.table({"tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1)))})


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a tokenizer's token → id table: equal where ids mean the same text."""
    table = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
    return hashlib.sha256(table.encode()).hexdigest()


def tokenize_and_concatenate(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_size: int,
    column: str = "text",
    add_bos: bool = False,
    vocab_size: int | None = None,
    shards: int | None = None,
) -> Dataset:
    """Rows of tokens from a column of texts, in this process.

    Args:
        texts: one document per row.
        tokenizer: its eos joins the documents.
        context_size: ids in a row.
        column: the column that holds the text.
        add_bos: start each row with the bos id.
        vocab_size: the model's; rows with ids at or above it are dropped. None: not checked.
        shards: make the rows that TransformerLens 2.x made in so many processes. None: those of this module.

    Returns:
        Dataset with the single column `tokens`, each row `context_size` int64 ids.

    Raises:
        UserError: the column is missing or holds something else than text, or as `RowMaker` says.
    """
    from datasets import Features, List, Value, concatenate_datasets

    if column not in texts.column_names:
        raise UserError(f"no column '{column}' to tokenise; the columns are {', '.join(texts.column_names)}")
    make_rows = RowMaker(tokenizer=tokenizer, context_size=context_size, add_bos=add_bos, vocab_size=vocab_size)

    def tokenise_group(group: list[str], indices: list[int]) -> dict[str, np.ndarray]:
        for index, text in zip(indices, group, strict=True):
            if not isinstance(text, str):
                raise UserError(f"row {index} of column '{column}' is a {type(text).__name__}, expected text")
        made = make_rows(encode_documents(tokenizer, group)) if shards is None else make_rows.published(group)
        return {"tokens": made.rows}

    texts = texts.select_columns([column])
    parts = [
        part.map(
            tokenise_group,
            batched=True,
            batch_size=DOCUMENTS_PER_GROUP,
            with_indices=True,
            input_columns=[column],
            remove_columns=[column],
            features=Features({"tokens": List(Value("int64"))}),
            # The library's cache key misses what a tokenizer carries inside, so a stale result could be reused.
            load_from_cache_file=False,
            desc="tokenising",
        )
        for part in ([texts] if shards is None else published_shards(texts, shards))
    ]
    return concatenate_datasets(parts)
