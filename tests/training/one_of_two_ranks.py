"""What two ranks that torchrun starts do in test_ranks.py: a short training on given batches.

torchrun --standalone --nproc_per_node 2 one_of_two_ranks.py FILE
"""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

from sae_training.trainer import Trainer  # noqa: E402

from transformer_lens_r1.shared.ranks import Ranks, joined_ranks  # noqa: E402

D_IN, D_SAE, BATCH, NORM_BATCHES, STEPS = 32, 96, 128, 3, 6
NEVER, IN_SECOND_HALF = slice(0, 20), slice(20, 50)  # features


def train(ranks: Ranks) -> dict[str, Any]:
    """Figures and gradients of a training in which some features are active only in the second half of every batch."""
    torch.manual_seed(ranks.rank)  # all start with the weights of the first rank
    config = {
        "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "l1_coefficient": 2.0,
        "apply_b_dec_to_input": False, "normalize_activations": "expected_average_only_in",
    }  # fmt: skip
    sae = TrainingSAE.from_dict(config)
    with torch.no_grad():
        sae.b_enc[NEVER], sae.b_enc[IN_SECOND_HALF] = -1000, -20
        sae.W_enc[0, IN_SECOND_HALF] = 10

    def shares() -> Any:
        generator = torch.Generator().manual_seed(1)
        while True:
            batch = torch.randn(BATCH, D_IN, generator=generator)
            batch[:, 0] = (torch.arange(BATCH) >= BATCH // 2) * 5
            batch *= torch.linspace(0.5, 2, BATCH)[:, None]  # another mean norm on each rank
            yield batch[ranks.rows(BATCH).start : ranks.rows(BATCH).stop]

    cfg = SAETrainerConfig(
        total_training_samples=STEPS * BATCH, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-3,
        dead_feature_window=3, n_batches_for_norm_estimate=NORM_BATCHES,
    )  # fmt: skip
    trainer = Trainer(cfg, sae, shares(), between_steps=lambda _: None, save_snapshot=lambda _: None, ranks=ranks)
    gradients: list[dict[str, torch.Tensor]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def note(parameters: Any, limit: float) -> Any:
        gradients.append({name: weight.grad.clone() for name, weight in sae.named_parameters()})
        return clip(parameters, limit)

    scales: list[float] = []
    fold = sae.fold_activation_norm_scaling_factor
    sae.fold_activation_norm_scaling_factor = lambda scale: (scales.append(scale), fold(scale))
    with mock.patch.object(torch.nn.utils, "clip_grad_norm_", note):
        trainer.fit()
    return {
        "gradients": gradients[0], "weights": sae.state_dict(), "scale": scales[0],
        "since_fired": trainer.n_forward_passes_since_fired, "fired": trainer.act_freq_scores,
        "counted_tokens": trainer.n_frac_active_samples, "tokens": trainer.n_training_samples,
        "dead": trainer.dead_neurons,
    }  # fmt: skip


if __name__ == "__main__":
    with joined_ranks() as ranks:
        ranks.connect("cpu")
        torch.save(train(ranks), f"{sys.argv[1]}.{ranks.rank}")
