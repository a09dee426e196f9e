"""The fast forward pass runs on the bridge's own weights, whatever is done to them, and changes what it is asked to."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_checkpoints import deviation

from transformer_lens_r1 import UserError, load_model, residual_stream
from transformer_lens_r1.bridge import CheckedBridge
from transformer_lens_r1.forward import compile_layers, logits

HOOK, TOKENS = "blocks.1.hook_resid_post", torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(params=["llama 3.1", "qwen2, theta 1e6, tied"])
def checkpoint(request: pytest.FixtureRequest, make_checkpoint: Callable[[str], Path]) -> Path:
    return make_checkpoint(request.param)


@pytest.fixture
def model(checkpoint: Path) -> CheckedBridge:
    return load_model(checkpoint)


def at_hook(model: CheckedBridge, hook: str = HOOK) -> torch.Tensor:
    """What the bridge's own forward pass gives."""
    with torch.no_grad():
        return model.run_with_cache(TOKENS, names_filter=[hook])[1][hook]


def test_no_weight_is_in_memory_twice_and_none_is_listed_twice(model: CheckedBridge) -> None:
    of_bridge = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in model.twin.parameters()} <= of_bridge
    assert not any("twin" in name for name in (*model.state_dict(), *dict(model.named_modules())))


def test_a_weight_changed_in_place_changes_both(model: CheckedBridge) -> None:
    before = residual_stream(model, TOKENS, HOOK)
    with torch.no_grad():
        model.blocks[1].mlp.out.weight.mul_(2)
    after = residual_stream(model, TOKENS, HOOK)
    assert deviation(after, before) > 0.01
    assert deviation(after, at_hook(model)) < 1e-5


@pytest.mark.parametrize("convert", [lambda model: model.to(torch.bfloat16), lambda model: model.bfloat16()])
def test_a_converted_model_gives_what_one_that_was_loaded_in_that_format_gives(
    checkpoint: Path, convert: Callable[[CheckedBridge], object]
) -> None:
    model = load_model(checkpoint)
    convert(model)
    of_converted = residual_stream(model, TOKENS, HOOK)
    assert of_converted.dtype == torch.bfloat16
    assert torch.equal(of_converted, residual_stream(load_model(checkpoint, dtype="bfloat16"), TOKENS, HOOK))


def test_a_copy_of_the_model_has_a_twin_of_its_own(model: CheckedBridge) -> None:
    before, other = residual_stream(model, TOKENS, HOOK), copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[1].mlp.out.weight.mul_(2)
    assert torch.equal(residual_stream(model, TOKENS, HOOK), before)
    assert deviation(residual_stream(other, TOKENS, HOOK), at_hook(other)) < 1e-5


def replace_one(model: CheckedBridge) -> None:
    model.blocks[0].mlp.out.original_component.weight = torch.nn.Parameter(2 * model.blocks[0].mlp.out.weight)


@pytest.mark.parametrize("replace", [replace_one, lambda model: model.to("meta")])
def test_weights_that_were_replaced_are_refused_in_words(
    model: CheckedBridge, replace: Callable[[CheckedBridge], object]
) -> None:
    replace(model)
    for run in (residual_stream, logits):
        with pytest.raises(UserError, match="replaced by others since it was loaded"):
            run(model, TOKENS, HOOK)


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_with_changed_activations_are_those_of_the_bridge_with_that_hook(
    model: CheckedBridge, compiled: bool
) -> None:
    if compiled:
        compile_layers(model)
        residual_stream(model, TOKENS, HOOK)  # code that was made without the change must not serve with it
    with torch.no_grad():
        expected = model.run_with_hooks(TOKENS, fwd_hooks=[(HOOK, lambda activations, hook: 3 - activations)])
    assert deviation(logits(model, TOKENS, HOOK, lambda activations: 3 - activations), expected) < 1e-5
    assert deviation(logits(model, TOKENS, HOOK), model(TOKENS)) < 1e-5
    assert deviation(residual_stream(model, TOKENS, HOOK), at_hook(model)) < 1e-5
