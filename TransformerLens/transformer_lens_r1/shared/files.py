"""Files that are whole or absent: everything is written beside its place and moved into it."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformer_lens_r1.shared.errors import UserError

# Lies beside the rows of every data set that a script of this project wrote.
PROVENANCE = "provenance.json"


def check_output_folder(
    path: Path, marker: str, *, name: str = "--output_dir", own: Sequence[str] | None = None
) -> None:
    """Make sure, before any work, that a result can be written to the folder ``path`` and replaces nothing else.

    Args:
        path: where the result is to go; an earlier result there will be replaced as a whole.
        marker: a file that every earlier result of the same script holds, relative to the folder.
        name: what the user calls the folder.
        own: glob patterns of all that an earlier result can hold, at any depth, where the marker's name alone could
            be another program's; None where the marker says enough.

    Raises:
        UserError: ``path`` is a file, holds other files than an earlier result, or lies where nothing can be written.
    """
    if path.is_dir():
        foreign = any(path.iterdir()) and not (path / marker).is_file()
        which = ""
        if own is not None and not foreign:
            expected = {file for pattern in own for file in path.glob(pattern)}
            found = next((file for file in path.rglob("*") if file not in expected), None)
            if foreign := found is not None:
                which = f" ({found.relative_to(path)})"
        if foreign:
            raise UserError(
                f"{name} {path} holds other files{which}, which the result would replace; name another folder"
            )
    elif path.exists():
        raise UserError(f"{name} {path} is a file; give the name of a folder")
    try:
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent):
            pass
    except OSError as error:
        raise UserError(f"{name} {path} cannot be written: {error.strerror or error}; name another folder") from error


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends without an error."""
    path = Path(path).resolve()  # a link stays one, and what it names is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path`` that replaces it when the block ends without an error.

    An older folder at ``path`` stays until the new one is complete.
    """
    path = Path(path).resolve()  # a link stays one, and what it names is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.rglob("*"):
            if file.is_file():  # safetensors writes files that only their owner can read
                file.chmod(file.stat().st_mode | 0o666 & ~_umask())
        if path.exists():
            # A folder cannot be renamed onto one that holds files: the old one steps aside first.
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / path.name)
            try:
                temporary.rename(path)
            except OSError:
                (old / path.name).rename(path)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def hash_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def display_name(name_or_path: str) -> str:
    """A Hub id as it is; of a local path only the last part, because what names it may leave the machine."""
    path = Path(name_or_path)
    return path.resolve().name if path.exists() or path.is_absolute() else name_or_path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
