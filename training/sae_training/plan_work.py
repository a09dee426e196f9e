"""Parameters, and the floating-point work of matrix products, of models and SAEs that have sizes but no data.

torch counts the operations, a multiplication and an addition as two. The rest of a run's work is bound by memory, and
covered by the utilisation that a plan assumes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from sae_training.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class ModelWork:
    """A language model, by its parts: all layers are alike."""

    layer_parameters: int
    other_parameters: int  # embeddings and the final norm
    layer_flops: int  # of a row, attention computed in full (its mask saves nothing)
    unembedding_flops: int  # of a row

    @classmethod
    def of_config(cls, config: PretrainedConfig, *, context: int) -> ModelWork:
        """Count a model with one layer, at a row of `context` tokens."""
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(config)
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:1]
        # The fused attention of a CPU is not counted, so: eager.
        with FakeTensorMode(), torch.no_grad():
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            tokens = torch.zeros(1, context, dtype=torch.int64)
            with FlopCounterMode(display=False) as to_hook:
                model.base_model(tokens)
            with FlopCounterMode(display=False) as whole:
                model(tokens)
        layer = sum(parameter.numel() for parameter in model.base_model.layers[0].parameters())
        return cls(
            layer_parameters=layer,
            other_parameters=sum(parameter.numel() for parameter in model.parameters()) - layer,
            layer_flops=to_hook.get_total_flops(),
            unembedding_flops=whole.get_total_flops() - to_hook.get_total_flops(),
        )

    def parameters(self, n_layers: int) -> int:
        """Of the first `n_layers` layers, both embeddings and the final norm: what `load_model` loads."""
        return self.other_parameters + n_layers * self.layer_parameters

    def flops(self, n_layers: int, *, unembed: bool = False) -> int:
        """Of a row that passes through `n_layers` layers."""
        return n_layers * self.layer_flops + unembed * self.unembedding_flops


def sae_flops(config: dict[str, Any], batch: int) -> tuple[int, int]:
    """Work of a training step on `batch` tokens, and of encoding and decoding as many.

    Args:
        config: the SAE's, as `TrainingSAE.from_dict` takes it.
        batch: tokens.
    """
    with FakeTensorMode():
        sae = TrainingSAE.from_dict({**config, "device": "cpu"})
        trainer = Trainer(
            cfg=SAETrainerConfig(10 * batch, batch, lr_end=1e-5), sae=sae, data_provider=iter(()),
            between_steps=lambda _: None, save_snapshot=lambda _: None,
        )  # fmt: skip
        x = torch.zeros(batch, sae.cfg.d_in)
        with FlopCounterMode(display=False) as step:
            trainer.step(x)
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            sae(x)
    return step.get_total_flops(), forward.get_total_flops()
