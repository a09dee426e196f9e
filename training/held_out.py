"""How well an SAE reconstructs rows that it was never trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens.saes.sae import SAE, TrainingSAE
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.activations_store import ActivationsStore


@dataclass(frozen=True)
class Quality:
    """Figures over all tokens of the held-out rows."""

    tokens: int  # positions measured, special tokens left out where training leaves them out
    l0: float  # mean number of active features per token
    explained_variance: float  # 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², with x̄ the mean activation
    silent_features: int  # features that are active on none of the tokens


@torch.no_grad()
def measure(sae: SAE[Any] | TrainingSAE[Any], batches: Iterable[torch.Tensor]) -> Quality:
    """Reconstruction quality of `sae` on batches of activations [tokens, d_in], in the units that the SAE expects."""
    tokens, active, error = 0, 0.0, 0.0
    total = square = fired = None
    for batch in batches:
        x = batch.to(device=sae.device, dtype=torch.float32)  # [tokens, d_in]
        features = sae.encode(x)  # [tokens, d_sae]
        reconstruction = sae.decode(features).float()
        if features.is_sparse:
            features = features.to_dense()
        if total is None or square is None or fired is None:
            total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
            square = torch.zeros_like(total)
            fired = torch.zeros(features.shape[1], dtype=torch.bool, device=x.device)
        tokens += len(x)
        active += (features > 0).sum().item()
        error += (x - reconstruction).double().square().sum().item()
        total += x.double().sum(0)
        square += x.double().square().sum(0)
        fired |= (features > 0).any(0)
    if total is None or square is None or fired is None or tokens == 0:
        raise ValueError("there are no tokens to measure on")
    variance = (square - total.square() / tokens).sum().item()
    return Quality(
        tokens=tokens,
        l0=active / tokens,
        explained_variance=1 - error / variance,
        silent_features=int((~fired).sum().item()),
    )


class HeldOutEvaluator:
    """Takes the place of SAELens' evaluator, which reads the training rows and a loss that a cut-off model has not."""

    def __init__(self, store: ActivationsStore, rows: Dataset, *, batch_size: int) -> None:
        """Args: the store that the run trains from (how activations are taken), rows with `tokens`, rows at a time."""
        self.store, self.rows, self.batch_size = store, rows, batch_size

    def batches(self) -> Iterable[torch.Tensor]:
        """Activations [tokens, d_in] of the held-out rows, as training would see them but for the scaling."""
        store = self.store
        for start in range(0, len(self.rows), self.batch_size):
            tokens = torch.tensor(self.rows[start : start + self.batch_size]["tokens"][:])  # [rows, context]
            activations = store.get_activations(tokens.to(next(store.model.parameters()).device))
            activations = activations.reshape(-1, activations.shape[-1])
            if store.exclude_special_tokens is not None:
                ids = tokens[:, slice(*store.seqpos_slice)].reshape(-1).to(activations.device)
                activations = activations[~torch.isin(ids, store.exclude_special_tokens.to(activations.device))]
            yield activations

    def quality(self, sae: SAE[Any] | TrainingSAE[Any]) -> Quality:
        """Figures of an SAE that takes activations as the model gives them."""
        return measure(sae, self.batches())

    def __call__(
        self, sae: TrainingSAE[Any], data_provider: Any, activation_scaler: ActivationScaler
    ) -> dict[str, float]:
        """Figures for W&B in the middle of a run, where the SAE still expects scaled activations."""
        quality = measure(sae, (activation_scaler(batch) for batch in self.batches()))
        return {f"held_out/{name}": value for name, value in asdict(quality).items() if name != "tokens"}
