"""Records to rows of tokens: text and ids of each record in many processes, the cut into rows in one.

Each step is a `datasets.map` that streams from the disk to the disk, so memory does not grow with the number of
records. Only the cut depends on which documents stand side by side, so the number of processes changes no row.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, concatenate_datasets

from transformer_lens_r1.chat_format import MalformedRow
from transformer_lens_r1.tokenising import DOCUMENTS_PER_GROUP, as_column, encode_documents, published_shards

if TYPE_CHECKING:
    from transformer_lens_r1.tokenising import RowMaker

MAX_FAULT_LENGTH = 200


class Tokenised(NamedTuple):
    """The rows of all documents, and what became of the tokens that are in none."""

    rows: Dataset
    """In the order of the documents: the single column `tokens`, int64, read from the disk as needed."""
    tokens: int
    """Ids of all documents and of the eos between those of a group."""
    unusable: int
    """Rows left out for an id that is not the text's or not the model's."""


def default_processes() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def format_records(
    records: Dataset, format_record: Callable[[Mapping[str, Any]], str | None], *, folder: Path, num_proc: int
) -> tuple[Dataset, list[tuple[int, str]]]:
    """The text of every record that is well formed and not to be left out.

    Args:
        records: one document per record, with the columns that `format_record` reads and no others.
        format_record: one record as text, or None for one to leave out; raises `MalformedRow`.
        folder: where the text lies on the disk.
        num_proc: processes; changes nothing but the time.

    Returns:
        The texts in the column `text`, and (index, what is wrong) of each malformed record.
    """

    def texts_of(table: pa.Table) -> pa.Table:
        texts: list[str | None] = []
        faults: list[str | None] = []
        for record in table.to_pylist():
            text = fault = None
            try:
                text = format_record(record)
            except MalformedRow as error:
                fault = " ".join(str(error).split())[:MAX_FAULT_LENGTH]
            texts.append(text)
            faults.append(fault)
        return pa.table({"text": pa.array(texts, pa.string()), "fault": pa.array(faults, pa.string())})

    features = Features({"text": Value("string"), "fault": Value("string")})
    texts = _map(records, texts_of, features, "formatting", folder=folder, num_proc=num_proc)
    bad = pc.indices_nonzero(pc.is_valid(texts.data.column("fault"))).to_pylist()
    faults = [(index, texts[index]["fault"]) for index in bad]
    good = pc.indices_nonzero(pc.is_valid(texts.data.column("text")))
    if len(good) < len(texts):
        texts = texts.select(good.to_pylist())
    return texts.select_columns("text"), faults


def tokenise(
    texts: Dataset, make_rows: RowMaker, *, folder: Path, num_proc: int, shards: int | None = None
) -> Tokenised:
    """Tokenise texts one by one and cut them into rows.

    Args:
        texts: one document per row, in the column `text`.
        make_rows: cuts a group of documents into rows.
        folder: where ids and rows lie on the disk.
        num_proc: processes; changes nothing but the time.
        shards: make the rows that TransformerLens 2.x made in so many processes; here in one, in the tokenizer's
            threads. None: those of `transformer_lens_r1.tokenising`.
    """

    def ids_of(table: pa.Table) -> pa.Table:
        return pa.table({"ids": encode_documents(make_rows.tokenizer, table["text"].to_pylist())})

    tokens = unusable = 0

    def rows_of(table: pa.Table) -> pa.Table:
        nonlocal tokens, unusable
        if shards is None:
            group = make_rows(table["ids"].combine_chunks())
        else:
            group = make_rows.published(table["text"].to_pylist())
        tokens += group.tokens
        unusable += group.unusable
        return as_column(group.rows)

    if shards is None:
        ids_type = Features({"ids": List(Value("int32"))})
        parts = [_map(texts, ids_of, ids_type, "tokenising", folder=folder, num_proc=num_proc)]
    else:
        parts = published_shards(texts, shards)
    row_type = Features({"tokens": List(Value("int64"))})
    rows = [
        _map(part, rows_of, row_type, f"cutting rows {number} of {len(parts)}", folder=folder, num_proc=1)
        for number, part in enumerate(parts, 1)
    ]
    return Tokenised(concatenate_datasets(rows), tokens, unusable)


def _map(data: Dataset, function: Callable, features: Features, desc: str, *, folder: Path, num_proc: int) -> Dataset:
    """What a function makes of each `DOCUMENTS_PER_GROUP` rows, which are a group of documents if one process maps."""
    # As Arrow tables, whose rows become Python objects several times faster than the library's own.
    mapped = data.with_format("arrow").map(
        function,
        batched=True,
        batch_size=DOCUMENTS_PER_GROUP,
        remove_columns=data.column_names,
        features=features,
        num_proc=num_proc if num_proc > 1 else None,
        cache_file_name=str(folder / f"{desc.replace(' ', '-')}.arrow"),
        # The library's cache key misses what a tokenizer carries inside, so a stale result could be reused.
        load_from_cache_file=False,
        new_fingerprint=secrets.token_hex(8),
        desc=desc,
    )
    return mapped.with_format(None)
