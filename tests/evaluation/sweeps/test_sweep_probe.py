"""The sweep's probe on a real model, and on one whose intervention is lost."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from engines import start_hf

from lm_eval_sae.engines.hf_model import HFSAE


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> HFSAE:
    return start_hf(tiny_llama)


@pytest.fixture
def points(sweep: ModuleType, sae: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    def make(*strengths: float, **more: Any) -> list[Any]:
        content = {"sae_path": str(sae), "sae_max_activation": 2.0, "features": [3, 5], "strengths": list(strengths)}
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**content, **more}))
        return sweep.read_grid(tmp_path / "grid.yaml", shared={})

    return make


def test_adding_nothing_changes_nothing(sweep: ModuleType, model: HFSAE, points: Callable) -> None:
    added = points(0, 1e-3, 1, sae_mode="add", features=[3])
    probe = sweep.Probe(model, added)
    assert probe.noise == 0 and probe.change(added[0]) == 0
    assert 0 < probe.change(added[1]) < probe.change(added[2])


def test_published_points_and_others_of_one_grid_are_told_apart(
    sweep: ModuleType, model: HFSAE, points: Callable
) -> None:
    both = points(2, features=[3, {"sae_feature_idx": 3, "sae_mode": "published"}])
    probe = sweep.Probe(model, both)
    for point in reversed(both):
        model.set_intervention(point.steering)
        probe.confirm(point)


def test_an_intervention_that_is_lost(
    sweep: ModuleType, model: HFSAE, points: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = HFSAE.set_intervention
    monkeypatch.setattr(HFSAE, "set_intervention", lambda self, steering: original(self, None))
    with pytest.raises(RuntimeError, match="sae-3-x1 does not change the probe against the baseline"):
        sweep.Probe(model, points(1, features=[3]))
    with pytest.raises(RuntimeError, match="sae-3-published_clamp-x0 does not change the probe against the baseline"):
        sweep.Probe(model, points(0, features=[3], sae_mode="published_clamp"))


def test_an_intervention_that_stays(
    sweep: ModuleType, model: HFSAE, points: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first change of an engine reaches it."""
    original, done = HFSAE.set_intervention, []

    def once(self: HFSAE, steering: Any) -> None:
        if steering is None or not done:
            original(self, steering)
        if steering is not None:
            done.append(steering)

    monkeypatch.setattr(HFSAE, "set_intervention", once)
    with pytest.raises(RuntimeError, match="sae-5-x1 does not change the probe against sae-3-x1"):
        sweep.Probe(model, points(1))


def test_another_intervention_after_the_run(sweep: ModuleType, model: HFSAE, points: Callable) -> None:
    first, second = points(1)
    probe = sweep.Probe(model, [first, second])
    model.set_intervention(first.steering)
    probe.confirm(first)
    with pytest.raises(RuntimeError, match="after the run of sae-5-x1 the probe answers as under sae-3-x1"):
        probe.confirm(second)
    model.set_intervention(None)
    with pytest.raises(RuntimeError, match="as under the baseline"):
        probe.confirm(first)
