"""Logits and residual streams are transformers' own, by each way of running and for every kind of checkpoint."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_checkpoints import KINDS, deviation
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from transformer_lens_r1 import load_model, load_tokenizer, register_r1_distills, residual_stream
from transformer_lens_r1.bridge import CheckedBridge
from transformer_lens_r1.forward import logits
from transformer_lens_r1.loading import quiet

Activations = dict[str, torch.Tensor]  # logits, and blocks.L.hook_resid_post of every layer
Way = Callable[[Path, torch.dtype, torch.Tensor], Activations]


def by_hooked(folder: Path, dtype: torch.dtype, tokens: torch.Tensor) -> Activations:
    """By the HookedTransformer of a registered name, from `hf_model` and `tokenizer`."""
    register_r1_distills()
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    name = "Qwen-7B" if hf_model.config.model_type == "qwen2" else "Llama-8B"
    model = HookedTransformer.from_pretrained_no_processing(
        f"DeepSeek-R1-Distill-{name}", hf_model=hf_model, tokenizer=AutoTokenizer.from_pretrained(folder),
        dtype=dtype, device="cpu",
    )  # fmt: skip
    return cached_activations(model, tokens)


def by_bridge(folder: Path, dtype: torch.dtype, tokens: torch.Tensor) -> Activations:
    return cached_activations(load_model(folder, dtype=dtype), tokens)


def by_twin(folder: Path, dtype: torch.dtype, tokens: torch.Tensor) -> Activations:
    return residual_streams(load_model(folder, dtype=dtype), tokens)


def residual_streams(model: CheckedBridge, tokens: torch.Tensor) -> Activations:
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(len(model.blocks))]
    streams = {name: residual_stream(model, tokens, name) for name in names}
    return {"logits": logits(model, tokens, names[0]), **streams}


def activations_of_transformers(model: PreTrainedModel, tokens: torch.Tensor) -> Activations:
    """Logits and the output of every layer, by hooks of torch on the layers themselves."""
    activations: Activations = {}
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out, layer=layer: activations.__setitem__(f"blocks.{layer}.hook_resid_post", out)
        )
        for layer, block in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        activations["logits"] = model(tokens).logits
    for hook in hooks:
        hook.remove()
    return activations


def cached_activations(model: torch.nn.Module, tokens: torch.Tensor) -> Activations:
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_resid_post"))
    return {"logits": logits, **cache}


WAYS = (by_bridge, by_twin, by_hooked)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_logits_and_every_residual_stream_equal_transformers(
    make_checkpoint: Callable[[str], Path], kind: str, way: Way
) -> None:
    folder = make_checkpoint(kind)
    # Where rotary scaling is to show, the row is longer than the length that the scaling starts from.
    length = 2500 if kind.startswith("llama 3.") else 300
    tokens = torch.randint(0, 327, (1, length), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    expected = activations_of_transformers(reference, tokens)
    ours = way(folder, torch.float32, tokens)
    assert ours.keys() == expected.keys() and len(expected) == reference.config.num_hidden_layers + 1
    assert {name: deviation(ours[name], expected[name]) for name in expected} == pytest.approx(
        dict.fromkeys(expected, 0.0), abs=1e-5
    )


def test_without_rotary_scaling_the_same_weights_give_other_logits(make_checkpoint: Callable[[str], Path]) -> None:
    """The test above can tell: already at 1,000 tokens, unscaled positions are far outside of its tolerance."""
    scaled = AutoModelForCausalLM.from_pretrained(make_checkpoint("llama 3.1"), dtype=torch.float32).eval()
    config = copy.deepcopy(scaled.config)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500_000.0}
    unscaled = type(scaled)(config).eval()
    unscaled.load_state_dict(scaled.state_dict())
    tokens = torch.randint(0, 327, (1, 1000), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert deviation(unscaled(tokens).logits, scaled(tokens).logits) > 0.1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_near_to_float32_as_transformers_bfloat16(
    make_checkpoint: Callable[[str], Path], kind: str, way: Way
) -> None:
    folder = make_checkpoint(kind)
    tokens = torch.randint(0, 327, (2, 200), generator=torch.Generator().manual_seed(1))
    exact, rounded = (
        activations_of_transformers(
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval(), tokens
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    ours = way(folder, torch.bfloat16, tokens)

    def rms(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a.double() - b.double()).square().mean().sqrt().item()

    for name, reference in exact.items():
        assert ours[name].dtype == torch.bfloat16
        assert rms(ours[name], reference) < 1.1 * rms(rounded[name], reference)


def test_smollm2_logits_and_every_residual_stream_equal_transformers(smollm2: Path) -> None:
    tokens = load_tokenizer(smollm2)("Wait, let me check: 17 times 6 is 102, not 92.", return_tensors="pt").input_ids
    expected = activations_of_transformers(AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32), tokens)
    for way in WAYS:
        ours = way(smollm2, torch.float32, tokens)
        assert len(ours) == 31
        assert max(deviation(ours[name], expected[name]) for name in expected) < 1e-5


def test_from_pretrained_with_processing_keeps_the_probabilities(make_checkpoint: Callable[[str], Path]) -> None:
    """Folding norms and centring change weights and logits' offsets, not what the model says."""
    register_r1_distills()
    folder = make_checkpoint("qwen2, theta 1e4")
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with quiet("root"):  # TransformerLens warns that RMS norms are not centred
        model = HookedTransformer.from_pretrained(
            "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", hf_model=hf_model, device="cpu",
            tokenizer=AutoTokenizer.from_pretrained(folder),
        )  # fmt: skip
    tokens = torch.randint(0, 327, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens).log_softmax(-1), hf_model(tokens).logits.log_softmax(-1), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("run", [cached_activations, residual_streams])
@pytest.mark.parametrize("kind", ["llama 3.1", "qwen2, theta 1e4", "qwen3"])
def test_first_layers_alone_give_the_same_activations_bit_for_bit(
    make_checkpoint: Callable[[str], Path], kind: str, run: Callable[..., Activations]
) -> None:
    folder = make_checkpoint(kind)
    tokens = torch.randint(0, 327, (2, 40), generator=torch.Generator().manual_seed(1))
    part, whole = run(load_model(folder, n_layers=1), tokens), run(load_model(folder), tokens)
    assert torch.equal(part["blocks.0.hook_resid_post"], whole["blocks.0.hook_resid_post"])
    assert not torch.equal(part["logits"], whole["logits"])
