"""A vLLM worker that runs the whole SAE at every token: what steering.py compares with."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lm_eval_sae.engines.vllm_worker import PlatformWorker


class FullSAELayer(nn.Module):
    """A decoder layer whose output is rebuilt by a standard SAE with one feature set, the error added back."""

    def __init__(self, layer: nn.Module, weights: dict[str, Tensor], feature: int, value: float) -> None:
        super().__init__()
        self.layer, self.feature, self.value = layer, feature, value
        for name, weight in weights.items():
            self.register_buffer(name, weight)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        mlp_out, residual = self.layer(*args, **kwargs)
        x = (mlp_out.float() + residual.float()).to(self.W_enc.dtype)
        acts = torch.relu(x @ self.W_enc + self.b_enc)
        error = x - (acts @ self.W_dec + self.b_dec)
        acts[:, self.feature] = self.value
        return (acts @ self.W_dec + self.b_dec + error - residual).to(mlp_out.dtype), residual


class FullSAEWorker(PlatformWorker):
    """The platform's worker with one layer wrapped, the SAE in the model's dtype."""

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        settings = self.vllm_config.additional_config["full_sae"]
        parameter = next(self.get_model().parameters())
        weights = load_file(Path(settings["path"]) / "sae_weights.safetensors")
        weights = {name: weight.to(device=parameter.device, dtype=parameter.dtype) for name, weight in weights.items()}
        layers = self.get_model().model.layers
        index = settings["layer"]
        layers[index] = FullSAELayer(layers[index], weights, settings["feature"], settings["value"])
