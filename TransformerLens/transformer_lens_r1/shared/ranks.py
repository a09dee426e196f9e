"""The processes that torchrun starts: what each one is, what they share, and one line for a mistake in any of them."""

from __future__ import annotations

import io
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.shared.arguments import resolve_device
from transformer_lens_r1.shared.errors import EXIT_USER_ERROR, UserError, first_line

if TYPE_CHECKING:
    from torch.distributed import Store

PATIENCE = timedelta(hours=24)
"""How long a rank waits for another: preparing text, or the end of a longer share of the rows."""
SETTLE = timedelta(seconds=10)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; the only one if torchrun did not start it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Store | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that checks, prints and writes."""
        return self.rank == 0

    def rows(self, n_rows: int) -> range:
        """This rank's share of the rows, contiguous."""
        return range(self.rank * n_rows // self.size, (self.rank + 1) * n_rows // self.size)

    def device(self, name: str) -> str:
        """The device for this rank if the user asked for ``name``: of several ranks, each has a GPU of its own.

        Raises:
            UserError: several ranks, but the name of one GPU; or see `resolve_device`.
        """
        if self.size == 1 or name == "cpu":
            return name
        if name.startswith("cuda:"):
            raise UserError(f"the device {name} is one GPU, but there are {self.size} ranks; say cuda for one each")
        name = resolve_device(name)
        return f"cuda:{self.local_rank}" if name == "cuda" else name

    def connect(self, device: str) -> None:
        """Let the ranks add up tensors on their devices: NCCL for GPUs, gloo for CPUs."""
        if self.size == 1:
            return
        import torch

        backend = "gloo"
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        torch.distributed.init_process_group(
            backend, store=self.store, rank=self.rank, world_size=self.size, timeout=PATIENCE
        )

    def join_on(self, name: str) -> str:
        """Connect on this rank's device, if the user asked for ``name``, and return it; one process keeps the name.

        Raises:
            UserError: see `device`.
        """
        if self.size == 1:
            return name
        device = resolve_device(self.device(name))
        self.connect(device)
        return device

    def on_first(self, function: Callable[[], Any], *, types: Sequence[type]) -> Any:
        """What ``function`` gives on the first rank, on every rank.

        Args:
            function: called on the first rank alone.
            types: of what it gives, besides tensors and plain values. Whoever can reach a rank's port could send it
                bytes: they can make objects of these types, and run no code.
        """
        if self.size == 1:
            return function()
        import torch

        buffer = io.BytesIO()
        if self.is_first:
            torch.save(function(), buffer)
        length = torch.tensor(buffer.tell())
        torch.distributed.broadcast(length, src=0)
        content = torch.frombuffer(bytearray(buffer.getvalue() or int(length)), dtype=torch.uint8)
        torch.distributed.broadcast(content, src=0)
        with torch.serialization.safe_globals([*types, type(Path())]):
            return torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        if self.size > 1:
            import torch

            torch.distributed.barrier()

    def add(self, tensor: Any) -> None:
        """Add the ranks' tensors, into the first one's."""
        self._reduce(tensor, "SUM")

    def maximum(self, tensor: Any) -> None:
        """The largest of the ranks' elements, into the first one's tensor."""
        self._reduce(tensor, "MAX")

    def add_everywhere(self, tensor: Any) -> None:
        """Add the ranks' tensors, into all of them."""
        self._reduce(tensor, "SUM", everywhere=True)

    def highest(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return value
        import torch

        tensor = torch.tensor(value)
        self._reduce(tensor, "MAX", everywhere=True)
        return int(tensor)

    def all_or_none(self, function: Callable[[], Any], fails: tuple[type[Exception], ...]) -> Any:
        """What `function` gives on this rank, if it raises none of `fails` on any.

        Raises:
            OSError: it raised on another rank.
        """
        result, error = None, None
        try:
            result = function()
        except fails as raised:
            error = raised
            if self.store is not None:
                self.store.set("fault", first_line(raised))
        failed = self.highest(0 if error is None else self.rank + 1)
        if error is not None:
            raise error
        if failed and self.store is not None:
            raise OSError(f"rank {failed - 1}: {self.store.get('fault').decode()}")
        return result

    def _reduce(self, tensor: Any, operation: str, *, everywhere: bool = False) -> None:
        if self.size > 1:
            import torch

            # gloo takes the memory of any tensor for that of a contiguous one.
            if not tensor.is_contiguous():
                raise ValueError("ranks can add up contiguous tensors only")
            op = getattr(torch.distributed.ReduceOp, operation)
            if everywhere:
                torch.distributed.all_reduce(tensor, op)
            else:
                torch.distributed.reduce(tensor, dst=0, op=op)


class Agreement:
    """What the ranks wish between the steps of a loop: the largest of their numbers, which all get after the same step.

    Asked after one step and answered after the next, so that no rank waits for one that is less than a step behind.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.asked: Any = None

    def reached(self, wishes: Sequence[int]) -> list[int]:
        """What was asked last, or `wishes` themselves if there is one rank."""
        if self.ranks.size == 1:
            return list(wishes)
        if self.asked is None:
            return [0] * len(wishes)
        tensor, work = self.asked
        work.wait()
        self.asked = None
        return tensor.tolist()

    def ask(self, wishes: Sequence[int]) -> None:
        """Begin to ask; every rank must, and then call `reached`."""
        if self.ranks.size > 1:
            import torch

            tensor = torch.tensor(wishes)
            work = torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, async_op=True)
            self.asked = tensor, work


@contextmanager
def joined_ranks(advice: str = "start again") -> Iterator[Ranks]:
    """The ranks of this run, from what torchrun says in the environment; left again at the end.

    A `UserError` inside is said once, whatever the number of ranks that meet it, and ends all of them with status 2. So
    is a rank that died, with status 1 and what to do then: `advice`.
    """
    ranks = _ranks_of_environment()
    try:
        yield ranks
    except Exception as error:
        if ranks.store is None:
            raise
        if isinstance(error, UserError) and ranks.store.add("mistakes", 1) == 1:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            ranks.store.set("mistake said", "1")
        elif ranks.store.add("mistakes", 0) == 0:
            if not _lost_a_rank(error):
                raise
            _say_who_died(ranks, advice)
            os._exit(1)  # leaving a group that lacks a rank could wait for it
        else:
            # It left this rank without its partner. torchrun ends all ranks when one is gone: let it be said first.
            ranks.store.wait(["mistake said"], SETTLE)
        sys.exit(EXIT_USER_ERROR)
    finally:
        if ranks.size > 1:
            import torch

            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _lost_a_rank(error: Exception) -> bool:
    """Whether an error says that another rank is out of reach."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _say_who_died(ranks: Ranks, advice: str) -> None:
    """Name, once, the ranks that do not say soon that they live."""
    assert ranks.store is not None
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends all ranks when one is gone: let it be said first
    ranks.store.set(f"rank {ranks.rank} lives", "")
    if ranks.store.add("deaths", 1) > 1:
        ranks.store.wait(["death said"], SETTLE)
        return
    others = set(range(ranks.size))
    deadline = time.monotonic() + 2
    while len(others) > 1 and time.monotonic() < deadline:
        others = {rank for rank in others if not ranks.store.check([f"rank {rank} lives"])}
        time.sleep(0.05)
    for rank in sorted(others):
        process = ranks.store.get(f"process of rank {rank}").decode()
        # A progress bar may stand in the line.
        print(
            f"\nerror: rank {rank} ({process}) died, and the others were ended; {advice}", file=sys.stderr, flush=True
        )
    ranks.store.set("death said", "")


def _ranks_of_environment() -> Ranks:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    from torch.distributed.rendezvous import rendezvous

    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):  # one node: nothing has to be reached from another
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if platform.system() == "Darwin" else "lo")
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    store.set(f"process of rank {rank}", f"process {os.getpid()} on {platform.node()}")
    return Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)), store)
