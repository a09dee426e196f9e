"""The one pass over the text for the dashboards: what the shown features do at every token, kept on the disk.

SAEDashboard by itself runs the model again for every group of features. Here the model runs once, and only the shown
features' columns of the encoder; a feature's activations are read back when its page is made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from reasonscore.sae import ELEMENTWISE, encoder_of
from sae_dashboard.utils_fns import RollingCorrCoef
from torch import Tensor
from tqdm import tqdm

from transformer_lens_r1 import residual_stream
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import atomic_file

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge

ACTIVATIONS, STATE = "activations.npy", "pass.pt"
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


class StoredActivations(NamedTuple):
    """Activations of the shown features at every token, in a file, and their correlations."""

    values: np.ndarray
    """float32 [features, rows, context], mapped from the file; 0 at ignored ids."""
    correlations: Correlations
    """On the CPU."""


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
    features_per_block: int = 8192,
) -> StoredActivations:
    """Run the model over the text once, from where an earlier call for the same folder was interrupted.

    Memory holds one batch; the file takes 4 bytes for each feature and token.

    Args:
        model: loaded at least up to the hook point.
        sae: with the decoder norm folded in, on the model's device.
        tokens: int64 [rows, context].
        features: which to keep, in this order.
        folder: where the file and the state of the pass lie.
        hook_name: where the SAE reads.
        ignored_ids: ids where activations are taken as 0, and which correlations leave out.
        rows_per_batch: rows in a forward pass.
        features_per_block: features encoded at once.

    Raises:
        UserError: an activation is not finite.
    """
    device = sae.W_enc.device
    state: dict[str, Any] = {"rows": 0, "correlations": None}
    if (folder / STATE).is_file():
        state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    done, correlations = state["rows"], Correlations.of(features, device, state["correlations"])
    mode, shape = ("r+", None) if done else ("w+", (len(features), *tokens.shape))
    values = np.lib.format.open_memmap(folder / ACTIVATIONS, mode=mode, dtype=np.float32, shape=shape)
    if sae.cfg.architecture() not in ELEMENTWISE:  # each block would encode all features
        features_per_block = len(features)
    blocks = [
        encoder_of(sae, list(features[start : start + features_per_block]))
        for start in range(0, len(features), features_per_block)
    ]
    ignored = torch.tensor(list(ignored_ids), dtype=torch.int64)
    saved = time.monotonic()
    with torch.no_grad(), tqdm(total=len(tokens), initial=done, desc="activations", unit="row") as bar:
        while done < len(tokens):
            batch = tokens[done : done + rows_per_batch]
            kept = ~torch.isin(batch, ignored).to(device)
            residual = residual_stream(model, batch.to(device), hook_name)  # [batch, pos, d_in]
            encoded = torch.cat([encode(residual) for encode in blocks], dim=-1).float()
            encoded.masked_fill_(~kept[..., None], 0)
            if not encoded.isfinite().all():
                raise UserError("some activations are not finite in these number formats: try --dtype float32")
            values[:, done : done + len(batch)] = encoded.permute(2, 0, 1).cpu().numpy()
            counted = encoded[kept].T  # [features, tokens]
            correlations.neurons.update(counted, residual[kept].T)
            correlations.features.update(counted, counted)
            done += len(batch)
            bar.update(len(batch))
            if time.monotonic() - saved > SAVE_EVERY or done == len(tokens):
                values.flush()
                with atomic_file(folder / STATE) as temporary:
                    torch.save({"rows": done, "correlations": correlations.state()}, temporary)
                saved = time.monotonic()
    return StoredActivations(values, Correlations.of(features, "cpu", correlations.state()))
