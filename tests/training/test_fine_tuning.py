"""from_pretrained_path: a run starts as the finished SAE, with the config's own settings and schedule."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sae_lens import SAE
from sae_training.activations import ActivationStream
from sae_training.trainer import Trainer
from safetensors.torch import load_file
from train_sae import main
from transformers import AutoModelForCausalLM

from transformer_lens_r1.shared.errors import UserError

CHECKPOINTS = {"training_tokens": 4096, "checkpoint_every_minutes": 1e-6}


@pytest.fixture(scope="module")
def write(
    run_config: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Path]]:
    """A function from keys to change to a config file and the folder of its SAE."""

    def call(**changes: Any) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("run")
        values = run_config(folder, evaluate_cross_entropy=False, checkpoint_path=str(folder), **changes)
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        return folder / "config.yaml", folder / "sae"

    return call


@pytest.fixture(scope="module")
def finished(write: Callable[..., tuple[Path, Path]]) -> Path:
    """The folder of an SAE after 64 steps, its norm factor folded in."""
    config, sae = write()
    main([str(config)])
    return sae


def other_sae(**changes: Any) -> dict[str, Any]:
    """A section `sae` with an L1 coefficient that is not the finished SAE's."""
    return {
        "d_in": 256, "d_sae": 512, "apply_b_dec_to_input": False, "l1_coefficient": 7,
        "normalize_activations": "expected_average_only_in", **changes,
    }  # fmt: skip


def test_the_loss_before_the_first_step_is_the_finished_saes(
    write: Callable[..., tuple[Path, Path]], finished: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    steps: list[tuple[torch.Tensor, Any, float]] = []
    inner = Trainer.step

    def step(self: Trainer, batch: torch.Tensor) -> Any:
        output = inner(self, batch)
        steps.append((batch.clone(), output, self.activation_scaler.scaling_factor))
        return output

    monkeypatch.setattr(Trainer, "step", step)
    read: list[torch.Tensor] = []  # rows
    next_rows = ActivationStream._next_rows
    monkeypatch.setattr(ActivationStream, "_next_rows", lambda self: read.append(next_rows(self)) or read[-1])
    # Other activations than the finished SAE's, so that the factor is another: the layer before.
    config, sae = write(
        from_pretrained_path=str(finished), sae=other_sae(), lr=1e-3, hook_name="blocks.1.hook_resid_post"
    )
    main([str(config)])
    batch, output, factor = steps[0]

    # The factor is that of the new activations, by the model of transformers.
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    rows = torch.cat(read[:4])
    with torch.no_grad():
        hidden = model(rows, output_hidden_states=True).hidden_states[2]
    norms = hidden[~torch.isin(rows, torch.tensor([0, 1, 2]))].norm(dim=-1)
    assert factor == pytest.approx(256**0.5 / norms.mean().item(), rel=0.02)

    # The finished SAE's own loss on the raw batch, in units of the scaled activations.
    reference = SAE.load_from_disk(finished)
    weights = load_file(finished / "sae_weights.safetensors")
    with torch.no_grad():
        features = reference.encode(batch)
        error = (reference.decode(features) - batch).pow(2).sum(dim=1).mean()
    l1 = (features * weights["W_dec"].norm(dim=1)).sum(dim=1).mean()
    assert output.losses["mse_loss"].item() == pytest.approx(factor**2 * error.item(), rel=1e-4)
    assert output.losses["l1_loss"].item() == pytest.approx(7 * factor * l1.item(), rel=1e-4)  # the config's 7, not 1
    torch.testing.assert_close(output.feature_acts > 0, features > 0)

    # It has learnt, and the factor is in the weights again.
    assert json.loads((sae / "cfg.json").read_text())["normalize_activations"] == "none"
    assert steps[-1][1].loss < 0.9 * output.loss


def test_a_run_of_no_learning_gives_the_finished_sae_back(
    write: Callable[..., tuple[Path, Path]], finished: Path
) -> None:
    config, sae = write(from_pretrained_path=str(finished), sae=other_sae(), lr=1e-12, training_tokens=1024)
    main([str(config)])
    before, after = (load_file(path / "sae_weights.safetensors") for path in (finished, sae))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("what", "calls"), [("norm estimate", 3), ("training", 12)])
def test_an_interrupted_fine_tuning_continues_bit_for_bit(
    write: Callable[..., tuple[Path, Path]],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    calls: int,
) -> None:
    whole, interrupted = (
        write(from_pretrained_path=str(finished), sae=other_sae(l1_warm_up_steps=10), **CHECKPOINTS) for _ in range(2)
    )
    main([str(whole[0])])

    left = calls
    inner = ActivationStream.__next__

    def stop(self: ActivationStream) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("killed")
        return inner(self)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationStream, "__next__", stop)
        with pytest.raises(RuntimeError, match="killed"):
            main([str(interrupted[0])])
    (newest, *_) = sorted((path.name for path in interrupted[1].parent.glob("*/step-*")), reverse=True)
    assert newest.startswith("step-000000000-norm") == (what == "norm estimate")
    main([str(interrupted[0]), "--resume"])
    weights = [(sae / "sae_weights.safetensors").read_bytes() for _, sae in (whole, interrupted)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"d_sae": 256}, "has d_sae 512, but this run starts from a finished SAE with 256"),
        ({"apply_b_dec_to_input": True}, "has apply_b_dec_to_input False"),
        ({"architecture": "topk", "l1_coefficient": None}, "has architecture standard"),
        ({"normalize_activations": "layer_norm"}, "has normalize_activations none"),
    ],
)
def test_an_sae_that_the_run_cannot_start_from_is_refused(
    write: Callable[..., tuple[Path, Path]],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    expected: str,
) -> None:
    monkeypatch.setattr("transformer_lens_r1.loading.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    section = {key: value for key, value in other_sae(**changes).items() if value is not None}
    config, _ = write(from_pretrained_path=str(finished), sae=section)
    with pytest.raises(UserError, match=expected) as caught:
        main([str(config)])
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_sae_and_one_of_an_unfinished_run_are_refused(
    write: Callable[..., tuple[Path, Path]], finished: Path, tmp_path: Path
) -> None:
    config, _ = write(from_pretrained_path=str(tmp_path))
    with pytest.raises(UserError, match="has no cfg.json; name the folder of a finished SAE"):
        main([str(config)])
    for file in ("cfg.json", "sae_weights.safetensors"):
        (tmp_path / file).write_bytes((finished / file).read_bytes())
    saved = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**saved, "normalize_activations": "expected_average_only_in"}))
    with pytest.raises(UserError, match="has normalize_activations expected_average_only_in"):
        main([str(config)])
