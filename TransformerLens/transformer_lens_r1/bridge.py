"""A TransformerBridge that answers what a part of a model cannot answer with one line instead of a number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from transformer_lens.model_bridge import TransformerBridge

from transformer_lens_r1.shared.errors import UserError

BLOCK = re.compile(r"blocks\.(\d+)\.")


class CheckedBridge(TransformerBridge):
    """What `load_model` gives: hooks beyond the last layer are refused, which a bridge alone leaves out in silence."""

    n_layers_of_checkpoint: int

    @classmethod
    def of(cls, model: TransformerBridge, n_layers_of_checkpoint: int) -> CheckedBridge:
        """Make ``model``, in place, one of this class; with fewer layers than its checkpoint it refuses losses."""
        model.__class__ = cls
        object.__setattr__(model, "n_layers_of_checkpoint", n_layers_of_checkpoint)
        # transformers' own loss, inside the bridge
        if model._is_cut_off():
            model.original_model.loss_function = model._refuse_loss
        return model

    def _is_cut_off(self) -> bool:
        return len(self.blocks) < self.n_layers_of_checkpoint

    def loss_fn(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._refuse_loss() if self._is_cut_off() else super().loss_fn(*args, **kwargs)

    def _causal_labels_loss(self, *args: Any, **kwargs: Any) -> Any:
        return self._refuse_loss() if self._is_cut_off() else super()._causal_labels_loss(*args, **kwargs)

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        for kind in ("fwd_hooks", "bwd_hooks"):
            self._check(name for name, _ in kwargs.get(kind) or ())
        return super().run_with_hooks(*args, **kwargs)

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        names = kwargs.get("names_filter")
        self._check([names] if isinstance(names, str) else names if isinstance(names, list | tuple) else ())
        return super().run_with_cache(*args, **kwargs)

    def _check(self, names: Iterable[Any]) -> None:
        for name in names:
            match = BLOCK.match(name) if isinstance(name, str) else None
            if match is not None and int(match.group(1)) >= len(self.blocks):
                raise UserError(f"no hook point {name}: the model has layers 0 to {len(self.blocks) - 1}")

    def _refuse_loss(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise UserError(
            f"this model holds the first {len(self.blocks)} of {self.n_layers_of_checkpoint} layers, so its loss means "
            "nothing; load it without n_layers"
        )
