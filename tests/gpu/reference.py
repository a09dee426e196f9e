"""What results are compared with: transformers and the whole SAE in float32 on the CPU, without the project's code.

Features are in folded units: every decoder direction has unit norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from material import Material
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM


class Reference:
    """The model and the SAE."""

    def __init__(self, material: Material) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(material.checkpoint, dtype=torch.float32).eval()
        self.layer = self.model.model.layers[material.sizes.layer]
        weights = load_file(material.sae / "sae_weights.safetensors")
        norm = weights["W_dec"].norm(dim=1)
        self.w_enc, self.b_enc = weights["W_enc"].mul_(norm), weights["b_enc"].mul_(norm)
        self.w_dec, self.b_dec = weights["W_dec"].div_(norm[:, None]), weights["b_dec"]

    @torch.no_grad()
    def residual(self, tokens: Tensor) -> Tensor:
        """Residual streams [rows, pos, d_in] behind the SAE's layer, for ids [rows, pos]."""
        seen: list[Tensor] = []
        with self._changed(lambda x: (seen.append(x), x)[1]):
            for row in tokens:
                self.model(row[None])
        return torch.cat(seen)

    def features(self, x: Tensor) -> Tensor:
        """Activations [..., d_sae] of all features at residual streams [..., d_in]."""
        return torch.relu(x @ self.w_enc + self.b_enc)

    def set_features(self, x: Tensor, values: Mapping[int, float]) -> Tensor:
        """x as the whole SAE rebuilds it with some features at given values, plus the SAE's error at x."""
        features = self.features(x)
        error = x - (features @ self.w_dec + self.b_dec)
        for feature, value in values.items():
            features[..., feature] = value
        return features @ self.w_dec + self.b_dec + error

    @torch.no_grad()
    def log_likelihood(self, context: Sequence[int], rest: Sequence[int], values: Mapping[int, float]) -> float:
        """Log-likelihood of `rest` after `context`, with features set at every position."""
        ids = torch.tensor([*context, *rest])
        with self._changed((lambda x: self.set_features(x, values)) if values else (lambda x: x)):
            logits = self.model(ids[None]).logits[0]
        each = logits[:-1].log_softmax(dim=-1).gather(1, ids[1:, None])[:, 0]
        return each[-len(rest) :].sum().item()

    @contextmanager
    def _changed(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        def hook(_module: object, _inputs: object, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        handle = self.layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class Expected(NamedTuple):
    """What a pass over rows must find."""

    scores: Tensor
    """float64 [d_sae]"""
    n_positions: Tensor
    """int64 [|W| + 2]: of each word, of any word, of none."""
    n_active: Tensor
    """int64 [d_sae]"""
    maximum: Tensor
    """float32 [d_sae]"""


def expected_scores(activations: Tensor, sets: Sequence[set[tuple[int, int]]], *, alpha: float) -> Expected:
    """ReasonScore from its definition, in float64.

    Args:
        activations: [rows, pos, d_sae], in folded units.
        sets: (row, position) of each word, of any word, and of none.
        alpha: weight of the entropy.
    """
    member = torch.zeros(len(sets), *activations.shape[:2], dtype=torch.float64)
    for of_set, positions in zip(member, sets, strict=True):
        of_set[tuple(torch.tensor(sorted(positions), dtype=torch.int64).view(-1, 2).T)] = 1
    n_positions = member.sum(dim=(1, 2))
    sums = sum(member[:, row] @ of_row.double() for row, of_row in enumerate(activations))  # [|W| + 2, d_sae]
    means = sums / n_positions.clamp(min=1)[:, None]
    words, mean_pos, mean_neg = means[:-2], means[-2], means[-1]
    p = words / (words.sum(dim=0) + 1e-12)
    entropy = torch.special.entr(p).sum(dim=0) / math.log(len(words))
    scores = mean_pos / (mean_pos.sum() + 1e-12) * entropy**alpha - mean_neg / (mean_neg.sum() + 1e-12)
    kept = activations[member[-2:].sum(dim=0) > 0]
    return Expected(scores, n_positions.long(), (kept > 0).sum(dim=0), kept.amax(dim=0))


def distance(result: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest number that is expected."""
    expected = expected.double()
    return ((result.double().cpu() - expected).abs().max() / expected.abs().max()).item()


def total_norm(tensors: Iterable[Tensor]) -> float:
    """The norm of all numbers of some tensors together."""
    return sum(tensor.square().sum().item() for tensor in tensors) ** 0.5
