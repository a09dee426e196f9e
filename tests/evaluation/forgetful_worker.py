"""A worker that can be told to lose its interventions: what the count of positions must notice."""

from collections.abc import Sequence
from typing import Any

from lm_eval_sae.engines.vllm_worker import SteeringWorker


class ForgetfulWorker(SteeringWorker):
    """Steers as any other, until it is told to forget."""

    def forget_layer(self, index: int) -> None:
        """Puts the layer back that the steered one wraps."""
        layers = self.get_model().model.layers
        self.remember = lambda: layers.__setitem__(index, steered)
        steered = layers[index]
        layers[index] = steered.layer

    def forget_intervention(self, key: str) -> None:
        """Takes requests of an intervention for those of a baseline."""
        table = self.table
        row_of = table.of

        def of(interventions: Sequence[tuple[str, Any]]) -> list[int]:
            rows = row_of(interventions)
            return [0 if other == key else row for (other, _), row in zip(interventions, rows, strict=True)]

        table.of = of
        self.remember = lambda: delattr(table, "of")

    def remember_again(self) -> None:
        """Steers again."""
        self.remember()
