"""A worker that can be told to lose its steered layers: what the count of positions must notice."""

from lm_eval_sae.engines.vllm_worker import SteeredLayer, SteeringWorker


class ForgetfulWorker(SteeringWorker):
    """Steers as any other, until it is told to forget."""

    def forget(self) -> None:
        """Puts the plain layers back."""
        layers = self.get_model().model.layers
        self.forgotten = {i: layer for i, layer in enumerate(layers) if isinstance(layer, SteeredLayer)}
        for index, steered in self.forgotten.items():
            layers[index] = steered.layer

    def remember(self) -> None:
        """Steers again."""
        for index, steered in self.forgotten.items():
            self.get_model().model.layers[index] = steered
