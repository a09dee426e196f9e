"""upload_sae.py: what goes to the Hub has the same weights, a full card, and no local path (pushes: tests/pipeline)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import upload_sae
from sae_lens import SAE, LanguageModelSAERunnerConfig, LoggingConfig, StandardTrainingSAEConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE

from transformer_lens_r1.shared.errors import UserError

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder as train_sae.py leaves it: an SAE, the run's configuration and the held-out figures."""
    folder = tmp_path / "somewhere" / "sae"
    config = StandardTrainingSAEConfig(d_in=16, d_sae=64, l1_coefficient=3.5)
    config.metadata.model_name = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    config.metadata.dataset_path = str(tmp_path / "somewhere" / "tokens")
    config.metadata.hook_name = HOOK
    config.metadata.context_size = 128
    torch.manual_seed(0)
    StandardTrainingSAE(config).save_inference_model(str(folder))
    run = LanguageModelSAERunnerConfig(
        sae=config, model_name=config.metadata.model_name, dataset_path=config.metadata.dataset_path, hook_name=HOOK,
        training_tokens=123_456, lr=2e-3, output_path=str(folder), checkpoint_path=str(tmp_path / "checkpoints"),
        logger=LoggingConfig(log_to_wandb=False), verbose=False,
    ).to_dict()  # fmt: skip
    (folder / "runner_cfg.json").write_text(json.dumps(run))
    figures = {"tokens": 2048, "l0": 12.5, "explained_variance": 0.8125, "ce_loss_recovered": 0.9375}
    (folder / "training_summary.json").write_text(json.dumps({"training_steps": 30, "held_out": figures}))
    return folder


def test_what_is_uploaded_has_a_full_card_the_same_weights_and_no_local_path(trained: Path, tmp_path: Path) -> None:
    staged, config = tmp_path / "staged", upload_sae.read_sae_folder(trained)
    upload_sae.stage(trained, staged, repo_id="me/my-sae", sae_id=HOOK, config=config)
    files = {path.relative_to(staged).as_posix(): path.read_bytes() for path in staged.rglob("*") if path.is_file()}
    names = ("cfg.json", "sae_weights.safetensors", "runner_cfg.json", "training_summary.json")
    assert set(files) == {"README.md", *(f"{HOOK}/{name}" for name in names)}
    assert not any(str(tmp_path).encode() in content for content in files.values())
    card = files["README.md"].decode()
    for claim in (
        "base_model: deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "64 features", HOOK, "of `tokens`", "128 tokens",
        "| explained variance | 0.8125 |", "| ce loss recovered | 0.9375 |", "| l0 | 12.5 |",
        "| l1 coefficient | 3.5 |", "| training tokens | 123,456 |", "| lr | 0.002 |",
        f'SAE.from_pretrained("me/my-sae", "{HOOK}")',
    ):  # fmt: skip
        assert claim in card, claim
    back, original = (SAE.load_from_disk(str(folder)).state_dict() for folder in (staged / HOOK, trained))
    assert back.keys() == original.keys() and all(torch.equal(back[name], original[name]) for name in original)


@pytest.mark.parametrize("sae_id", ["../up", ""])
def test_an_id_that_is_no_folder_is_refused(trained: Path, sae_id: str) -> None:
    config = json.loads((trained / "cfg.json").read_text())
    config["metadata"]["hook_name"] = None
    (trained / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="expected a folder's name|names no hook point"):
        upload_sae.main(["--sae_path", str(trained), "--hf_user", "me", "--sae_id", sae_id])


def test_no_local_path_of_an_older_config_is_uploaded(legacy_sae: Path, tmp_path: Path) -> None:
    folder, staged = tmp_path / "sae", tmp_path / "staged"
    shutil.copytree(legacy_sae, folder, copy_function=shutil.copyfile)
    # The model is still there, the data set is gone.
    paths = {"model_name": str(legacy_sae), "dataset_path": str(tmp_path / "gone" / "tokens")}
    config = json.loads((folder / "cfg.json").read_text()) | paths
    (folder / "cfg.json").write_text(json.dumps(config))
    upload_sae.stage(folder, staged, repo_id="me/sae", sae_id="x", config=upload_sae.read_sae_folder(folder))
    pushed = json.loads((staged / "x" / "cfg.json").read_text())
    assert pushed == config | {"model_name": legacy_sae.name, "dataset_path": "tokens"}
    assert str(tmp_path) not in (staged / "README.md").read_text()


def test_a_damaged_sae_is_not_uploaded(legacy_sae: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere to push"):
        upload_sae.main(["--sae_path", str(legacy_sae)])
    with pytest.raises(UserError, match="cfg.json is missing"):
        upload_sae.main(["--sae_path", str(tmp_path), "--hf_user", "me"])
    damaged = tmp_path / "damaged"
    shutil.copytree(legacy_sae, damaged, copy_function=shutil.copyfile)
    config = json.loads((damaged / "cfg.json").read_text())
    (damaged / "cfg.json").write_text(json.dumps({**config, "d_sae": 2048}))
    with pytest.raises(UserError, match="the files belong to different SAEs"):
        upload_sae.main(["--sae_path", str(damaged), "--hf_user", "me"])
    (damaged / "sae_weights.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="damaged"):
        upload_sae.main(["--sae_path", str(damaged), "--hf_user", "me"])
