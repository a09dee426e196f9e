"""The fast forward pass: transformers' own layers, over the weights of the bridge.

A `TransformerBridge` computes attention step by step, so that each step has a hook point; at contexts of 1,024 tokens a
pass takes more than twice as long for it. What needs no hooks runs the model's twin: transformers' own layers with
torch's fused attention (`sdpa`), which is exact, needs no causal mask, and on a GPU is FlashAttention's kernel.

The bridge replaces the modules of the model that it is given, so the twin is a copy that is made before. It shares
every parameter with the bridge: what changes a weight in place, `.to(...)` included, changes it in both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from transformer_lens_r1.loading import hook_layer
from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from transformer_lens_r1.bridge import CheckedBridge

Change = Callable[[torch.Tensor], torch.Tensor]  # activations [batch, pos, d_model] to what replaces them


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` with the same parameters in memory, and with sdpa attention."""
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    twin.set_attn_implementation("sdpa")
    return twin


def residual_stream(model: CheckedBridge, tokens: torch.Tensor, hook_name: str) -> torch.Tensor:
    """Activations at ``hook_name``; nothing behind it runs, neither later layers nor the unembedding.

    Hooks of ``model`` are not called: `TransformerBridge.run_with_cache` is for those who want them.

    Args:
        model: what `load_model` gave.
        tokens: ids [batch, pos], without padding.
        hook_name: for instance ``blocks.19.hook_resid_post``.

    Returns:
        Tensor [batch, pos, d_model] in the model's dtype.

    Raises:
        UserError: the model has no such hook point, or its weights were replaced.
    """
    twin = _in_step(model)
    first_layers = copy.copy(twin.model)
    layers = first_layers.layers[: _layer(model, hook_name) + 1]
    first_layers._modules = {**first_layers._modules, "layers": layers, "norm": torch.nn.Identity()}
    with torch.no_grad():
        return first_layers(tokens, use_cache=False).last_hidden_state


def logits(model: CheckedBridge, tokens: torch.Tensor, hook_name: str, change: Change | None = None) -> torch.Tensor:
    """The model's logits, with the activations at ``hook_name`` changed on the way.

    Args:
        model: what `load_model` gave, all its layers.
        tokens: ids [batch, pos], without padding.
        hook_name: for instance ``blocks.19.hook_resid_post``.
        change: what replaces the activations; None: nothing does.

    Returns:
        Tensor [batch, pos, vocabulary] in the model's dtype.

    Raises:
        UserError: see `residual_stream`.
    """
    twin = _in_step(model)
    layer = twin.model.layers[_layer(model, hook_name)]
    with torch.no_grad(), layer.register_forward_hook(lambda _, __, output: change(output) if change else None):
        return twin(tokens, use_cache=False).logits


def compile_layers(model: CheckedBridge, mode: str | None = None) -> None:
    """Compile the layers for `residual_stream` and `logits`; all are alike, so the first one's code serves them all.

    Args:
        model: what `load_model` gave.
        mode: of `torch.compile`.
    """
    for layer in model.twin.model.layers:
        layer.forward = torch.compile(layer.forward, mode=mode)


def _layer(model: CheckedBridge, hook_name: str) -> int:
    model.check_hook_points([hook_name])
    return hook_layer(hook_name)


def _in_step(model: CheckedBridge) -> PreTrainedModel:
    """The twin, if its parameters still are the bridge's, on the device where these are now."""
    twin: Any = model.twin
    shared = {id(parameter) for parameter in model.parameters()}
    if not all(id(parameter) in shared for parameter in twin.parameters()):
        raise UserError(
            "weights of this model were replaced by others since it was loaded, which the residual stream would not "
            "show: change them in place, or take activations from run_with_cache"
        )
    # The rotary frequencies are a buffer, which `.to(device)` replaces. They stay in float32, as if loaded so.
    twin.model.rotary_emb.to(twin.device)
    return twin
