"""A run's held-out quality agrees with independent calculations; the SAE that it gives is what it says it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import train_sae
import yaml
from sae_lens import SAE
from sae_lens.evals import get_recons_loss
from sae_lens.training.activation_scaler import ActivationScaler
from sae_training.activations import ActivationSource
from sae_training.held_out import HeldOutEvaluator
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from transformer_lens_r1.loading import load_model


@pytest.fixture(scope="module")
def run(
    run_config: Callable[..., dict[str, Any]],
    tiny_llama: Path,
    fixture_tokens: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """A trained SAE, its config and summary, the held-out rows [rows, context], and transformers' activations."""
    folder = tmp_path_factory.mktemp("run")
    config = run_config(folder, seqpos_slice=[1, None])
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    train_sae.main([str(folder / "config.yaml")])
    rows = datasets.load_dataset("parquet", data_files=str(fixture_tokens / "*.parquet"), split="train")["tokens"]
    held_out = torch.tensor(rows[-config["n_eval_batches"] * config["store_batch_size_prompts"] :])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, attn_implementation="eager").eval()
    layer = model.model.layers[int(config["hook_name"].split(".")[1])]
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        model(held_out)
    handle.remove()
    excluded = torch.tensor(config["exclude_special_tokens"])
    summary = json.loads((folder / "sae" / "training_summary.json").read_text())
    return {
        "sae": SAE.load_from_disk(str(folder / "sae")),
        "folder": folder / "sae",
        "config": config,
        "summary": summary,
        "quality": summary["held_out"],
        "tokens": held_out,
        "where": ~torch.isin(held_out, excluded) & (torch.arange(held_out.shape[1]) >= 1),
        "residual": kept[0],
        "model": model,
        "layer": layer,
    }


def loss_with(run: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor] | None) -> float:
    """Mean loss of transformers' own model with the layer's output changed where the SAE is defined."""
    where, tokens = run["where"], run["tokens"]

    def splice(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        assert change is not None
        return torch.where(where[..., None], change(output.float()).to(output.dtype), output)

    handle = run["layer"].register_forward_hook(splice) if change is not None else None
    with torch.no_grad():
        log_probabilities = run["model"](tokens).logits.double().log_softmax(-1)
    if handle is not None:
        handle.remove()
    losses = -log_probabilities[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return losses[where[:, :-1]].mean().item()


def test_the_loss_recovered_equals_that_of_a_hook_in_transformers(run: dict[str, Any]) -> None:
    sae, quality = run["sae"], run["quality"]
    clean = loss_with(run, None)
    with_sae = loss_with(run, lambda x: sae.decode(sae.encode(x)))
    zero = loss_with(run, torch.zeros_like)
    assert clean < with_sae < zero
    assert quality["ce_loss"] == pytest.approx(clean, abs=0.003)
    assert quality["ce_loss_with_sae"] == pytest.approx(with_sae, abs=0.01)
    assert quality["ce_loss_with_zeros"] == pytest.approx(zero, abs=0.003)
    assert quality["ce_loss_recovered"] == pytest.approx((zero - with_sae) / (zero - clean), abs=0.003)


def test_the_losses_equal_those_of_saelens_where_every_position_counts(
    tiny_llama: Path, fixture_tokens: Path, legacy_sae: Path
) -> None:
    rows = datasets.load_dataset("parquet", data_files=str(fixture_tokens / "*.parquet"), split="train")
    rows = rows.select(range(20))
    model, sae = load_model(tiny_llama), SAE.load_from_disk(str(legacy_sae))
    source = ActivationSource(model, "blocks.2.hook_resid_post")
    ours = HeldOutEvaluator(source, rows, batch_size=8, cross_entropy=True).quality(sae)
    tokens = torch.tensor(rows["tokens"][:])
    with torch.no_grad():
        theirs = get_recons_loss(
            sae, model, ActivationScaler(), tokens, compute_kl=False, compute_ce_loss=True,
            hook_name="blocks.2.hook_resid_post",
        )  # fmt: skip
    assert ours.ce_loss == pytest.approx(theirs["ce_loss_without_sae"].mean().item(), rel=1e-5)
    assert ours.ce_loss_with_sae == pytest.approx(theirs["ce_loss_with_sae"].mean().item(), rel=1e-5)
    assert ours.ce_loss_with_zeros == pytest.approx(theirs["ce_loss_with_ablation"].mean().item(), rel=1e-5)
    assert ours.tokens == tokens.numel()


def test_the_other_figures_equal_those_of_the_activations(run: dict[str, Any]) -> None:
    x, quality = run["residual"][run["where"]].float(), run["quality"]
    with torch.no_grad():
        features = run["sae"].encode(x)
        reconstruction = run["sae"].decode(features)
    explained = 1 - ((x - reconstruction).square().sum() / (x - x.mean(0)).square().sum()).item()
    assert explained > 0.3
    assert quality["tokens"] == len(x)
    assert quality["l0"] == pytest.approx((features > 0).sum(1).double().mean().item(), rel=1e-3)
    assert quality["explained_variance"] == pytest.approx(explained, abs=1e-3)
    assert quality["silent_features"] == pytest.approx((features <= 0).all(0).sum().item(), abs=5)


def test_the_sae_is_what_the_config_asks_for(run: dict[str, Any]) -> None:
    sae, config = run["sae"], run["config"]
    d_in, d_sae = config["sae"]["d_in"], config["sae"]["d_sae"]
    assert sae.W_enc.shape == (d_in, d_sae) and sae.W_dec.shape == (d_sae, d_in)
    assert sae.cfg.metadata.hook_name == config["hook_name"] and sae.cfg.metadata.prepend_bos is False
    with safe_open(run["folder"] / "sparsity.safetensors", framework="pt") as file:
        assert file.get_tensor("sparsity").shape == (d_sae,)
    assert (run["summary"]["training_tokens"], run["summary"]["training_steps"]) == (16_384, 64)
