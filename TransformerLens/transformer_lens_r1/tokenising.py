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
at each of these places. Where pad is eos, the eos between documents went out with the padding. Here documents are
tokenised one by one, so none of this happens; away from those places the ids are the same, at other positions of
other rows.

What a tokenizer brings with it changes nothing: a pad that is its eos (Llama-3's, the R1 distills') or none at all,
because nothing is padded; a bos or eos that it adds by itself, because special tokens around a document are left out.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .errors import UserError
from .files import hash_file

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

DOCUMENTS_PER_GROUP = 1000
# A tokenizer keeps over a hundred bytes per token until its batch is read: batches bound that.
CHARACTERS_PER_BATCH = 2**19


def rows_from_documents(
    documents: Sequence[np.ndarray | list[int]], *, row_length: int, eos_id: int, bos_id: int | None = None
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


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids (int64) of each text, in order, without special tokens around it, padding or truncation.

    The ids are those of ``tokenizer(text, add_special_tokens=False)``; a fast tokenizer's own batch call is used, which
    leaves out what only character offsets need.
    """
    if not tokenizer.is_fast:
        for batch in _batches(texts):
            # verbose=False: documents longer than the model's context are no mistake here, rows are cut from them.
            encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
            yield from (np.array(ids, dtype=np.int64) for ids in encoded["input_ids"])
        return
    backend = tokenizer.backend_tokenizer
    # A tokenizer.json may ask for these; transformers turns them off for each call too.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    for batch in _batches(texts):
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.int64)


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
    """Makes rows of tokens from groups of documents.

    A bos or eos that the tokenizer would add by itself is left out. A text that spells out the tokenizer's separate
    pad token, or a token that the model has no embedding for, costs the rows it stands in.

    Raises:
        UserError: the tokenizer has no eos (or no bos where one is asked for), or a row would hold no text.
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

    def __call__(self, texts: Iterable[str]) -> Group:
        """The rows of one group of at most `DOCUMENTS_PER_GROUP` documents."""
        documents = list(encode_documents(self.tokenizer, texts))
        rows = rows_from_documents(
            documents,
            row_length=self.context_size,
            eos_id=self.tokenizer.eos_token_id,
            bos_id=self.tokenizer.bos_token_id if self.add_bos else None,
        )
        usable = np.ones(len(rows), dtype=bool)
        if self.separate_pad_id is not None:
            usable &= (rows != self.separate_pad_id).all(axis=1)
        if self.vocab_size is not None:
            usable &= (rows < self.vocab_size).all(axis=1)
        tokens = sum(map(len, documents)) + max(0, len(documents) - 1)
        unusable = int((~usable).sum())
        return Group(rows[usable] if unusable else rows, tokens, unusable)

    def key(self) -> str:
        """A hash of all that the rows depend on, apart from the texts."""
        parts = (
            tokenizer_hash(self.tokenizer),
            self.tokenizer.eos_token_id,
            self.tokenizer.bos_token_id,
            self.separate_pad_id,
            self.context_size,
            self.add_bos,
            self.vocab_size,
            DOCUMENTS_PER_GROUP,
            hash_file(__file__),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a tokenizer's token → id table: equal where ids mean the same text."""
    table = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
    return hashlib.sha256(table.encode()).hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that a tokenizer does with text: merges, normaliser and added tokens too, and the library."""
    if tokenizer.is_fast:
        import tokenizers

        rules = f"{tokenizers.__version__} {tokenizer.split_special_tokens} {tokenizer.backend_tokenizer.to_str()}"
        return hashlib.sha256(rules.encode()).hexdigest()
    import transformers

    return hashlib.sha256(transformers.__version__.encode() + pickle.dumps(tokenizer)).hexdigest()


def tokenize_and_concatenate(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_size: int,
    column: str = "text",
    add_bos: bool = False,
    vocab_size: int | None = None,
) -> Dataset:
    """Rows of tokens from a column of texts, in this process.

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
        UserError: the column is missing or holds something else than text, or as `RowMaker` says.
    """
    from datasets import Features, List, Value

    if column not in texts.column_names:
        raise UserError(f"no column '{column}' to tokenise; the columns are {', '.join(texts.column_names)}")
    make_rows = RowMaker(tokenizer=tokenizer, context_size=context_size, add_bos=add_bos, vocab_size=vocab_size)

    def tokenise_group(group: list[str], indices: list[int]) -> dict[str, np.ndarray]:
        for index, text in zip(indices, group, strict=True):
            if not isinstance(text, str):
                raise UserError(f"row {index} of column '{column}' is a {type(text).__name__}, expected text")
        return {"tokens": make_rows(group).rows}

    return texts.select_columns([column]).map(
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
