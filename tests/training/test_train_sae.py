"""train_sae.py: configs are checked in full before a model loads, and the seed decides the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from train_sae import main

from transformer_lens_r1.shared.errors import UserError


@pytest.fixture
def values(run_config: Callable[..., dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    return run_config(tmp_path)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., None]:
    """Runs the script on a config of the given values."""

    def call(values: dict[str, Any], *overrides: str) -> None:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(values))
        main([str(config), *(word for override in overrides for word in ("--set", override))])

    return call


def test_the_seed_decides_the_result(train: Callable[..., None], values: dict[str, Any], tmp_path: Path) -> None:
    short = {**values, "training_tokens": 1024, "evaluate_cross_entropy": False}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(short, f"output_path={tmp_path / name}", f"seed={seed}")
    weights = [(tmp_path / name / "sae_weights.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_wandb_without_a_key_is_refused_before_the_model_loads(
    train: Callable[..., None], values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        train({**values, "logger": {"log_to_wandb": True}})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("l1_coefficent=3", "unknown key in the config: l1_coefficent; did you mean"),
        ("l1_coefficient=3", "did you mean 'sae.l1_coefficient'?"),
        ("sae.k=3", "SAELens refuses the config"),
        ("model_from_pretrained_kwargs={dtyp: bfloat16}", "did you mean 'model_from_pretrained_kwargs.dtype'?"),
        ("model_from_pretrained_kwargs={dtype: bfloat61}", "should be 'bfloat16'"),
        ("lr=fast", "lr is 'fast'"),
        ("streaming=true", "can only be False"),
        ("lr_decay_steps=100000", "add up to 100000 steps"),
        ("train_batch_size_tokens=4096", "the buffer"),
        ("output_path=null", "the config lacks output_path"),
        ("sae.d_in=128", "sae.d_in is 128, but the residual stream"),
        ("hook_name=blocks.4.hook_resid_post", "has layers 0 to 3"),
        ("context_size=64", "have 128 tokens"),
        ("output_path=tests/fixtures", "holds other files"),
        ("device=cuda:99", "cuda:99"),
        ("nonsense", "expected key=value"),
    ],
)
def test_mistakes_are_one_line_before_the_model_loads(
    train: Callable[..., None],
    values: dict[str, Any],
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    expected: str,
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setattr("transformer_lens_r1.loading.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(UserError) as caught:
        train(values, override)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not Path(values["output_path"]).exists()


def test_ids_that_the_model_does_not_have_are_refused(
    train: Callable[..., None], values: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    rows = [[5] * values["context_size"] for _ in range(40)]
    rows[33][7] = 327
    datasets.Dataset.from_dict({"tokens": rows}).to_parquet(str(folder / "train-00000.parquet"))
    with pytest.raises(UserError, match="holds the id 327, but .* knows ids 0 to 326"):
        train(values, f"dataset_path={folder}")
