"""train_sae.py: configs are checked in full before a model loads, and the seed decides the result."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from sae_training.checkpoints import SUMMARY
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from train_sae import main
from transformers import AutoModelForCausalLM

from transformer_lens_r1.shared.errors import UserError


@pytest.fixture
def values(run_config: Callable[..., dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    return run_config(tmp_path)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., None]:
    """Runs the script on a config of the given values."""

    def call(values: dict[str, Any], *overrides: str, flags: Sequence[str] = ()) -> None:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(values))
        main([str(config), *(word for override in overrides for word in ("--set", override)), *flags])

    return call


def test_the_seed_decides_the_result(train: Callable[..., None], values: dict[str, Any], tmp_path: Path) -> None:
    short = {**values, "training_tokens": 1024, "evaluate_cross_entropy": False}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(short, f"output_path={tmp_path / name}", f"seed={seed}")
    weights = [(tmp_path / name / "sae_weights.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_compile_llm_compiles_the_layers_that_activations_come_from(
    train: Callable[..., None], values: dict[str, Any], tmp_path: Path
) -> None:
    short = {**values, "training_tokens": 1024}
    train(short, f"output_path={tmp_path / 'eager'}")
    graphs = counters["stats"]["unique_graphs"]
    train(short, f"output_path={tmp_path / 'compiled'}", "compile_llm=true")
    assert counters["stats"]["unique_graphs"] > graphs
    figures = [json.loads((tmp_path / name / SUMMARY).read_text())["held_out"] for name in ("eager", "compiled")]
    assert figures[1] == pytest.approx(figures[0], rel=1e-3)


@pytest.fixture
def first_step(values: dict[str, Any]) -> dict[str, Any]:
    """A run of one step that changes no weight by more than 1e-9."""
    sae = {**values["sae"], "normalize_activations": "none"}
    return {**values, "sae": sae, "training_tokens": 256, "n_eval_batches": 1, "lr": 1e-9}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae_weights.safetensors")


def test_a_run_as_published_starts_from_positive_decoder_rows(
    train: Callable[..., None], first_step: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(first_step, "as_published=true", f"output_path={tmp_path / name}", f"seed={seed}")
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert torch.equal(a["W_dec"], b["W_dec"])
    assert (a["W_dec"] - c["W_dec"]).abs().max() > 1e-3
    assert a["W_dec"].min() >= -2e-9  # uniform on [0, 1) before the scaling
    torch.testing.assert_close(a["W_enc"], a["W_dec"].T, atol=3e-9, rtol=0)
    norms = a["W_dec"].double().norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.1), atol=1e-6, rtol=0)
    directions = a["W_dec"].double() / norms[:, None]
    cosines = (directions @ directions.T)[~torch.eye(len(norms), dtype=torch.bool)]
    assert cosines.mean() == pytest.approx(0.75, abs=0.01)  # E[x]² / E[x²] of uniform numbers
    assert not a["b_enc"].abs().max() > 2e-9 and not a["b_dec"].abs().max() > 2e-9

    record = json.loads((tmp_path / "a" / "runner_cfg.json").read_text())
    assert (record["decoder_init"], record["rope_original_context"]) == ("published", None)  # no scaling to change
    with pytest.raises(UserError, match='decoder_init is "published" there and "saelens" here'):
        train(first_step, f"output_path={tmp_path / 'a'}", "seed=1", flags=["--resume"])
    train(first_step, "as_published=true", f"output_path={tmp_path / 'a'}", "seed=1", flags=["--resume"])
    assert "this run is finished" in capsys.readouterr().out


def test_a_run_starts_from_saelens_decoder_by_default(train: Callable[..., None], first_step: dict[str, Any]) -> None:
    train(first_step)
    rows = weights(Path(first_step["output_path"]))["W_dec"]
    assert rows.mean().abs() < 1e-3 and (rows < 0).double().mean() == pytest.approx(0.5, abs=0.01)


def test_rope_original_context_trains_on_the_model_whose_config_is_changed_likewise(
    train: Callable[..., None], first_step: dict[str, Any], tiny_llama: Path, fixture_tokens: Path, tmp_path: Path
) -> None:
    model, output = tmp_path / "model", Path(first_step["output_path"])
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "llama3", "factor": 64.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

    def trained_on(context: int) -> None:
        config["rope_scaling"]["original_max_position_embeddings"] = context
        (model / "config.json").write_text(json.dumps(config))

    trained_on(1024)
    train({**first_step, "model_name": str(model)}, "rope_original_context=8")
    for name, record in (("cfg.json", "metadata"), ("runner_cfg.json", None)):
        saved = json.loads((output / name).read_text())
        assert (saved[record] if record else saved)["rope_original_context"] == 8

    rows = torch.tensor(datasets.load_dataset(str(fixture_tokens), split="train")["tokens"][-8:])
    losses = {}
    for context in (8, 1024):
        trained_on(context)
        whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        with torch.no_grad():
            losses[context] = whole(rows, labels=rows).loss.item()
    measured = json.loads((output / "training_summary.json").read_text())["held_out"]["ce_loss"]
    assert measured == pytest.approx(losses[8], abs=1e-5)
    assert abs(losses[1024] - losses[8]) > 1e-4


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
        ("rope_original_context=16384", "is 'default', and only Llama 3's"),
        ("rope_original_context=0", "greater than 0"),
        ("decoder_init=random", "should be 'saelens' or 'published'"),
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
