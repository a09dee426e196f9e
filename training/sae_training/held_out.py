"""How good an SAE is, measured on rows that it was never trained on.

The SAE is defined at the positions that training reads: those of `seqpos_slice` that hold no excluded token. All
figures are about these positions. Where the model's loss is measured, the reconstruction takes the place of the
activation there, and everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from sae_training.activations import ActivationSource, read_tokens
from transformer_lens_r1.forward import logits
from transformer_lens_r1.shared.ranks import Ranks

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens.saes.sae import SAE, TrainingSAE
    from sae_lens.training.activation_scaler import ActivationScaler

Change = Callable[[torch.Tensor], torch.Tensor]  # activations [n, d_in] to what replaces them


@dataclass(frozen=True)
class Quality:
    """Figures over all measured positions of the held-out rows; the last four need the whole model."""

    tokens: int  # positions measured
    l0: float  # mean number of active features per token
    explained_variance: float  # 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², with x̄ the mean activation
    silent_features: int  # features that are active on none of the tokens
    # Mean cross-entropy in nats of the next token, predicted at the measured positions by the model as it is (CE), by
    # the model with the SAE's reconstruction in place of the activation there (CE_sae), and with zeros there (CE_zero).
    ce_loss: float | None = None
    ce_loss_with_sae: float | None = None
    ce_loss_with_zeros: float | None = None
    # (CE_zero − CE_sae) / (CE_zero − CE): 1 for a perfect reconstruction, 0 for one that is as bad as zeros
    ce_loss_recovered: float | None = None

    def figures(self) -> dict[str, float]:
        """Those that were measured, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Sums:
    """What the figures of an SAE are made of, added up over batches of activations."""

    def __init__(self, d_in: int, d_sae: int, device: torch.device | str) -> None:
        self.tokens, self.active, self.error = 0, 0.0, 0.0
        self.total = torch.zeros(d_in, dtype=torch.float64, device=device)
        self.square = torch.zeros_like(self.total)
        self.fired = torch.zeros(d_sae, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, x: torch.Tensor, features: torch.Tensor, reconstruction: torch.Tensor) -> None:
        """Count in activations [n, d_in], their features [n, d_sae] and their reconstruction [n, d_in]."""
        if features.is_sparse:
            features = features.to_dense()
        on = features > 0
        self.tokens += len(x)
        self.active += on.sum().item()
        self.error += (x - reconstruction).double().square().sum().item()
        self.total += x.double().sum(0)
        self.square += x.double().square().sum(0)
        self.fired += on.sum(0)

    def add_ranks(self, ranks: Ranks) -> None:
        """Count in what the other ranks have added up, as they do with this one's."""
        sums = torch.tensor([self.tokens, self.active, self.error], dtype=torch.float64)
        for tensor in (sums, self.total, self.square, self.fired):
            ranks.add_everywhere(tensor)
        self.tokens, self.active, self.error = int(sums[0]), *sums[1:].tolist()

    def quality(self, **losses: float) -> Quality:
        """The figures, with cross-entropies that were measured beside them."""
        if self.tokens == 0:
            raise ValueError("there are no tokens to measure on")
        variance = (self.square - self.total.square() / self.tokens).sum().item()
        return Quality(
            tokens=self.tokens,
            l0=self.active / self.tokens,
            explained_variance=1 - self.error / variance,
            silent_features=int((self.fired == 0).sum().item()),
            **losses,
        )


class HeldOutEvaluator:
    """Takes the place of SAELens' evaluator, which reads the training rows."""

    def __init__(
        self,
        source: ActivationSource,
        rows: Dataset,
        *,
        batch_size: int,
        cross_entropy: bool = False,
        ranks: Ranks = Ranks(),  # noqa: B008 - one process, and frozen
    ) -> None:
        """
        Args:
            source: the model (all its layers if `cross_entropy` is asked for), and where the SAE is defined.
            rows: rows with `tokens` to measure on.
            batch_size: rows in one pass of the model.
            cross_entropy: whether to measure the model's loss too: a pass through all layers for each evaluation, and
                two more, whose result is kept, for the first.
            ranks: among which the rows are shared out; each gets the figures of all rows.
        """
        self.source, self.batch_size, self.ranks = source, batch_size, ranks
        self.rows = rows if ranks.size == 1 else rows.select(ranks.rows(len(rows)))
        self.cross_entropy = cross_entropy
        self.bounds: tuple[float, float] | None = None  # CE and CE_zero, which are the same for every SAE

    def batches(self) -> Iterator[torch.Tensor]:
        """Ids [rows, context] of the held-out rows, on the CPU."""
        for start in range(0, len(self.rows), self.batch_size):
            yield read_tokens(self.rows, start, min(start + self.batch_size, len(self.rows)))

    @torch.no_grad()
    def loss(self, change: Change | None) -> float:
        """Mean cross-entropy in nats of the next token at the SAE's positions, with the activations there changed."""
        total, count = 0.0, 0
        for tokens in self.batches():
            ids, mask = self.source.to_model(tokens), self.source.positions(tokens)
            mask = self.source.to_model(mask)

            def splice(activations: torch.Tensor, mask: torch.Tensor = mask) -> torch.Tensor:
                assert change is not None
                activations = activations.clone()
                activations[mask] = change(activations[mask]).to(activations.dtype)
                return activations

            with self.source.precision():
                predictions = logits(self.source.model, ids, self.source.hook_name, change and splice)
            # Row by row: in float32, the logits of a batch would take more memory than the model.
            for row, predicted, here in zip(ids, predictions, mask, strict=True):
                losses = torch.nn.functional.cross_entropy(predicted[:-1].float(), row[1:], reduction="none")
                total += losses[here[:-1]].double().sum().item()
                count += int(here[:-1].sum().item())
        sums = torch.tensor([total, count], dtype=torch.float64)
        self.ranks.add_everywhere(sums)
        return (sums[0] / sums[1]).item()

    @torch.no_grad()
    def quality(self, sae: SAE[Any] | TrainingSAE[Any], scaler: ActivationScaler | None = None) -> Quality:
        """Figures of an SAE.

        Args:
            sae: takes activations as the model gives them, or as `scaler` scales them.
            scaler: of an SAE in training.
        """
        sums = Sums(sae.cfg.d_in, sae.cfg.d_sae, sae.device)

        def reconstruct(activations: torch.Tensor) -> torch.Tensor:
            # The SAE works in its own number format, whatever the model runs in.
            with torch.autocast(activations.device.type, enabled=False):
                x = activations.to(device=sae.device, dtype=torch.float32)
                scaled = x if scaler is None else scaler.scale(x)
                features = sae.encode(scaled)
                reconstruction = sae.decode(features).float()
                reconstruction = reconstruction if scaler is None else scaler.unscale(reconstruction)
                sums.add(x, features, reconstruction)
            return reconstruction.to(activations.device)

        if not self.cross_entropy:
            for tokens in self.batches():
                reconstruct(self.source.activations(tokens))
            sums.add_ranks(self.ranks)
            return sums.quality()
        if self.bounds is None:
            self.bounds = self.loss(None), self.loss(torch.zeros_like)
        clean, zero = self.bounds
        with_sae = self.loss(reconstruct)
        sums.add_ranks(self.ranks)
        return sums.quality(
            ce_loss=clean,
            ce_loss_with_sae=with_sae,
            ce_loss_with_zeros=zero,
            ce_loss_recovered=(zero - with_sae) / (zero - clean),
        )

    def __call__(
        self, sae: TrainingSAE[Any], data_provider: Any, activation_scaler: ActivationScaler
    ) -> dict[str, float]:
        """Figures for W&B in the middle of a run, where the SAE still expects scaled activations."""
        # A thread that reads ahead uses the same model: it must wait.
        with data_provider.paused() if hasattr(data_provider, "paused") else nullcontext():
            figures = self.quality(sae, activation_scaler).figures()
        return {f"held_out/{name}": value for name, value in figures.items() if name != "tokens"}
