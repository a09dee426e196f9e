"""Records to rows of tokens in many processes, group by group, with every finished group kept on the disk.

First all records are formatted once, to find the malformed ones: which records make up a group of documents depends
on them. Then every group is formatted again, tokenised and cut into rows, and the rows are written as one Arrow file,
named for a hash of the group's texts in a folder named for all else that the rows depend on. A run that was interrupted
finds the files of finished groups there, and can find no others: another text, tokenizer or context has another name.

No process holds more than one group, so memory does not grow with the number of records.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transformer_lens_r1.chat_format import MalformedRow
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import atomic_file
from transformer_lens_r1.shared.records import too_many_bad_rows
from transformer_lens_r1.tokenising import DOCUMENTS_PER_GROUP, RowMaker

if TYPE_CHECKING:
    from datasets import Dataset

RECORDS_PER_SCAN = 1000
MAX_FAULT_LENGTH = 200
KEY = r"groups-[0-9a-f]{16}"


@dataclass(frozen=True)
class Work:
    """What every process needs."""

    records: Dataset
    format_record: Callable[[Mapping[str, Any]], str]
    make_rows: RowMaker
    folder: Path
    """Where finished groups are kept."""


class Finished(NamedTuple):
    """One group's file, and what is in it."""

    path: Path
    rows: int
    tokens: int
    unusable: int
    reused: bool


@dataclass(frozen=True)
class Shards:
    """The rows of all groups, and what became of the tokens that are in none."""

    files: list[Path]
    documents: int
    tokens: int
    """Ids of all documents and of the eos between those of a group."""
    unusable_rows: int
    """Rows left out for an id that is none of the text's or none of the model's."""

    def rows(self) -> Dataset:
        """All rows in the order of the records: the single column `tokens`, read from the disk as needed."""
        from datasets import Dataset, concatenate_datasets

        return concatenate_datasets([Dataset.from_file(str(path)) for path in self.files])


def shard_folder(output: Path) -> Path:
    """Where the finished groups of the data set that goes to `output` wait for the others."""
    return output.with_name(f"{output.name}.shards")


def remove_shards(output: Path) -> None:
    """Delete the finished groups, those of earlier settings too, once the rows are in `output`."""
    folder = shard_folder(output)
    for inside in folder.glob("*"):
        if re.fullmatch(KEY, inside.name):
            shutil.rmtree(inside, ignore_errors=True)
    # A folder of this name that holds anything else is not ours to delete.
    with suppress(OSError):
        folder.rmdir()


def default_processes() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenise_records(
    records: Dataset,
    format_record: Callable[[Mapping[str, Any]], str],
    make_rows: RowMaker,
    *,
    folder: Path,
    num_proc: int | None = None,
    max_bad_rows: float = 0.01,
) -> tuple[Shards, list[tuple[int, str]]]:
    """Format and tokenise all records that are well formed.

    Args:
        records: one document per record, with the columns that `format_record` reads and no others.
        format_record: one record as text; raises `MalformedRow`. Must be picklable where processes are not forked.
        make_rows: makes rows of a group of texts.
        folder: where finished groups are kept; see `shard_folder`.
        num_proc: processes; None for as many as there are cores. Changes nothing else.
        max_bad_rows: once a greater part of all records is malformed, no further one is read.

    Returns:
        The rows, and (index, what is wrong) of each malformed record. Where those are more than allowed, the search
        for them ended early and there are no rows.

    Raises:
        UserError: a process was killed, or the disk is full.
    """
    folder = folder / f"groups-{make_rows.key()[:16]}"
    # As Arrow tables, whose rows become Python objects several times faster than the library's own.
    work = Work(records.with_format("arrow"), format_record, make_rows, folder)
    num_proc = num_proc or default_processes()
    faults = _scan(work, num_proc, max_bad_rows)
    if too_many_bad_rows(len(faults), len(records), max_bad_rows):
        return Shards([], 0, 0, 0), faults
    malformed = np.array([index for index, _ in faults], dtype=np.int64)
    good = np.setdiff1d(np.arange(len(records)), malformed, assume_unique=True)
    groups = [good[start : start + DOCUMENTS_PER_GROUP] for start in range(0, len(good), DOCUMENTS_PER_GROUP)]
    folder.mkdir(parents=True, exist_ok=True)
    finished = _tokenise(work, groups, num_proc)
    shards = Shards(
        files=[done.path for done in finished if done.rows],
        documents=len(good),
        tokens=sum(done.tokens for done in finished),
        unusable_rows=sum(done.unusable for done in finished),
    )
    return shards, faults


def _scan(work: Work, num_proc: int, max_bad_rows: float) -> list[tuple[int, str]]:
    from tqdm import tqdm

    n_records = len(work.records)
    faults: list[tuple[int, str]] = []
    starts = range(0, n_records, RECORDS_PER_SCAN)
    with (
        tqdm(total=n_records, desc="checking records", unit="record", unit_scale=True) as progress,
        _in_processes(_find_faults, starts, work, num_proc) as results,
    ):
        for start, found in zip(starts, results, strict=True):
            faults += found
            progress.update(min(RECORDS_PER_SCAN, n_records - start))
            if too_many_bad_rows(len(faults), n_records, max_bad_rows):
                break
    return faults


def _tokenise(work: Work, groups: list[np.ndarray], num_proc: int) -> list[Finished]:
    from tqdm import tqdm

    finished: list[Finished] = []
    made, started = 0, time.monotonic()
    total = sum(map(len, groups))
    try:
        with (
            tqdm(total=total, desc="tokenising", unit="document", unit_scale=True) as progress,
            _in_processes(_finish_group, groups, work, num_proc) as results,
        ):
            for group, done in zip(groups, results, strict=True):
                finished.append(done)
                made += 0 if done.reused else done.tokens
                progress.set_postfix_str(f"{made / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
                progress.update(len(group))
    except KeyboardInterrupt:
        print(
            f"{len(finished)} of {len(groups)} groups are finished and kept in {work.folder.parent}; "
            "the same command goes on from there",
            file=sys.stderr,
        )
        raise
    if reused := sum(done.reused for done in finished):
        print(f"{reused} of {len(groups)} groups had been finished by an earlier run", file=sys.stderr)
    return finished


# What the tasks below work on, in whichever process they run.
_work: Work | None = None


@contextmanager
def _in_processes(
    task: Callable[[Any], Any], items: Iterable[Any], work: Work, num_proc: int
) -> Iterator[Iterator[Any]]:
    """`task` of each item, in their order; the task finds `work` in `_work`. Whoever has enough may leave early."""
    items = list(items)
    num_proc = min(num_proc, len(items))
    if num_proc <= 1:
        _set_work(work)
        try:
            yield map(task, items)
        finally:
            _set_work(None)
        return
    # Forked processes have the records and the tokenizer without a copy; where forking is not safe they are sent.
    method = "fork" if sys.platform == "linux" else "spawn"
    others = active_children()
    pool = ProcessPoolExecutor(num_proc, get_context(method), _start_process, (work, os.getpid()))
    try:
        yield pool.map(task, items)
    except BrokenProcessPool:
        raise UserError(
            "a process was killed, most likely because memory ran out; the same command with a smaller --num_proc "
            f"goes on from the groups that are finished in {work.folder.parent}"
        ) from None
    except BaseException:
        # Whoever presses Ctrl-C does not want to wait for a group; half of one is never in its place. Not SIGTERM:
        # a forked process has this one's handler of it, and the pool would wait for one that does not end by it.
        for process in active_children():
            if process not in others:
                process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_process(work: Work, parent: int) -> None:
    import signal

    # Ctrl-C reaches every process of the terminal; it is the parent that answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread each, all cores being in use.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _set_work(work)


def _end_with(parent: int) -> None:
    """End this process where its parent was killed, or it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _set_work(work: Work | None) -> None:
    global _work
    _work = work


def _find_faults(start: int) -> list[tuple[int, str]]:
    """Index and fault of each malformed record among `RECORDS_PER_SCAN` from `start`."""
    assert _work is not None
    stop = min(start + RECORDS_PER_SCAN, len(_work.records))
    faults = []
    for index, record in zip(range(start, stop), _work.records[start:stop].to_pylist(), strict=True):
        try:
            _work.format_record(record)
        except MalformedRow as error:
            faults.append((index, " ".join(str(error).split())[:MAX_FAULT_LENGTH]))
    return faults


def _finish_group(group: np.ndarray) -> Finished:
    """Make the file of one group (indices of its records), unless it is there."""
    assert _work is not None
    first, last = int(group[0]), int(group[-1])
    together = last - first == len(group) - 1
    records = _work.records[first : last + 1] if together else _work.records[group.tolist()]
    texts = [_work.format_record(record) for record in records.to_pylist()]
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    path = _work.folder / f"{digest.hexdigest()}.arrow"
    if (finished := _read_group(path)) is not None:
        return finished
    rows, tokens, unusable = _work.make_rows(texts)
    with _disk(path), atomic_file(path) as temporary:
        _write_group(temporary, rows, {"tokens": tokens, "unusable": unusable})
    return Finished(path, len(rows), tokens, unusable, reused=False)


def _write_group(path: Path, rows: np.ndarray, counts: Mapping[str, int]) -> None:
    import pyarrow as pa

    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1)))
    schema = pa.schema(
        [pa.field("tokens", pa.list_(pa.int64()))], metadata={key: str(value) for key, value in counts.items()}
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(pa.Table.from_arrays([column], schema=schema))


def _read_group(path: Path) -> Finished | None:
    """What a finished group's file holds; None where there is none, or one that cannot be read."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            table = reader.read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    counts = table.schema.metadata or {}
    return Finished(path, len(table), int(counts[b"tokens"]), int(counts[b"unusable"]), reused=True)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {path.parent} ({error.strerror or error}); make room there and give the command again"
        ) from error
