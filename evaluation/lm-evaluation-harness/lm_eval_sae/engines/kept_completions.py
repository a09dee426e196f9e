"""Completions of a run that has not ended, on the disk: the same run, started again, need not generate them again.

`execute` names a folder (`kept_in`); models write each completion there as it is finished, and look there first. A
file belongs to one model with one intervention, an entry to one request with its sampling arguments and its seed, so
that what is found is what would be generated. When the run has ended its files go.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
FOLDER = ".unfinished"  # within --output_path
_folder: Path | None = None
_used: set[Path] = set()


@dataclass
class Kept:
    """Of the completions that a run kept: whether they are left where they are when it ends."""

    needed_again: bool = False


@contextlib.contextmanager
def kept_in(output_path: str | None) -> Iterator[Kept]:
    """While it lasts, completions are kept below this folder, and those of an earlier try are found.

    When it ends without an error they go, unless what it gives says that they are needed again. None keeps nothing.
    """
    global _folder
    before, _folder = _folder, None
    if output_path is not None:  # lm-eval takes a folder, or the name of a file in it
        _folder = (Path(output_path).parent if Path(output_path).suffix == ".json" else Path(output_path)) / FOLDER
    _used.clear()
    kept = Kept()
    try:
        yield kept
        for file in (file for stem in _used for file in _files(stem) if not kept.needed_again):
            file.unlink()
        if _folder is not None and _folder.is_dir() and not any(_folder.iterdir()):
            _folder.rmdir()
    finally:
        _folder = before


def clear_results(output_path: Path) -> None:
    """Removes what an earlier try left in a folder, but for its completions."""
    for path in output_path.iterdir() if output_path.is_dir() else ():
        if path.name != FOLDER:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def unfinished_of(identity: Mapping[str, Any], folder: Path | None = None) -> "Unfinished | None":
    """What is kept of the model and intervention that `identity` describes; None if nothing is to be kept.

    Args:
        identity: what completions depend on beside their request.
        folder: in place of the one that `kept_in` named; the caller then sees to it that its files go.
    """
    if folder is None and _folder is None:
        return None
    stem = (folder or _folder) / f"completions-{digest(identity)[:16]}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    if folder is None:
        _used.add(stem)
    return Unfinished(stem)


class Unfinished:
    """Completions by the digest of their request. Processes may write at the same time, each to a file of its own.

    Args:
        stem: path of the files without their ending; they are `<stem>-<process id>.jsonl`, an entry a line.
    """

    def __init__(self, stem: Path) -> None:
        self.stem = stem

    def read(self) -> dict[str, Any]:
        """All entries by key. A line that was cut off as its process was killed is left out."""
        entries = {}
        for file in _files(self.stem):
            for line in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    key, entry = json.loads(line)
                    entries[key] = entry
        return entries

    def add(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Appends entries: they are with the operating system when it returns, so that a killed process loses none."""
        text = "".join(json.dumps([key, entry]) + "\n" for key, entry in entries)
        with self.stem.with_name(f"{self.stem.name}-{os.getpid()}.jsonl").open("ab+") as file:
            if file.tell():  # a process id may come again, after a line that was cut off
                file.seek(-1, os.SEEK_END)
                text = text if file.read() == b"\n" else "\n" + text
            file.write(text.encode())


def digest(value: Any) -> str:
    """The SHA-256 of plain values, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def model_files(pretrained: str) -> list[list[Any]]:
    """Name, bytes and time of change of a local model's weights, which are too large to be hashed; [] for a Hub id."""
    stats = [(file.name, file.stat()) for file in sorted(Path(pretrained).glob("*.safetensors"))]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _files(stem: Path) -> list[Path]:
    return sorted(stem.parent.glob(f"{stem.name}-*.jsonl"))
