"""A pretended "cuda" device: code for a GPU runs without one, and what makes the host wait for the device is counted.

Tensors on the pretended device are PyTorch's fake tensors: shape, dtype and device without values. Tensors on the CPU
are real. If the host reads a value from the device, the answer is made up (1, True, zeros). The device needs a CUDA
build of torch, as only that knows what CUDA's operations return. Backward passes do not run on it.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "item", "is_nonzero", "equal")
SIZES = (  # the host must know how many elements come out
    "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave",
    "bincount",
)  # fmt: skip
READ, SIZE, MASK = "reads a value", "waits for a size", "indexes by a mask"
TO_DEVICE, TO_HOST, PAGEABLE = "copies to the device", "copies to the host", "copies from memory that is not pinned"


class PretendedCuda(TorchDispatchMode):
    """Counts synchronisations of host and device while entered, together with a `FakeTensorMode`.

    Args:
        folders: only functions of files below these are named as the place of a synchronisation, the innermost first.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__()
        self.folders = tuple(f"{folder}/" for folder in folders)
        self.found: Counter[tuple[str, str]] = Counter()
        self.pinned: dict[int, Tensor] = {}  # by address; kept, so that no address is used again

    def take(self) -> Counter[tuple[str, str]]:
        """(what, "file.function") → how often since the last call."""
        taken, self.found = self.found, Counter()
        return taken

    def pin(self, tensor: Tensor, *_: Any) -> Tensor:
        """In place of `Tensor.pin_memory`, which needs a driver."""
        with unset_fake_temporarily():
            copy = tensor.clone()
        self.pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def _note(self, what: str) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame and (frame.f_code.co_filename == __file__ or not frame.f_code.co_filename.startswith(self.folders)):
            frame = frame.f_back
        place = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}" if frame else "elsewhere"
        self.found[what, re.sub(r"\.<\w+>", "", place)] += 1  # without <locals> and <listcomp>

    def _note_copy(self, source: Tensor, target: torch.device, *, non_blocking: bool) -> None:
        """A copy between host and device; one of no elements is none."""
        if source.device.type == target.type or not source.numel():
            return
        if source.device.type == "cuda":
            self._note(TO_HOST)  # whatever non_blocking says: who reads the copy must wait for it
        elif not non_blocking:
            self._note(TO_DEVICE)
        elif source.untyped_storage().data_ptr() not in self.pinned:
            self._note(PAGEABLE)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        device = torch.device(kwargs.get("device") or "cpu")
        if not on_device and device.type == "cpu":
            with unset_fake_temporarily():
                return function(*args, **kwargs)

        if name == "_to_copy" and kwargs.get("device") is not None:
            source = args[0]
            self._note_copy(source, device, non_blocking=kwargs.get("non_blocking", False))
            if on_device and device.type == "cpu":
                with unset_fake_temporarily():
                    return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        elif name == "copy_":
            target, source, *non_blocking = args
            self._note_copy(source, target.device, non_blocking=any(non_blocking) or kwargs.get("non_blocking", False))
            if not isinstance(target, FakeTensor):
                return target
        elif on_device and name in READS:
            self._note(READ)
            return 1.0 if tensors[0].is_floating_point() else True if tensors[0].dtype == torch.bool else 1
        elif on_device and name in SIZES:
            self._note(SIZE)
            if name == "nonzero":  # as if every element were true: the most that there can be
                return torch.zeros(args[0].numel(), args[0].dim(), dtype=torch.int64, device=args[0].device)
        elif on_device and name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            if masks:
                self._note(MASK)
                if name != "index":
                    return args[0]
                (mask,) = masks
                shape = (mask.numel(), *args[0].shape[mask.dim() :])
                return torch.empty(shape, dtype=args[0].dtype, device=args[0].device)
        return function(*args, **kwargs)


@contextmanager
def pretended_cuda(folders: Sequence[Path]) -> Iterator[PretendedCuda]:
    """While it lasts, "cuda:0" is a device, and this process must use no other tensors than on it and on the CPU."""
    move = torch.nn.Module.to

    def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        # A module whose weights are on the device already would get them as real ones without memory.
        there = all(isinstance(parameter, FakeTensor) for parameter in module.parameters())
        return module if there and any(True for _ in module.parameters()) else move(module, *args, **kwargs)

    device = PretendedCuda(folders)
    with (
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: device.pin(tensor)),
        mock.patch.object(torch.nn.Module, "to", to),
        FakeTensorMode(allow_non_fake_inputs=True),
        device,
    ):
        yield device
