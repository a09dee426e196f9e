"""What a request says of its intervention: read as it was written, and refused in words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import PLACES
from safetensors.torch import save_file

from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import Steering
from lm_eval_sae.steering.requests import Served, intervention_key, request_arguments


def test_an_intervention_is_read_as_it_was_written(steerings: dict[str, Steering | None]) -> None:
    served = Served.of(Served(PLACES).record())
    arguments = {name: request_arguments(steering) for name, steering in steerings.items()}
    for name, steering in steerings.items():
        read = served.read({**arguments[name], "other": [1]})
        assert (read and read.record()) == (steering and steering.record())
    assert len({intervention_key(one) for one in arguments.values()}) == len(steerings)
    assert intervention_key({"other": 1}) == intervention_key(None) == "" and served.read(None) is None
    several = arguments["several"]
    assert intervention_key(dict(reversed(several.items()))) == intervention_key(several)


@pytest.fixture(scope="module")
def served(make_sae: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Room for two features of one SAE, with the maxima 0, 0.1, … 6.3."""
    scores = tmp_path_factory.mktemp("scores")
    save_file({"max_activation": torch.linspace(0, 6.3, 64)}, scores / "feature_stats.safetensors")
    defaults = {"sae_path": str(make_sae()), "sae_max_activation": "auto", "sae_stats": str(scores)}
    return Served({1: 2}, defaults)


def test_a_request_names_features_of_the_engine_and_how_far_they_are_changed(served: Served) -> None:
    (one,) = served.read({"sae_feature_idx": 30, "sae_strength": 2}).features
    assert (one.mode, one.value) == ("set", pytest.approx(6.0))
    (given,) = served.read({"sae_feature_idx": 30, "sae_strength": 2, "sae_max_activation": 5.0}).features
    assert given.value == 10.0
    two = served.read({"sae_feature_idx": [30, 40], "sae_strength": [2, -1.0], "sae_mode": "add"}).features
    assert [(f.feature_idx, f.mode, round(f.value, 4)) for f in two] == [(30, "add", 6.0), (40, "add", -4.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sae_strenght": 2}, "a request cannot give 'sae_strenght'; did you mean 'sae_strength'"),
        ({"sae_path": "/elsewhere"}, "a request cannot give 'sae_path'"),
        ({"sae_feature_idx": 64}, "feature 64 is not in the SAE, which has features 0 to 63"),
        ({"sae_feature_idx": -1}, "feature -1 is not in the SAE"),
        ({"sae_feature_idx": 0}, "never fired"),
        ({"sae_feature_idx": "many"}, "sae_feature_idx is 'many', expected a whole number"),
        ({"sae_feature_idx": {"a": 3}}, "expected a whole number"),
        ({"sae_feature_idx": None}, "sae_feature_idx is None, expected a whole number"),
        ({"sae_strength": float("nan")}, "sae_strength is nan, expected a number"),
        ({"sae_strength": True}, "sae_strength is True, expected a number"),
        ({"sae_mode": "ad"}, "sae_mode is 'ad', expected one of"),
        ({"sae_feature_idx": [3, 4], "sae_strength": [1, 2, 3]}, "lists of one length .* 'sae_strength': 3"),
        ({"sae_feature_idx": []}, "lists of one length"),
        ({"sae_feature_idx": [3, 3]}, "the request has feature 3 of .* twice"),
        ({"sae_feature_idx": [3, 4, 5]}, "3 features at layer 1, where this engine can change 2"),
    ],
)
def test_a_bad_entry_is_refused_in_words(served: Served, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        served.read({"sae_feature_idx": 3, "sae_strength": 2.0, **arguments})


def test_a_layer_that_the_engine_cannot_change_is_refused(steerings: dict[str, Steering | None]) -> None:
    with pytest.raises(UserError, match="1 features at layer 2, where this engine can change 0"):
        Served({1: 2}).read(request_arguments(steerings["add"]))
