"""vLLM's worker with the intervention inside the model, where torch.compile, CUDA graphs and every rank have it.

vLLM loads the class by its name (`worker_cls`). `additional_config["lm_eval_sae"]["slots"]` says which layers can be
changed and how many features of each; as it is part of vLLM's compile-cache key, graphs with and without it are kept
apart. Which features, and to what, lies in buffers: `set_intervention` changes them between requests.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname

from lm_eval_sae.engines.vllm_engine import CONFIG_KEY
from lm_eval_sae.steering.intervention import FeatureIntervention

WORKERS = {True: "vllm.v1.worker.cpu_worker.CPUWorker", False: "vllm.v1.worker.gpu_worker.Worker"}  # by is_cpu()

PlatformWorker: Any = resolve_obj_by_qualname(WORKERS[current_platform.is_cpu()])


class SteeredLayer(nn.Module):
    """A decoder layer of vLLM's Llama or Qwen2, whose two outputs together are the residual stream x.

    vLLM returns x as (MLP output, residual) and adds them in the next norm: the features are read from the sum, or as
    published from the first half alone, and the change goes into that half.
    """

    def __init__(self, layer: nn.Module, intervention: FeatureIntervention) -> None:
        super().__init__()
        self.layer = layer
        self.intervention = intervention

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        mlp_out, residual = self.layer(*args, **kwargs)  # [tokens, d_in] each
        x = mlp_out.float() + self.intervention.reads_residual * residual.float()
        change = self.intervention.change(x)
        # Part of the graph that ran, and so the proof that it did.
        self.intervention.positions.add_(mlp_out.shape[0])
        return (mlp_out.float() + change).to(mlp_out.dtype), residual


class SteeringWorker(PlatformWorker):
    """The platform's own worker, with the layers of `slots` wrapped before anything is traced."""

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        slots = self.vllm_config.additional_config[CONFIG_KEY]["slots"]
        layers = self.get_model().model.layers
        self.interventions: dict[str, FeatureIntervention] = {}  # of the layers that this pipeline rank owns
        for layer, count in slots.items():
            index = int(layer)
            if not any(True for _ in layers[index].parameters()):
                continue  # another rank's
            d_in = self.model_config.hf_text_config.hidden_size
            self.interventions[layer] = FeatureIntervention(d_in, count).to(self.device)
            layers[index] = SteeredLayer(layers[index], self.interventions[layer])

    def set_intervention(self, values: Mapping[str, Mapping[str, list]]) -> list[str]:
        """Loads the buffers of every layer of this rank (lists of `slot_values`, by layer) and returns the layers."""
        for layer, intervention in self.interventions.items():
            intervention.load({name: torch.tensor(value) for name, value in values[layer].items()})
        return list(self.interventions)

    def steered_positions(self) -> dict[str, int]:
        """Token positions that each layer of this rank changed since the intervention was set."""
        return {layer: int(intervention.positions) for layer, intervention in self.interventions.items()}
