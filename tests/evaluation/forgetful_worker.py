"""A worker whose layers are not steered, although it was told to: what the count of positions must notice."""

from typing import Any

from lm_eval_sae.engines.vllm_worker import SteeredLayer, SteeringWorker


class ForgetfulWorker(SteeringWorker):
    """Puts the plain layers back after loading."""

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        layers = self.get_model().model.layers
        for index, layer in enumerate(layers):
            if isinstance(layer, SteeredLayer):
                layers[index] = layer.layer
