"""What a results file says of an intervention identifies the weights that were used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lm_eval_sae.steering.arguments import read_steering

CHANGED = {
    "W_enc": (slice(None), 3),
    "W_dec": (3, slice(None)),
    "b_enc": (3,),
    "b_dec": (0,),
}
"""By tensor, what of it the steering of feature 3 uses."""


def record(**arguments: Any) -> dict[str, Any]:
    values = {"sae_feature_idx": 3, "sae_strength": 2, "sae_max_activation": 5} | arguments
    steering = read_steering(values)
    assert steering is not None
    (feature,) = steering.record()["features"]
    assert json.loads(json.dumps(feature)) == feature, "sweeps compare it with what a results file holds"
    return feature


@pytest.mark.parametrize("name", CHANGED)
def test_an_sae_that_was_trained_again_has_another_record(
    name: str, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    sae = tmp_path / "sae"
    shutil.copytree(make_sae(), sae)
    before = record(sae_path=str(sae))
    weights = load_file(sae / "sae_weights.safetensors")

    others = {key: tensor.clone() for key, tensor in weights.items()}
    mask = torch.zeros_like(others[name], dtype=torch.bool)
    mask[CHANGED[name]] = True
    others[name][~mask] += 1
    if name != "b_dec":  # all of which is used
        save_file(others, sae / "sae_weights.safetensors")
        assert record(sae_path=str(sae)) == before, "other features do not matter"

    weights[name][mask] += 0.01
    save_file(weights, sae / "sae_weights.safetensors")
    after = record(sae_path=str(sae))
    assert after.pop("row_sha256") != before.pop("row_sha256") and after == before

    config = json.loads((sae / "cfg.json").read_text())
    (sae / "cfg.json").write_text(json.dumps({**config, "comment": 1}))
    assert record(sae_path=str(sae))["cfg_sha256"] != before["cfg_sha256"]


def test_the_weights_are_the_same_in_either_units(make_sae: Callable[..., Path]) -> None:
    sae = str(make_sae())
    folded, raw = record(sae_path=sae), record(sae_path=sae, sae_units="raw")
    assert folded.pop("units") != raw.pop("units") and folded == raw


def test_an_sae_of_the_hub_has_its_commit(
    make_sae: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    repository = tmp_path / "models--someone--saes"
    shutil.copytree(make_sae(), repository / "snapshots" / commit / "blocks.1")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub = record(sae_release="someone/saes", sae_id="blocks.1")
    assert (hub["sae"], hub["commit"]) == ("someone/saes/blocks.1", commit)
    local = record(sae_path=str(repository / "snapshots" / commit / "blocks.1"))
    assert local["commit"] is None and local["row_sha256"] == hub["row_sha256"]
