"""Steering by one encoder column and one decoder row equals running the whole SAE."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import full_sae_change
from sae_lens import SAE
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lm_eval_sae.engines.hf_model import HFSAE
from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import ARCHITECTURES, Steering, read_steering
from lm_eval_sae.steering.intervention import FeatureIntervention, make_intervention
from lm_eval_sae.steering.sae_rows import read_config
from transformer_lens_r1 import architectures

STRENGTH, MAX_ACTIVATION = 1.5, 4.0
TOKENS = torch.randint(6, 327, (3, 40), generator=torch.Generator().manual_seed(1))


def steered_model(model: Path, **arguments: Any) -> HFSAE:
    return HFSAE(str(model), dtype="float32", device="cpu", batch_size=4, **arguments)


def one_feature(sae: Path, **arguments: Any) -> dict[str, Any]:
    return {"sae_path": str(sae), "sae_strength": STRENGTH, "sae_max_activation": MAX_ACTIVATION, **arguments}


@functools.lru_cache(maxsize=1)
def plain_model(model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def logits_with(
    model: Path, changes: dict[int, Callable[[Tensor], Tensor]], tokens: Tensor = TOKENS, *, part: str = ""
) -> Tensor:
    """transformers' logits with a change applied to the output of each of some layers, or of a part of them."""
    lm = plain_model(model)

    def hook(change: Callable, _module: object, _inputs: object, output: Tensor | tuple) -> Tensor | tuple:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    hooks = [
        lm.model.layers[layer].get_submodule(part).register_forward_hook(functools.partial(hook, change))
        for layer, change in changes.items()
    ]
    with torch.no_grad():
        logits = lm(tokens).logits
    for one in hooks:
        one.remove()
    return logits


def half_active_feature(model: Path, sae: SAE, layer: int, *, part: str = "") -> int:
    """The feature that is above 0 nearest to half of the time: both branches of its activation count."""
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append((sae.encode(x) > 0).float().mean(dim=(0, 1)))
        return x

    logits_with(model, {layer: look}, part=part)
    frequency = seen[0]
    feature = int((frequency - 0.5).abs().argmin())
    assert 0.02 < frequency[feature] < 0.98
    return feature


SAES: dict[str, dict[str, Any] | None] = {
    "legacy 5.5.2": None,  # standard, b_dec not subtracted
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

    lm = steered_model(tiny_llama, **one_feature(folder, sae_feature_idx=feature, sae_units=units))
    steered = lm._model_call(TOKENS)

    expected = logits_with(tiny_llama, {layer: full_sae_change(sae, {feature: STRENGTH * MAX_ACTIVATION})})
    torch.testing.assert_close(steered, expected, atol=1e-4, rtol=0)
    plain = logits_with(tiny_llama, {})
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

    lm = steered_model(tiny_llama, **one_feature(folder, sae_feature_idx=7, sae_mode=mode, sae_units=units))
    torch.testing.assert_close(lm._model_call(TOKENS), logits_with(tiny_llama, {1: change}), atol=1e-4, rtol=0)


@pytest.mark.parametrize("model", ["tiny_qwen2", "tiny_qwen3", "smollm2"])
def test_several_features_on_two_layers_at_once(
    model: str, request: pytest.FixtureRequest, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    folder = request.getfixturevalue(model)
    config = AutoConfig.from_pretrained(folder)
    tokens = torch.randint(6, config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(2))
    first, second = (
        make_sae(kind, d_in=config.hidden_size, hook_name=f"blocks.{layer}.hook_resid_post")
        for kind, layer in (("jumprelu", 1), ("standard", config.num_hidden_layers - 1))
    )
    entries = [
        {"sae_path": str(first), "sae_feature_idx": 3, "sae_max_activation": 5.0},
        {"sae_path": str(first), "sae_feature_idx": 9, "sae_max_activation": 2.5, "sae_units": "folded"},
        {"sae_path": str(second), "sae_feature_idx": 3, "sae_max_activation": 4.0, "sae_mode": "clamp"},
        {"sae_path": str(second), "sae_feature_idx": 60, "sae_max_activation": 3.0, "sae_mode": "add"},
        {"sae_path": str(second), "sae_feature_idx": 41, "sae_max_activation": 6.0},
    ]
    file = tmp_path / "intervention.json"
    file.write_text(json.dumps({"sae_strength": 2, "features": entries}))
    lm = steered_model(folder, sae_intervention_path=str(file))

    saes = [SAE.load_from_disk(path) for path in (first, second)]
    for sae in saes:
        sae.fold_W_dec_norm()
    d3, d60 = (saes[1].W_dec[i].detach() for i in (3, 60))
    of_full = full_sae_change(saes[1], {41: 12.0})

    def at_second(x: Tensor) -> Tensor:
        return of_full(x) + (8.0 - x @ d3)[..., None] * d3 + 6.0 * d60

    expected = logits_with(
        folder, {1: full_sae_change(saes[0], {3: 10.0, 9: 5.0}), config.num_hidden_layers - 1: at_second}, tokens
    )
    steered = lm._model_call(tokens)
    torch.testing.assert_close(steered, expected, atol=1e-4, rtol=0)
    assert lm.steered_positions == tokens.numel() and len(lm.get_model_info()["sae"]["features"]) == 5

    lm.set_intervention(None)
    plain = lm._model_call(tokens)
    torch.testing.assert_close(plain, logits_with(folder, {}, tokens), atol=1e-4, rtol=0)
    assert (plain - steered).abs().max() > 0.01 and lm.get_model_info()["sae"] is None


def test_every_position_has_the_change_of_its_own_row(steerings: dict[str, Steering | None]) -> None:
    changes = [steering.layers().get(1, ()) if steering else () for steering in steerings.values()]
    table = FeatureIntervention(256, 2, rows=len(changes))
    for row, features in reversed(list(enumerate(changes))):
        table.load(changes[0], row)  # what was in a row before leaves nothing behind
        table.load(features, row)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 256, generator=generator) * 3
    rows = torch.randint(len(changes), (50,), generator=generator)
    changed = x + table.change(x, rows)
    for one, row, result in zip(x, rows, changed, strict=True):
        if features := changes[row]:
            torch.testing.assert_close(result, make_intervention(features)(one), atol=1e-5, rtol=1e-6)
            assert not torch.equal(result, one)
        else:
            assert torch.equal(result, one), "an empty row changes nothing"
    assert table.reads_residual[:, 0].tolist() == [not any(f.on_mlp_output for f in features) for features in changes]


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".pt"])
def test_an_intervention_file_in_every_format(suffix: str, make_sae: Callable[..., Path], tmp_path: Path) -> None:
    sae = str(make_sae("standard"))
    content = {
        "sae_path": sae, "sae_strength": 2.0, "sae_max_activation": 3.0,
        "features": [{"sae_feature_idx": 5}, {"sae_feature_idx": 6, "sae_strength": 0.0, "sae_mode": "add"}],
    }  # fmt: skip
    file = tmp_path / f"several{suffix}"
    if suffix == ".pt":
        torch.save(content, file)
    else:
        file.write_text(json.dumps(content))  # which is YAML too
    steering = read_steering({"sae_intervention_path": str(file)})
    assert [(f.feature_idx, f.value, f.mode, f.sae) for f in steering.features] == [
        (5, 6.0, "set", sae),
        (6, 0.0, "add", sae),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "expected a file that ends in .yaml, .yml, .json, .pt"),
        ("a.yaml", None, "no file at sae_intervention_path="),
        ("a.yaml", "features: [", "cannot be read: .* line 1"),
        ("a.yaml", "features: []", "has no list of features"),
        ("a.yaml", "{a: &a [x], features: [*a]}", "in place of aliases"),
        ("a.yaml", "features: [3]", "feature 1 is 3, expected a mapping"),
        ("a.yaml", "features: [{sae_feature: 3}]", "unknown key 'sae_feature'; did you mean"),
        ("a.yaml", "{<<: ALL, features: [{sae_feature_idx: 3}, {sae_feature_idx: 64}]}", "feature 2: feature 64 is"),
        ("a.yaml", "{<<: ALL, features: [{sae_feature_idx: 3}, {sae_feature_idx: 3}]}", "has feature 3 of .* twice"),
    ],
)
def test_mistakes_of_an_intervention_file(
    name: str, content: str | None, message: str, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    sae = make_sae("standard")
    if content is not None:
        everything = f"{{sae_path: {sae}, sae_strength: 2, sae_max_activation: 3}}"
        (tmp_path / name).write_text(content.replace("ALL", everything).replace("SAE", str(sae)))
    with pytest.raises(UserError, match=message):
        read_steering({"sae_intervention_path": str(tmp_path / name)})
    with pytest.raises(UserError, match="both sae_intervention_path and sae_strength are given"):
        read_steering({"sae_intervention_path": str(tmp_path / name), "sae_strength": 2})


def test_a_file_of_several_executes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "evil.pt"
    torch.save({"features": [Path("x")]}, file)
    with pytest.raises(UserError, match="cannot be read: Weights only load failed"):
        read_steering({"sae_intervention_path": str(file)})


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
    scores = tmp_path / "scores-of-layer-1"
    scores.mkdir()
    maxima = torch.linspace(0, 6.3, 64)
    save_file({"max_activation": maxima}, scores / "feature_stats.safetensors")
    arguments = {"sae_path": folder, "sae_strength": 2, "sae_max_activation": "auto", "sae_stats": f"{scores}/"}
    read = read_steering({**arguments, "sae_feature_idx": 5})
    assert read.record()["features"][0]["max_activation_from"] == "auto (scores-of-layer-1)"
    (steering,) = read.features
    assert steering.value == pytest.approx(1.0) and steering.units == "folded"
    norm = SAE.load_from_disk(folder).W_dec[5].norm().item()
    (raw,) = read_steering({**arguments, "sae_feature_idx": 5, "sae_units": "raw"}).features
    assert raw.value == pytest.approx(1.0 / norm)
    with pytest.raises(UserError, match="never fired"):
        read_steering({**arguments, "sae_feature_idx": 0})


@pytest.mark.parametrize("text", ["[]", '{"d_in": 4, "d_sae": "x"}'])
def test_a_config_that_is_no_sae_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path / 'cfg.json'} is not of a SAELens SAE"):
        read_config(tmp_path)


def test_what_can_be_loaded_can_be_steered() -> None:
    """The add-on to lm-eval installs alone, so it has a list of its own."""
    assert {kind: of.class_name for kind, of in architectures.ARCHITECTURES.items()} == ARCHITECTURES
