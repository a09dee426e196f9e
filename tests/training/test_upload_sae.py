"""upload_sae.py: what was pushed comes back from the Hub with the same weights, a full card, and no local path."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import upload_sae
from hub_server import TOKEN, USER, HubServer
from sae_lens import SAE, LanguageModelSAERunnerConfig, LoggingConfig, StandardTrainingSAEConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE
from safetensors.torch import load_file

from transformer_lens_r1.shared.errors import UserError

UPLOAD = "training/upload_sae.py"
HOOK = "blocks.2.hook_resid_post"
# In one process, because importing SAELens takes longest: other pushes with the script's `main`, and two loads.
LATER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from safetensors.torch import save_file
from sae_lens import SAE
from transformer_lens_r1.shared.errors import UserError
from upload_sae import main

trained, legacy, output, user = Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), sys.argv[5]
main(["--sae_path", str(trained), "--hf_repo", f"{user}/my-sae", "--sae_id", "other"])
main(["--sae_path", legacy, "--hf_repo", f"{user}/legacy"])
try:
    main(["--sae_path", str(trained), "--hf_repo", f"{user}/open", "--private"])
except UserError as error:
    print("refused:", error)
for repo, path in ((f"{user}/my-sae", trained), (f"{user}/legacy", legacy)):
    sae = SAE.from_pretrained(repo, "blocks.2.hook_resid_post")
    save_file({name: tensor.contiguous() for name, tensor in sae.state_dict().items()}, output / Path(repo).name)
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


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


def run_python(
    hub: HubServer, home: Path, *argv: str | Path, token: str | None = TOKEN
) -> "subprocess.CompletedProcess[str]":
    """Run python with the Hub's client pointed at the server (which it reads once, when it is imported)."""
    environment = {**os.environ, **hub.environment(token=token), "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, *map(str, argv)], env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_pushed_sae_comes_back_with_the_same_weights(
    hub: HubServer, trained: Path, legacy_sae: Path, tmp_path: Path, repository: Path
) -> None:
    done = run_python(
        hub, tmp_path / "home", repository / UPLOAD, "--sae_path", trained, "--hf_repo", f"{USER}/my-sae",
        "--sae_id", HOOK, "--private", "--hf_token", TOKEN, token=None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    files, name = hub.repos[f"models/{USER}/my-sae"], f"{USER}/my-sae"
    assert hub.repositories[f"models/{name}"].private
    assert set(files) - {".gitattributes"} == {"README.md"} | {
        f"{HOOK}/{file}" for file in ("cfg.json", "sae_weights.safetensors", "runner_cfg.json", "training_summary.json")
    }
    for content in files.values():
        assert str(tmp_path).encode() not in content
    card = files["README.md"].decode()
    for claim in (
        "base_model: deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "64 features", HOOK, "of `tokens`", "128 tokens",
        "| explained variance | 0.8125 |", "| ce loss recovered | 0.9375 |", "| l0 | 12.5 |",
        "| l1 coefficient | 3.5 |", "| training tokens | 123,456 |", "| lr | 0.002 |",
        f'SAE.from_pretrained("{name}", "{HOOK}")',
    ):  # fmt: skip
        assert claim in card, claim

    hub.add(f"models/{USER}/open", {"README.md": b"mine"})
    later = run_python(
        hub, tmp_path / "home", "-c", LATER, (repository / UPLOAD).parent, trained, legacy_sae, tmp_path, USER
    )
    assert later.returncode == 0, later.stderr
    for repo, folder in (("my-sae", trained), ("legacy", legacy_sae)):
        back, original = load_file(tmp_path / repo), SAE.load_from_disk(str(folder)).state_dict()
        assert back.keys() == original.keys()
        assert all(torch.equal(back[key], original[key]) for key in original)
    # a second SAE in the same repository leaves the first one's card alone
    assert "this one's is other/README.md" in later.stdout
    assert files["README.md"].decode() == card and b'"other")' in files["other/README.md"]
    # a public repository is not taken for a private one
    assert f"refused: {USER}/open exists and is public" in later.stdout
    assert hub.repos[f"models/{USER}/open"] == {"README.md": b"mine"}


def test_a_push_that_fails_says_what_to_do(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = upload_sae.read_sae_folder(trained)
    upload_sae.stage(trained, tmp_path / "staged", repo_id="me/sae", sae_id=HOOK, config=config)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the line is dead\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(
        UserError, match="the line is dead.*; the SAE is still in .*: run the same command again"
    ) as caught:
        upload_sae.push(tmp_path / "staged", trained, repo_id="me/sae", sae_id=HOOK, token=None, private=False)
    assert "\n" not in str(caught.value)


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
