"""The one pass over the text for the dashboards: what the shown features do at every token, kept on the disk.

SAEDashboard by itself runs the model again for every group of features. Here the model runs once, and only the shown
features' columns of the encoder; a feature's activations are read back when its page is made. Several ranks share the
rows out: each keeps the activations of its own rows in a file of its own, and all read every file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from reasonscore.sae import encoder_of
from sae_dashboard.utils_fns import RollingCorrCoef
from torch import Tensor
from tqdm import tqdm

from transformer_lens_r1 import residual_stream
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import atomic_file
from transformer_lens_r1.shared.ranks import Ranks

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge

SAVE_EVERY = 20.0
"""Seconds between two states that an interrupted pass continues from."""
SUMS = ("n", "X", "Y", "x_sum", "xy_sum", "x2_sum", "y_sum", "y2_sum")
"""What a `RollingCorrCoef` adds up."""


class Correlations(NamedTuple):
    """Rolling sums of SAEDashboard for the tables of correlated neurons and features."""

    neurons: RollingCorrCoef
    """Of the features [features] with the residual stream's dimensions [d_in]."""
    features: RollingCorrCoef
    """Of the features with each other."""

    @classmethod
    def of(
        cls, features: Sequence[int], device: torch.device | str, state: dict[str, dict[str, Any]] | None = None
    ) -> Correlations:
        """Sums on a device: over no text, or those that `state` gave."""
        # In the library's default, float32, the differences of large sums that a correlation is would be noise.
        new = cls(
            RollingCorrCoef(dtype=torch.float64, device=device),
            RollingCorrCoef(indices=list(features), with_self=True, dtype=torch.float64, device=device),
        )
        for name, sums in (state or {}).items():
            moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in sums.items()}
            vars(getattr(new, name)).update(moved)
        return new

    def state(self) -> dict[str, dict[str, Any]]:
        """The sums, as `torch.load(weights_only=True)` reads them back."""
        return {
            name: {key: value for key, value in vars(sums).items() if key in SUMS}
            for name, sums in self._asdict().items()
        }

    def update(self, activations: Tensor, residual: Tensor, n_counted: int) -> None:
        """Add a batch.

        Args:
            activations: [batch, pos, features]; like `residual`, 0 at positions that do not count.
            residual: [batch, pos, d_in].
            n_counted: positions that do.
        """
        x, y = activations.flatten(0, 1).T, residual.flatten(0, 1).T
        for sums, other in ((self.neurons, y), (self.features, x)):
            before = sums.n
            sums.update(x, other)
            sums.n = before + n_counted  # the library counts all positions

    def add_over_ranks(self, ranks: Ranks) -> None:
        """Make these, on every rank, the sums over all ranks' rows."""
        for sums in self:
            n = torch.tensor(sums.n)
            tensors = [value for key, value in vars(sums).items() if key in SUMS and isinstance(value, Tensor)]
            for tensor in (n, *tensors):
                ranks.add_everywhere(tensor)
            sums.n = int(n)


class StoredActivations(NamedTuple):
    """Activations of the shown features at every token, in files, and their correlations."""

    parts: list[np.ndarray]
    """float32 [features, rows, context] for each rank's rows, mapped from its file; 0 at ignored ids."""
    correlations: Correlations
    """On the CPU."""

    def of(self, index: int) -> Tensor:
        """[rows, context] of one of the features."""
        return torch.from_numpy(np.concatenate([part[index] for part in self.parts]))


def read_activations(folder: Path, n_ranks: int) -> list[np.ndarray]:
    """`StoredActivations.parts` of a pass that is complete."""
    return [np.load(_file(folder, rank), mmap_mode="r") for rank in range(n_ranks)]


def _file(folder: Path, rank: int) -> Path:
    return folder / f"activations_{rank}.npy"


def store_activations(
    model: TransformerBridge,
    sae: SAE,
    tokens: Tensor,
    features: Sequence[int],
    folder: Path,
    *,
    hook_name: str,
    ignored_ids: Sequence[int] = (),
    rows_per_batch: int = 16,
    ranks: Ranks | None = None,
) -> StoredActivations:
    """Run the model over the text once, from where an earlier call for the same folder was interrupted.

    Memory holds one batch; the files take 4 bytes for each feature and token.

    Args:
        model: loaded at least up to the hook point.
        sae: with the decoder norm folded in, on the model's device.
        tokens: int64 [rows, context], on the CPU.
        features: which to keep, in this order.
        folder: where the files and the state of each rank's pass lie; all ranks must see it.
        hook_name: where the SAE reads.
        ignored_ids: ids where activations are taken as 0, and which correlations leave out.
        rows_per_batch: rows in a forward pass.
        ranks: that share the rows out.

    Raises:
        UserError: an activation is not finite.
    """
    ranks, device = ranks or Ranks(), sae.W_enc.device
    rows, state_file = ranks.rows(len(tokens)), folder / f"pass_{ranks.rank}.pt"
    state: dict[str, Any] = {"done": 0, "correlations": None}
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True, map_location="cpu")
    done, correlations = state["done"], Correlations.of(features, device, state["correlations"])
    mode, shape = ("r+", None) if done else ("w+", (len(features), len(rows), tokens.shape[1]))
    values = np.lib.format.open_memmap(_file(folder, ranks.rank), mode=mode, dtype=np.float32, shape=shape)
    encode = encoder_of(sae, torch.tensor(features, device=device))
    own = tokens[rows.start : rows.stop]
    ignored = torch.isin(own, torch.tensor(list(ignored_ids), dtype=torch.int64))
    if device.type == "cuda":
        own, ignored = own.pin_memory(), ignored.pin_memory()
    if not done:  # a rank without rows must have sums too
        correlations.update(torch.zeros(0, 0, len(features)), torch.zeros(0, 0, sae.cfg.d_in), 0)
    saved = time.monotonic()
    bar = tqdm(total=len(own), initial=done, desc="activations", unit="row", disable=not ranks.is_first)
    with torch.no_grad(), bar:
        while done < len(own):
            batch = slice(done, min(done + rows_per_batch, len(own)))
            residual = residual_stream(model, own[batch].to(device, non_blocking=True), hook_name)  # [batch, pos, d_in]
            mask = ignored[batch].to(device, non_blocking=True)[..., None]
            encoded = encode(residual).float().masked_fill_(mask, 0)
            correlations.update(encoded, residual.masked_fill_(mask, 0), int((~ignored[batch]).sum()))
            on_host = encoded.permute(2, 0, 1).cpu()  # [features, batch, pos]
            if not on_host.isfinite().all():
                raise UserError("some activations are not finite in these number formats: try --dtype float32")
            values[:, batch] = on_host.numpy()
            bar.update(batch.stop - done)
            done = batch.stop
            if time.monotonic() - saved > SAVE_EVERY or done == len(own):
                values.flush()
                with atomic_file(state_file) as temporary:
                    torch.save({"done": done, "correlations": correlations.state()}, temporary)
                saved = time.monotonic()
    correlations.add_over_ranks(ranks)  # which waits until all files are complete
    parts = read_activations(folder, ranks.size)
    return StoredActivations(parts, Correlations.of(features, "cpu", correlations.state()))
