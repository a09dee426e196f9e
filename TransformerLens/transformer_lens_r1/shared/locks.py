"""One writer for an output: a second run that would write to the same place is refused."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import lock_descriptor

from transformer_lens_r1.shared.errors import UserError


@contextmanager
def locked(output: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of an output folder or file while the block runs.

    The lock is a file beside the output, since a finished result replaces its folder as a whole. The operating
    system releases it if the process dies.

    Raises:
        UserError: another process holds it (the message names the process and its start), or nothing can be written.
    """
    path = Path(output).resolve()
    file = path.with_name(f".{path.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}; name another output") from error
    with handle:
        _take(str(output), handle.fileno())
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _take(output: str, descriptor: int) -> None:
    """Lock an open lock file, and write to it who holds it. Raises `UserError` as `locked` does."""
    try:
        is_free = lock_descriptor(descriptor, blocking=False)
    except OSError as error:  # some network file systems
        reason = f"its file system has no locks ({error.strerror})"
        print(f"warning: start no second run into {output} at the same time: {reason}", file=sys.stderr)
        return
    # A file without a name is that of a run that ended after it was opened here.
    if not is_free or os.fstat(descriptor).st_nlink == 0:
        holder = os.pread(descriptor, 200, 0).decode().strip() or "another run"
        raise UserError(f"{output} is being written by {holder}; wait until it has ended, or name another output")
    started = datetime.now().isoformat(sep=" ", timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()} since {started}\n".encode())
