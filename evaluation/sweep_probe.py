"""Log-likelihoods of fixed prompts: what shows that an intervention is in force in a running model, and which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweep_grid import PLAIN, GridPoint

if TYPE_CHECKING:
    from lm_eval.api.model import LM

# Each with a continuation of many tokens, over which small changes of a distribution add up.
PROMPTS = (
    ("What is 12 + 30?", " Let me think. Wait, maybe 12 + 30 is 42, but let me check it in another way."),
    ("A train leaves at noon and", " arrives three hours later. Therefore it arrives at 3 pm, perhaps a little later."),
    ("However, there is another possibility:", " the two numbers are equal. Hmm, alternatively both are zero."),
    ("The capital of France", " is Paris, which lies on the river Seine and has been its capital for centuries."),
)


class ProbeError(RuntimeError):
    """Steering is not what it should be: a defect, not a mistake of the user's."""


class Probe:
    """Takes the model through every intervention and back, and knows each again afterwards.

    `noise` is the largest difference between two measurements of the baseline, before and after all interventions:
    0 where the arithmetic is deterministic. Interventions must differ from the baseline and from one another by
    more. Excepted is the value 0: added, it must change nothing; a feature that is set to 0 changes nothing in a prompt
    in which it never fires.
    """

    def __init__(self, model: LM, points: Sequence[GridPoint]) -> None:
        """Measures all of `points`. Raises ProbeError where one is not in force, or two cannot be told apart."""
        self.model = model
        before = self._measure(PLAIN)
        self.values: dict[str, list[float]] = {"": before}
        for point in points:
            if point.steering is not None:
                self.values[point.name] = self._measure(point)
        self.noise = _distance(before, self._measure(PLAIN))
        self._check(points)

    def change(self, point: GridPoint) -> float:
        """The largest change of a prompt's log-likelihood (natural logarithm) against the baseline."""
        return _distance(self.values[point.name], self.values[""])

    def confirm(self, point: GridPoint) -> None:
        """Raises ProbeError unless the model behaves as it did under `point`, more than under any other."""
        now = log_likelihoods(self.model)
        distances = {name: _distance(now, values) for name, values in self.values.items()}
        if distances[point.name] > min(distances.values()):
            nearest = min(distances, key=distances.__getitem__)
            raise ProbeError(
                f"after the run of {point.name or 'the baseline'} the probe answers as under "
                f"{nearest or 'the baseline'}: its intervention was not in force"
            )

    def _measure(self, point: GridPoint) -> list[float]:
        self.model.set_intervention(point.steering)
        return log_likelihoods(self.model)

    def _check(self, points: Sequence[GridPoint]) -> None:
        kinds = {"": "nothing"} | {point.name: _kind(point) for point in points}
        names = list(self.values)
        for i, name in enumerate(names):
            for other in names[:i]:
                pair = {kinds[name], kinds[other]}
                distance = _distance(self.values[name], self.values[other])
                if pair == {"nothing"} and distance > self.noise:
                    raise ProbeError(f"{name} adds 0, but changes log-likelihoods of the probe by up to {distance:g}")
                if "change" in pair and not distance > self.noise:
                    raise ProbeError(
                        f"{name} does not change the probe against {other or 'the baseline'}: the largest "
                        f"difference of a log-likelihood is {distance:g}, and {self.noise:g} without steering"
                    )


def log_likelihoods(model: LM) -> list[float]:
    """Of the continuation of each of PROMPTS, in nats."""
    import torch
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, prompt, 0, metadata=("probe", number, 1)) for number, prompt in enumerate(PROMPTS)
    ]
    # HFLM adds them up in the model's own format, and bfloat16 cannot tell -65.0 from -65.2.
    dtype = getattr(model, "softmax_dtype", None)
    if hasattr(model, "softmax_dtype"):
        model.softmax_dtype = torch.float32
    try:
        return [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]
    finally:
        if hasattr(model, "softmax_dtype"):
            model.softmax_dtype = dtype


def _kind(point: GridPoint) -> str:
    if point.steering is None:
        return "nothing"
    (feature,) = point.steering.features
    if feature.value != 0 or feature.mode.endswith("clamp"):
        return "change"
    return "nothing" if feature.mode == "add" else "may change"


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
