"""Steering by one encoder column and one decoder row equals running the whole SAE."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lm_eval_sae.errors import UserError
from lm_eval_sae.intervention import FeatureIntervention, make_intervention, slot_values
from lm_eval_sae.models import HFSAE
from lm_eval_sae.sae_rows import read_config
from lm_eval_sae.steering import read_steering

STRENGTH, MAX_ACTIVATION = 1.5, 4.0
TOKENS = torch.randint(6, 327, (3, 40), generator=torch.Generator().manual_seed(1))


def steered_model(model: Path, sae: Path, **arguments: Any) -> HFSAE:
    arguments = {"sae_strength": STRENGTH, "sae_max_activation": MAX_ACTIVATION, **arguments}
    return HFSAE(str(model), dtype="float32", device="cpu", batch_size=4, sae_path=str(sae), **arguments)


def logits_with(model: Path, layer: int, change: Callable[[Tensor], Tensor], tokens: Tensor = TOKENS) -> Tensor:
    """transformers' logits with `change` applied to the output of `layer`."""
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def hook(_module: object, _inputs: object, output: Tensor | tuple) -> Tensor | tuple:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    lm.model.layers[layer].register_forward_hook(hook)
    with torch.no_grad():
        return lm(tokens).logits


def full_sae_change(sae: SAE, feature: int, value: float) -> Callable[[Tensor], Tensor]:
    """The residual stream as the whole SAE rebuilds it with one feature at `value`, plus the SAE's error."""

    def change(x: Tensor) -> Tensor:
        acts = sae.encode(x)
        error = x - sae.decode(acts)
        acts = acts.clone()
        acts[..., feature] = value
        return sae.decode(acts) + error

    return change


def half_active_feature(model: Path, sae: SAE, layer: int) -> int:
    """The feature that is above 0 nearest to half of the time: both branches of its activation count."""
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append((sae.encode(x) > 0).float().mean(dim=(0, 1)))
        return x

    logits_with(model, layer, look)
    frequency = seen[0]
    feature = int((frequency - 0.5).abs().argmin())
    assert 0.02 < frequency[feature] < 0.98
    return feature


SAES: dict[str, dict[str, Any] | None] = {
    "legacy 5.5.2": None,
    "standard": {"apply_b_dec_to_input": False},
    "standard, b_dec subtracted": {"apply_b_dec_to_input": True},
    "jumprelu": {"architecture": "jumprelu", "apply_b_dec_to_input": True},
    "jumprelu, average norm": {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "expected_average_only_in",
    },
}


@pytest.mark.parametrize("units", ["folded", "raw"])
@pytest.mark.parametrize("kind", SAES)
def test_set_equals_full_sae_reconstruction_plus_error(
    kind: str, units: str, tiny_llama: Path, legacy_sae: Path, make_sae: Callable[..., Path]
) -> None:
    options = SAES[kind]
    folder = legacy_sae if options is None else make_sae(**options)
    layer = 2 if options is None else 1
    sae = SAE.load_from_disk(folder)
    if units == "folded":
        sae.fold_W_dec_norm()
    feature = half_active_feature(tiny_llama, sae, layer)

    lm = steered_model(tiny_llama, folder, sae_feature_idx=feature, sae_units=units)
    steered = lm._model_call(TOKENS)

    expected = logits_with(tiny_llama, layer, full_sae_change(sae, feature, STRENGTH * MAX_ACTIVATION))
    torch.testing.assert_close(steered, expected, atol=1e-4, rtol=0)
    plain = logits_with(tiny_llama, layer, lambda x: x)
    assert (steered - plain).abs().max() > 0.01
    assert lm.steered_positions == TOKENS.numel()


@pytest.mark.parametrize("units", ["folded", "raw"])
@pytest.mark.parametrize("mode", ["clamp", "add"])
def test_clamp_and_add_are_the_textbook_changes(
    mode: str, units: str, tiny_llama: Path, make_sae: Callable[..., Path]
) -> None:
    folder = make_sae("standard", apply_b_dec_to_input=True)
    d = SAE.load_from_disk(folder).W_dec[7].detach()
    d_hat = d / d.norm()
    v = STRENGTH * MAX_ACTIVATION

    def change(x: Tensor) -> Tensor:
        if mode == "add":
            return x + v * d_hat
        return x - (x @ d_hat)[..., None] * d_hat + v * d_hat

    lm = steered_model(tiny_llama, folder, sae_feature_idx=7, sae_mode=mode, sae_units=units)
    torch.testing.assert_close(lm._model_call(TOKENS), logits_with(tiny_llama, 1, change), atol=1e-4, rtol=0)


def test_setting_a_feature_to_what_it_is_changes_nothing(make_sae: Callable[..., Path]) -> None:
    folder = make_sae("jumprelu")
    arguments = {"sae_path": folder, "sae_feature_idx": 3, "sae_strength": 1, "sae_max_activation": 1.0}
    intervention = make_intervention(read_steering(arguments).features)
    x = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    for row in x:
        intervention.value.copy_(intervention.activations(row))
        assert torch.equal(intervention(row), row)


def test_half_precision_streams_are_changed_in_float32(make_sae: Callable[..., Path]) -> None:
    folder = make_sae("standard")
    arguments = {"sae_path": folder, "sae_feature_idx": 3, "sae_strength": 1, "sae_max_activation": 2.0}
    intervention = make_intervention(read_steering(arguments).features)
    x = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert intervention(x).dtype == torch.bfloat16
    assert torch.equal(intervention(x), intervention(x.float()).bfloat16())


def test_auto_reads_the_maximum_from_the_scores(make_sae: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_sae("standard")
    maxima = torch.linspace(0, 6.3, 64)
    save_file({"max_activation": maxima}, tmp_path / "feature_stats.safetensors")
    arguments = {"sae_path": folder, "sae_strength": 2, "sae_max_activation": "auto", "sae_stats": str(tmp_path)}
    (steering,) = read_steering({**arguments, "sae_feature_idx": 5}).features
    assert steering.value == pytest.approx(1.0) and steering.units == "folded"
    norm = SAE.load_from_disk(folder).W_dec[5].norm().item()
    (raw,) = read_steering({**arguments, "sae_feature_idx": 5, "sae_units": "raw"}).features
    assert raw.value == pytest.approx(1.0 / norm)
    with pytest.raises(UserError, match="never fired"):
        read_steering({**arguments, "sae_feature_idx": 0})


@pytest.mark.parametrize("text", ["[]", "{}", '{"d_in": 4}', '{"d_in": 4, "d_sae": "x"}'])
def test_a_config_that_is_no_sae_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path / 'cfg.json'} is not of a SAELens SAE"):
        read_config(tmp_path)
