"""The processes that torchrun starts: what each one is, what they share, and one line for a mistake in any of them."""

from __future__ import annotations

import io
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.shared.arguments import resolve_device
from transformer_lens_r1.shared.errors import EXIT_USER_ERROR, UserError

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
            raise UserError(f"--device {name} names one GPU for {self.size} ranks; use --device cuda for one each")
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

    def _reduce(self, tensor: Any, operation: str) -> None:
        if self.size > 1:
            import torch

            # gloo takes the memory of any tensor for that of a contiguous one.
            if not tensor.is_contiguous():
                raise ValueError("ranks can add up contiguous tensors only")
            torch.distributed.reduce(tensor, dst=0, op=getattr(torch.distributed.ReduceOp, operation))


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks of this run, from what torchrun says in the environment; left again at the end.

    A `UserError` inside is said once, whatever the number of ranks that meet it, and ends all of them with status 2.
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
            raise
        else:
            # It left this rank without its partner. torchrun ends all ranks when one is gone: let it be said first.
            ranks.store.wait(["mistake said"], SETTLE)
        sys.exit(EXIT_USER_ERROR)
    finally:
        if ranks.size > 1:
            import torch

            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _ranks_of_environment() -> Ranks:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    from torch.distributed.rendezvous import rendezvous

    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):  # one node: nothing has to be reached from another
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if platform.system() == "Darwin" else "lo")
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    return Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)), store)
