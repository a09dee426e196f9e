"""SAELens' trainer, made to stop and continue at any step, to share a batch among ranks, and to do no needless work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.standard_sae import StandardTrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from transformer_lens_r1.shared.ranks import Ranks

NORM_ESTIMATED = "expected_average_only_in"


def firing_counts(features: torch.Tensor) -> torch.Tensor:
    """On how many of the tokens each feature is active: [n, d_sae] to float32 [d_sae]."""
    if features.is_sparse:
        return features.bool().float().sum(0).to_dense()
    active = (features != 0).view(torch.uint8)
    # Up to 255 ones fit a byte, and sums of bytes move a quarter of the memory that sums of floats do.
    return torch.stack([part.sum(0, dtype=torch.uint8) for part in active.split(255)]).sum(0, dtype=torch.float32)


def skip_needless_work(sae: TrainingSAE[Any]) -> None:
    """Spare the training step of `sae`, in place, work that does not change its result.

    - If the decoder bias is not subtracted from the input, SAELens subtracts 0 · b_dec, and the backward pass
      computes the gradient of the input for it: one of six matrix products of a step.
    - The L1 penalty of a standard SAE, λ · mean over tokens of Σ_i |f_i · ‖d_i‖| with f_i ≥ 0, is a matrix-vector
      product; SAELens writes out the products and their signs, each as large as all feature activations.
    """
    if not sae.cfg.apply_b_dec_to_input:
        process = sae.process_sae_in
        sae.process_sae_in = lambda sae_in: process(sae_in).detach()  # type: ignore[method-assign]
    if type(sae) is StandardTrainingSAE and sae.cfg.lp_norm == 1.0:
        sae.calculate_aux_loss = partial(_l1_loss, sae)  # type: ignore[method-assign]


def _l1_loss(
    sae: StandardTrainingSAE, step_input: TrainStepInput, feature_acts: torch.Tensor, **_: Any
) -> dict[str, torch.Tensor]:
    with torch.autocast(feature_acts.device.type, enabled=False):  # sums of many terms, in float32 like SAELens' norm
        penalty = feature_acts.to(sae.W_dec.dtype) @ sae.W_dec.norm(dim=1)  # [tokens]
    return {"l1_loss": (step_input.coefficients["l1"] * penalty).mean()}


class TrainingForward(torch.nn.Module):
    """SAELens' forward pass as that of a module: DDP averages no gradients of what runs past its module's `forward`."""

    def __init__(self, sae: TrainingSAE[Any]) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, step_input: TrainStepInput) -> TrainStepOutput:
        return self.sae.training_forward_pass(step_input=step_input)


class Trainer(SAETrainer[TrainingSAE[Any], Any]):
    """Calls `between_steps` after each step, and after each batch of the norm estimate.

    Of several ranks each is given its share of a batch. Losses are means over tokens and shares are equal, so the mean
    of the ranks' gradients is the gradient of the batch. Tokens, firing counts and norms are those of the whole batch.
    """

    def __init__(
        self,
        *args: Any,
        between_steps: Callable[[Trainer], None],
        save_snapshot: Callable[[Trainer], None],
        is_folded: bool = False,
        ranks: Ranks = Ranks(),  # noqa: B008 - one process, and frozen
        **kwargs: Any,
    ) -> None:
        """
        Args:
            between_steps: may save a checkpoint; what it raises ends the training.
            save_snapshot: is called as often as `n_checkpoints` says.
            is_folded: whether the weights are a finished SAE's, made for activations as the model gives them.
            ranks: that train together; all start with the first one's weights.
        """
        super().__init__(*args, **kwargs)
        self.between_steps, self.save_snapshot, self.ranks = between_steps, save_snapshot, ranks
        self.is_folded = is_folded
        self.norm_batches, self.norm_count = 0, 0
        self.norm_sum = torch.zeros((), dtype=torch.float64, device=self.cfg.device)
        skip_needless_work(self.sae)
        self.forward: torch.nn.Module = TrainingForward(self.sae)
        if ranks.size > 1:
            self.forward = DistributedDataParallel(self.forward, gradient_as_bucket_view=True)
        for group in self.optimizer.param_groups:
            group["fused"] = True  # one pass over weights and moments; parameters and state are those of plain Adam

    def state(self) -> dict[str, Any]:
        """What `save_trainer_state` does not save."""
        return {
            "norm_batches": self.norm_batches, "norm_sum": self.norm_sum.item(), "norm_count": self.norm_count,
        }  # fmt: skip

    def load(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's trainer state and what `state` gave."""
        self.load_trainer_state(checkpoint)
        self.norm_batches, self.norm_count = state["norm_batches"], state["norm_count"]
        self.norm_sum.fill_(state["norm_sum"])
        self.checkpoint_thresholds = [at for at in self.checkpoint_thresholds if at >= self.n_training_samples]

    def fit(self) -> TrainingSAE[Any]:
        if self.sae.cfg.normalize_activations == NORM_ESTIMATED and self.activation_scaler.scaling_factor is None:
            self._estimate_norm()
        return super().fit()

    @torch.no_grad()
    def _estimate_norm(self) -> None:
        """The factor √d_in / (mean norm of an activation), over `n_batches_for_norm_estimate` batches of the stream."""
        batches = self.cfg.n_batches_for_norm_estimate
        with tqdm(total=batches, initial=self.norm_batches, desc="Estimating the mean norm", leave=False) as progress:
            while self.norm_batches < batches:
                norms = next(self.data_provider).float().norm(dim=-1)  # [tokens]
                total = norms.sum().to(self.norm_sum)
                self.ranks.add_everywhere(total)
                self.norm_sum += total
                self.norm_count += self.ranks.size * norms.numel()
                self.norm_batches += 1
                progress.update()
                self.between_steps(self)
        factor = self.sae.cfg.d_in**0.5 * self.norm_count / self.norm_sum.item()
        if self.is_folded:
            # For activations s x: W_enc / s, s W_dec, s b_dec. `fit` folds the factor in again, and the config says so.
            self.sae.fold_activation_norm_scaling_factor(1 / factor)
            self.sae.cfg.normalize_activations = NORM_ESTIMATED
        self.activation_scaler.scaling_factor = factor

    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        self.n_training_samples += (self.ranks.size - 1) * len(batch)  # the other ranks' shares
        # First the device, then the format: half the bytes cross over, and from pinned memory.
        return super().step(batch.to(self.sae.device, non_blocking=True).to(self.sae.dtype))

    def _train_step(self, sae: TrainingSAE[Any], sae_in: torch.Tensor) -> TrainStepOutput:
        sae.train()
        step_input = TrainStepInput(
            sae_in=sae_in,
            coefficients=self.get_coefficients(),
            dead_neuron_mask=self.dead_neurons,
            n_training_steps=self.n_training_steps,
            is_logging_step=self._is_logging_step(),
        )
        with self.autocast_if_enabled:
            output = self.forward(step_input)
        with torch.no_grad():
            counts = firing_counts(output.feature_acts)
            self.ranks.add_everywhere(counts)
            self.n_forward_passes_since_fired.add_(1).masked_fill_(counts > 0, 0)
            self.act_freq_scores.add_(counts)
            self.n_frac_active_samples += self.cfg.train_batch_size_samples
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    def _checkpoint_if_needed(self) -> None:
        if self.checkpoint_thresholds and self.n_training_samples > self.checkpoint_thresholds[0]:
            self.checkpoint_thresholds.pop(0)
            self.save_snapshot(self)

    def _update_pbar(self, step_output: TrainStepOutput, pbar: Any, update_interval: int = 100) -> None:
        # SAELens moves its bar every 100 steps, which is half of a short run.
        super()._update_pbar(step_output, pbar, max(1, min(update_interval, self.cfg.total_training_steps // 100)))
        # The loop of `fit` has just finished a step: nothing of it is half done.
        try:
            self.between_steps(self)
        except BaseException:
            pbar.close()
            raise
