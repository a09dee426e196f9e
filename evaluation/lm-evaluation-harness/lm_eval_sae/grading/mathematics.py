"""math-verify's verdicts, from a process of its own that is ended when an expression takes too much time or memory.

A model writes anything: 9^{9^{9^9}} would fill the memory, in a call that no signal interrupts.
"""

import atexit
import contextlib
import functools
import json
import selectors
import subprocess
import sys
import threading

SECONDS = 5
"""For one comparison."""
MEMORY = 2 << 30
"""Bytes of address space, where the system keeps to a limit (Linux)."""


def verify_mathematics(answer: str, expected: str) -> bool | None:
    """math-verify's verdict on two expressions in LaTeX or plain text; None if it cannot read or decide them."""
    return _checker().verdict(answer, expected)


class Checker:
    """The process, started with the first question and again after one that it did not survive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def verdict(self, answer: str, expected: str) -> bool | None:
        """The verdict on one pair; None if there is none, also for want of time or memory."""
        with self._lock:
            process = self._process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps([answer, expected]) + "\n")
                process.stdin.flush()
                with selectors.DefaultSelector() as selector:
                    selector.register(process.stdout, selectors.EVENT_READ)
                    if selector.select(SECONDS) and (line := process.stdout.readline()):
                        return json.loads(line)
            except OSError:  # it ended after its last answer
                pass
            self.close()
            return None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command = [sys.executable, "-P", "-m", __name__]
        process = subprocess.Popen(command, text=True, **pipes)
        assert process.stdout is not None
        if not process.stdout.readline():  # after its imports: the time of the first question is its own
            raise RuntimeError(f"math-verify does not start; try: {' '.join(command)}")
        return process


@functools.cache
def _checker() -> Checker:
    checker = Checker()
    atexit.register(checker.close)
    return checker


def serve() -> None:
    """Answer a line of JSON [answer, expected] with a line of JSON true, false or null, until the input ends."""
    import resource

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    extraction = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    limits = {"raise_on_error": True}

    def read(text: str) -> list:
        boxed = f"\\boxed{{{text}}}"
        return parse(boxed, extraction_config=extraction, fallback_mode="no_fallback", parsing_timeout=None, **limits)

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(ValueError, OSError):  # macOS keeps to no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard < 0 else min(MEMORY, hard), hard))
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no reply
    print(file=replies, flush=True)
    for line in sys.stdin:
        try:
            answer, expected = map(read, json.loads(line))
            compared = {"allow_set_relation_comp": True, "timeout_seconds": None, **limits}
            verdict = verify(expected, answer, **compared) if answer and expected else None
        except MemoryError:
            return
        except Exception:  # math-verify raises of every kind
            verdict = None
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    serve()
