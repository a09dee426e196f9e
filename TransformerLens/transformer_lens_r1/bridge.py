"""A TransformerBridge that refuses what part of a model cannot answer, instead of giving a wrong number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from transformer_lens.model_bridge import TransformerBridge

from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = re.compile(r"blocks\.(\d+)\.")


class CheckedBridge(TransformerBridge):
    """What `load_model` gives: hooks beyond the last layer, which a bridge alone ignores, are refused."""

    twin: PreTrainedModel  # the same weights in transformers' own layers: see forward.py

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        for kind in ("fwd_hooks", "bwd_hooks"):
            self.check_hook_points(name for name, _ in kwargs.get(kind) or ())
        return super().run_with_hooks(*args, **kwargs)

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        names = kwargs.get("names_filter")
        self.check_hook_points([names] if isinstance(names, str) else names if isinstance(names, list | tuple) else ())
        return super().run_with_cache(*args, **kwargs)

    def check_hook_points(self, names: Iterable[Any]) -> None:
        for name in names:
            match = BLOCK.match(name) if isinstance(name, str) else None
            if match is not None and int(match.group(1)) >= len(self.blocks):
                raise UserError(f"no hook point {name}: the model has layers 0 to {len(self.blocks) - 1}")


def refuse_losses(model: TransformerBridge, *, n_layers_of_checkpoint: int) -> None:
    """Let ``model``, which holds only the first layers of its checkpoint, compute no loss by any of its ways."""

    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise UserError(
            f"this model holds the first {len(model.blocks)} of {n_layers_of_checkpoint} layers, so its loss means "
            "nothing; load it without n_layers"
        )

    for name in ("loss_fn", "_causal_labels_loss"):
        object.__setattr__(model, name, refuse)
    model.original_model.loss_function = refuse
