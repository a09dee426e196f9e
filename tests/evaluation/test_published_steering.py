"""Steering as the published code does it: the MLP's output in place of the residual stream, weights as stored."""

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from engines import full_sae_change, steering_of
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from test_steering import (
    MAX_ACTIVATION,
    SAES,
    STRENGTH,
    TOKENS,
    half_active_feature,
    logits_with,
    one_feature,
    steered_model,
)
from torch import Tensor

from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import read_steering
from lm_eval_sae.steering.intervention import FeatureIntervention


@pytest.mark.parametrize("kind", SAES)
def test_published_is_the_full_sae_as_stored_on_the_mlp_output(
    kind: str, tiny_llama: Path, tiny_qwen2: Path, legacy_sae: Path, make_sae: Callable[..., Path]
) -> None:
    options = SAES[kind]
    folder = legacy_sae if options is None else make_sae(**options)
    model = tiny_llama if options is None else tiny_qwen2
    layer = 2 if options is None else 1
    sae = SAE.load_from_disk(folder)
    feature = half_active_feature(model, sae, layer, part="mlp")
    of_mlp = {layer: full_sae_change(sae, {feature: STRENGTH * MAX_ACTIVATION})}

    lm = steered_model(model, **one_feature(folder, sae_feature_idx=feature, sae_mode="published"))
    steered = lm._model_call(TOKENS)
    torch.testing.assert_close(steered, logits_with(model, of_mlp, part="mlp"), atol=1e-4, rtol=0)
    assert (steered - logits_with(model, of_mlp)).abs().max() > 1e-3, "on the residual stream it is another change"
    assert lm.steered_positions == TOKENS.numel()
    (record,) = lm.get_model_info()["sae"]["features"]
    assert (record["mode"], record["units"], record["value"]) == ("published", "raw", STRENGTH * MAX_ACTIVATION)


@pytest.fixture
def published_file(make_sae: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, dict[int, float]]:
    """A .pt file as the published code reads it, its SAE, and the values; features 3, 9 and 20 are nearly parallel."""
    sae = tmp_path / "sae"
    shutil.copytree(make_sae("standard"), sae)
    weights = load_file(sae / "sae_weights.safetensors")
    for feature in (9, 20):
        weights["W_dec"][feature] = 2 * weights["W_dec"][3] + weights["W_dec"][feature] / 4
    save_file(weights, sae / "sae_weights.safetensors")
    content = {
        20: {"max_activation": 3.0, "strength": 2.0},
        3: {"strength": -1.0, "max_activation": torch.tensor(5.0)},
        41: {"max_activation": 2.5, "strength": 2},
        9: {"max_activation": 4.0, "strength": 0.5},
    }
    torch.save(content, tmp_path / "published.pt")
    return tmp_path / "published.pt", sae, {20: 6.0, 3: -5.0, 41: 5.0, 9: 2.0}


def test_the_published_file_clamps_the_mlp_output_feature_by_feature(
    published_file: tuple[Path, Path, dict[int, float]], tiny_llama: Path
) -> None:
    file, folder, values = published_file
    decoder = SAE.load_from_disk(folder).W_dec.detach()

    def one_by_one(m: Tensor, features: Sequence[int] = tuple(values)) -> Tensor:
        for feature in features:
            d_hat = decoder[feature] / decoder[feature].norm()
            m = m - (m @ d_hat)[..., None] * d_hat + values[feature] * d_hat
        return m

    lm = steered_model(tiny_llama, sae_path=str(folder), sae_intervention_path=str(file))
    steered = lm._model_call(TOKENS)
    torch.testing.assert_close(steered, logits_with(tiny_llama, {1: one_by_one}, part="mlp"), atol=1e-4, rtol=0)
    assert lm.steered_positions == TOKENS.numel()
    in_other_order = functools.partial(one_by_one, features=sorted(values))
    assert (steered - logits_with(tiny_llama, {1: in_other_order}, part="mlp")).abs().max() > 0.01
    record = lm.get_model_info()["sae"]["features"]
    assert [(one["feature_idx"], one["value"], one["mode"], one["units"], one["sae"]) for one in record] == [
        (feature, value, "published_clamp", "raw", str(folder)) for feature, value in values.items()
    ]


def test_mistakes_of_the_published_file(published_file: tuple[Path, Path, dict[int, float]], tmp_path: Path) -> None:
    file, sae, _ = published_file
    for given, message in (
        ({}, "published.pt, feature 1: which SAE"),
        ({"sae_path": str(sae), "sae_mode": "published"}, "both sae_intervention_path and sae_mode are given"),
        ({"sae_path": str(sae), "sae_release": "a/b"}, "both sae_path and sae_release"),
    ):
        with pytest.raises(UserError, match=message):
            read_steering({"sae_intervention_path": str(file), **given})
    for content, message in (
        ({3: 2.0}, "feature 3 has 2.0, expected max_activation and strength"),
        ({3: {"max_activation": 2.0}}, "expected max_activation and strength"),
        ({3: {"max_activation": torch.ones(2), "strength": 1}}, "sae_max_activation is .1.0, 1.0., expected a number"),
        ({64: {"max_activation": 2.0, "strength": 1}}, "feature 64 is not in the SAE"),
        ({"features": [{"sae_feature_idx": 3}]}, "both sae_intervention_path and sae_path are given"),
    ):
        torch.save(content, tmp_path / "wrong.pt")
        with pytest.raises(UserError, match=message):
            read_steering({"sae_intervention_path": str(tmp_path / "wrong.pt"), "sae_path": str(sae)})


@pytest.mark.needs_vllm
def test_a_layer_of_vllm_is_changed_in_the_half_that_is_the_mlp_output(
    published_file: tuple[Path, Path, dict[int, float]],
) -> None:
    from lm_eval_sae.engines.vllm_worker import SteeredLayer

    file, folder, values = published_file
    sae = SAE.load_from_disk(folder)
    decoder = sae.W_dec.detach()
    generator = torch.Generator().manual_seed(0)
    m, residual = torch.randn(2, 300, 256, generator=generator)
    one = read_steering(one_feature(folder, sae_feature_idx=7, sae_mode="published"))
    several = read_steering({"sae_path": str(folder), "sae_intervention_path": str(file)})
    table = FeatureIntervention(256, 5, rows=3)  # more places than features
    table.load(one.features, 1)
    table.load(several.features, 2)
    rows = torch.randint(3, (300,), generator=generator)
    layer = SteeredLayer(lambda *_: (m, residual), table, rows)

    changed, kept = layer()
    assert kept is residual and layer.positions.tolist() == rows.bincount().tolist()
    assert torch.equal(changed[rows == 0], m[rows == 0])
    with torch.no_grad():
        expected = full_sae_change(sae, {7: STRENGTH * MAX_ACTIVATION})(m)
    torch.testing.assert_close(changed[rows == 1], expected[rows == 1], atol=1e-4, rtol=0)
    expected = m
    for feature, value in values.items():
        d_hat = decoder[feature] / decoder[feature].norm()
        expected = expected + (value - expected @ d_hat)[:, None] * d_hat
    torch.testing.assert_close(changed[rows == 2], expected[rows == 2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["published", "published_clamp"])
def test_the_published_modes_take_the_weights_as_stored(mode: str, make_sae: Callable[..., Path]) -> None:
    arguments = one_feature(make_sae("standard"), sae_feature_idx=3, sae_mode=mode)
    with pytest.raises(
        UserError, match=f"sae_mode={mode} takes the weights as they are stored; expected sae_units=raw"
    ):
        read_steering({**arguments, "sae_units": "folded"})
    assert read_steering({**arguments, "sae_units": "raw"}).record() == read_steering(arguments).record()


@pytest.mark.parametrize("modes", [["published", "published"], ["published_clamp", "set"], ["published", "clamp"]])
def test_published_modes_at_one_layer_are_not_mixed(
    modes: list[str], make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    def entries(*layers: int) -> list[dict[str, object]]:
        saes = [str(make_sae(hook_name=f"blocks.{layer}.hook_resid_post")) for layer in layers]
        return [
            {"sae_path": sae, "sae_feature_idx": i, "sae_max_activation": 2.0, "sae_mode": mode}
            for i, (sae, mode) in enumerate(zip(saes, modes, strict=True))
        ]

    with pytest.raises(UserError, match=f"has {', '.join(modes)} at layer 1; expected published for one feature alone"):
        steering_of(tmp_path, "together", entries(1, 1))
    assert [feature.mode for feature in steering_of(tmp_path, "apart", entries(1, 2)).features] == modes
