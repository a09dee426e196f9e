"""Activations at the hook point: of given rows, and as the endless shuffled stream that an SAE trains on.

The stream does what SAELens' activation store and mixing buffer do, batch for batch, with three differences. It can be
saved and continued with nothing lost, buffer included. It keeps activations in the language model's number format and
copies each of them twice (in and out); SAELens joins, permutes and copies the whole buffer for every pass of the
model. And it knows before a pass which positions it will keep, so that a GPU is never waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.util import get_special_token_ids

from transformer_lens_r1 import residual_stream
from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig
    from transformer_lens.model_bridge import TransformerBridge

    from transformer_lens_r1.shared.ranks import Ranks


def read_tokens(rows: Dataset, start: int, stop: int) -> torch.Tensor:
    """Ids [rows, context] of a range of rows with equal lengths, as int64 on the CPU."""
    column = rows.with_format("arrow")[start:stop]["tokens"].combine_chunks()
    return torch.tensor(column.flatten().to_numpy(zero_copy_only=False), dtype=torch.int64).view(stop - start, -1)


def without_waiting(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor`, which is on the CPU, on `device`; a GPU is not waited for."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class ActivationSource:
    """The language model at one hook point, and the positions of a row at which the SAE is defined."""

    model: TransformerBridge
    hook_name: str
    seqpos_slice: tuple[int | None, ...] = (None,)  # arguments of slice()
    excluded: torch.Tensor | None = None  # token ids [n] on the CPU, at whose positions the SAE is not defined
    autocast: bool = False  # run the model under bfloat16 autocast

    @classmethod
    def of_config(cls, cfg: LanguageModelSAERunnerConfig[Any], model: Any) -> ActivationSource:
        """What a run's configuration asks for."""
        ids = cfg.exclude_special_tokens
        if ids is True:
            ids = get_special_token_ids(model.tokenizer)
        return cls(
            model=model,
            hook_name=cfg.hook_name,
            seqpos_slice=cfg.seqpos_slice,
            excluded=None if ids is False else torch.tensor(ids),
            autocast=cfg.autocast_lm,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def precision(self) -> Any:
        """The context that the model runs in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()

    def positions(self, tokens: torch.Tensor) -> torch.Tensor:
        """Where the SAE is defined in rows of ids [rows, context]: a bool tensor of that shape."""
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        mask[:, slice(*self.seqpos_slice)] = True
        if self.excluded is not None:
            mask &= ~torch.isin(tokens, self.excluded)
        return mask

    def to_model(self, tokens: torch.Tensor) -> torch.Tensor:
        """`tokens` on the model's device, without waiting for a GPU."""
        return without_waiting(tokens, self.device)

    @torch.no_grad()
    def activations(self, tokens: torch.Tensor) -> torch.Tensor:
        """Activations [n, d_in] at the n `positions` of ids [rows, context], row by row, in the model's format."""
        ids = self.to_model(tokens)
        with self.precision():
            residual = residual_stream(self.model, ids, self.hook_name)
        mask = self.positions(tokens)
        flat = residual.flatten(0, 1)  # [rows × context, d_in]
        if bool(mask.all()):
            return flat
        return flat.index_select(0, self.to_model(mask.flatten().nonzero().squeeze(1)))


class ActivationStream(Iterator[torch.Tensor]):
    """Endless batches [batch_size, d_in] of activations, mixed across rows.

    A round fills the buffer with passes of the model over the next rows, shuffles it, and serves all but
    `mix_fraction` of it; the rest is mixed with what the next round reads. After the last row comes the first. Several
    ranks take turns at the rows, a pass of the model each.
    """

    def __init__(
        self,
        source: ActivationSource,
        rows: Dataset,
        *,
        rows_per_pass: int,
        batch_size: int,
        buffer_size: int,
        mix_fraction: float,
        seed: int,
        device: torch.device | str = "cpu",
        pin: bool = False,
        remember: int = 0,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        """
        Args:
            source: the model and what of it is read.
            rows: rows with `tokens`, read in their order.
            rows_per_pass: rows in one pass of the model.
            batch_size: tokens in a batch.
            buffer_size: tokens in a full buffer.
            mix_fraction: part of the buffer that is kept for the next round; 0 serves tokens in their order.
            seed: of the shuffles.
            device: where the buffer is.
            pin: serve batches from pinned memory, for a buffer on the CPU and an SAE on a GPU.
            remember: how many of the last batches to keep for `state_dict` (what a prefetching queue may hold).
            rank: of this process, among
            n_ranks: that read the same rows, each with a stream of its own.
        """
        self.source, self.rows, self.device, self.pin = source, rows, torch.device(device), pin
        self.rows_per_pass, self.batch_size, self.buffer_size = rows_per_pass, batch_size, buffer_size
        self.mix_fraction, self.n_ranks = mix_fraction, n_ranks
        self.generator = torch.Generator().manual_seed(seed + (rank << 32))  # no neighbour of another run's seed
        self.rows_read = rank * rows_per_pass  # by all ranks, before the turn of this one
        self.produced = 0  # batches
        self.recent: deque[torch.Tensor] = deque(maxlen=remember)
        self.again: deque[torch.Tensor] = deque()  # batches that were produced before an interruption, but not used
        self.buffer: torch.Tensor | None = None  # [capacity, d_in]
        self.order = torch.zeros(0, dtype=torch.int64)  # slots of the buffer still to be served, in that order
        self.slots = self.order.to(self.device)  # the same, where the buffer is
        self.left = 0  # how many of them this round will serve

    @classmethod
    def of_config(
        cls, cfg: LanguageModelSAERunnerConfig[Any], source: ActivationSource, rows: Dataset, ranks: Ranks
    ) -> ActivationStream:
        """The stream that a run's configuration asks for: this rank's share of each batch."""
        context = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
        return cls(
            source,
            rows,
            rows_per_pass=cfg.store_batch_size_prompts,
            batch_size=cfg.train_batch_size_tokens // ranks.size,
            buffer_size=cfg.n_batches_in_buffer * context,
            mix_fraction=cfg.activations_mixing_fraction,
            seed=cfg.seed,
            device=cfg.act_store_device or cfg.device,
            pin=cfg.act_store_device == "cpu" and cfg.device.startswith("cuda"),
            # The queue, the batch that waits for a place in it, and one that is being taken out.
            remember=int(cfg.prefetch_llm_batches) + 2 if cfg.prefetch_llm_batches else 0,
            rank=ranks.rank,
            n_ranks=ranks.size,
        )

    def __next__(self) -> torch.Tensor:
        if self.again:
            batch = self.again.popleft()
        else:
            if self.left < self.batch_size:
                self._refill()
            assert self.buffer is not None
            batch = self.buffer.index_select(0, self.slots[: self.batch_size])
            self.order, self.slots = self.order[self.batch_size :], self.slots[self.batch_size :]
            self.left -= self.batch_size
        if self.pin:
            batch = batch.pin_memory()
        self.produced += 1
        self.recent.append(batch)
        return batch

    def _refill(self) -> None:
        kept = int(self.buffer_size * self.mix_fraction)
        without_tokens = 0
        while True:
            # Without waiting only to a GPU: a buffer on the CPU is read at once, before such a copy need be there.
            to_gpu = self.device.type == "cuda"
            new = self.source.activations(self._next_rows()).to(self.device, non_blocking=to_gpu)
            self._put(new)
            if len(self.order) >= self.buffer_size:
                break
            without_tokens = 0 if len(new) else without_tokens + self.rows_per_pass
            if without_tokens > len(self.rows):
                raise UserError(
                    "the rows hold nothing but tokens that exclude_special_tokens or seqpos_slice leave out"
                )
        if self.mix_fraction > 0:
            self.order = self.order[torch.randperm(len(self.order), generator=self.generator)]
        self.slots = without_waiting(self.order, self.device)
        self.left = max(1, (len(self.order) - kept) // self.batch_size) * self.batch_size

    def _put(self, new: torch.Tensor) -> None:
        """Write activations [n, d_in] to free slots, behind all others in the order."""
        if self.buffer is None:
            kept = int(self.buffer_size * self.mix_fraction)
            in_a_pass = self.rows_per_pass * read_tokens(self.rows, 0, 1).shape[1]
            capacity = max(self.buffer_size, kept + self.batch_size) + in_a_pass
            self.buffer = torch.empty(capacity, new.shape[1], dtype=new.dtype, device=self.device)
        free = torch.ones(len(self.buffer), dtype=torch.bool)
        free[self.order] = False
        slots = free.nonzero().squeeze(1)[: len(new)]
        self.buffer.index_copy_(0, without_waiting(slots, self.device), new)
        self.order = torch.cat([self.order, slots])

    def _next_rows(self) -> torch.Tensor:
        start, parts, missing = self.rows_read % len(self.rows), [], self.rows_per_pass
        while missing:
            stop = min(start + missing, len(self.rows))
            parts.append(read_tokens(self.rows, start, stop))
            missing -= stop - start
            start = 0
        self.rows_read += self.n_ranks * self.rows_per_pass
        return torch.cat(parts)

    def state_dict(self, *, unused: int = 0) -> dict[str, torch.Tensor]:
        """All that is needed to continue with the same batches, on the CPU.

        Args:
            unused: how many of the last batches nobody has trained on yet (they wait in a queue).
        """
        assert unused <= len(self.recent), "more batches are waiting than the stream remembers"
        waiting = list(self.recent)[len(self.recent) - unused :] + list(self.again)
        state = {
            "rows_read": torch.tensor(self.rows_read),
            "left": torch.tensor(self.left),
            "generator": self.generator.get_state(),
        }
        if self.buffer is not None:
            state["activations"] = self.buffer.index_select(
                0, self.order.to(self.device)
            ).cpu()  # [n, d_in], in serving order
        if waiting:
            state["waiting"] = torch.stack(waiting).cpu()  # [n, batch_size, d_in]
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self.rows_read, self.left = int(state["rows_read"]), int(state["left"])
        self.generator.set_state(state["generator"])
        self.buffer, self.order = None, torch.zeros(0, dtype=torch.int64)
        if "activations" in state:
            self._put(state["activations"].to(self.device))
        self.slots = self.order.to(self.device)
        self.recent.clear()
        self.again = deque(state["waiting"].to(self.device).unbind(0) if "waiting" in state else ())


class Prefetched(PrefetchingIterator[torch.Tensor]):
    """A stream read ahead by a thread of its extra, which knows how many of its batches were taken."""

    def __init__(self, stream: ActivationStream, prefetch: int) -> None:
        self.stream, self.taken = stream, stream.produced
        super().__init__(stream, prefetch)

    def __next__(self) -> torch.Tensor:
        batch = super().__next__()
        self.taken += 1
        return batch

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The stream's state with the batches that wait in the queue."""
        with self.paused():
            return self.stream.state_dict(unused=self.stream.produced - self.taken)
