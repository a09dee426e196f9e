"""Ctrl-C and SIGTERM, noted for a training loop that stops between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from transformer_lens_r1.shared.ranks import Ranks


class Stopped(Exception):
    """The run was asked to stop, and did."""

    def __init__(self, signum: int, message: str) -> None:
        """Args: the signal, and what is left of the run: a sentence that the command to resume completes."""
        super().__init__(message)
        self.signum = signum


@contextmanager
def stop_signals(ranks: Ranks) -> Iterator[list[int]]:
    """Yield a list that Ctrl-C and SIGTERM are noted in; a second one ends a process at once if it is the only one.

    To several ranks torchrun passes on what they may have got themselves, and it ends them all after 30 seconds.
    """
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if ranks.size == 1:
            restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()
