"""A run that is stopped, or killed at any moment, continues to the SAE that it would have given without."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import train_sae
import yaml
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

from transformer_lens_r1.shared.errors import UserError

TRAIN = "training/train_sae.py"
STEPS = 64


@pytest.fixture
def config_of(run_config: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """A function from the folder of a run to its YAML file, with schedules, and a checkpoint every few steps."""
    return partial(write_config, run_config)


def write_config(run_config: Callable[..., dict[str, Any]], folder: Path, **changes: Any) -> Path:
    values = {
        "store_batch_size_prompts": 4,
        "lr_warm_up_steps": 10,
        "lr_decay_steps": 20,
        "evaluate_cross_entropy": False,
        "checkpoint_every_minutes": 0.001,
        "checkpoint_path": str(folder),
        **changes,
    }
    config = run_config(folder, **values)
    config["sae"]["l1_warm_up_steps"] = 30
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("sae.checkpoints/step-*"))


def start(config: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The script as a user starts it."""
    script = Path(__file__).resolve().parents[2] / TRAIN
    return subprocess.Popen(
        [sys.executable, str(script), str(config), *arguments],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until `ready`, at most two minutes."""
    deadline = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < deadline, "it did not happen within two minutes"
        assert process is None or process.poll() is None, f"the process ended:\n{process.communicate()[1]}"
        time.sleep(0.001)


def main(config: Path, *arguments: str) -> None:
    """The script in this process, which has imported the libraries already."""
    train_sae.main([str(config), *arguments])


@pytest.fixture(scope="module")
def whole(run_config: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    main(write_config(run_config, folder))
    return folder


def assert_same_result(folder: Path, whole: Path) -> None:
    """The weights, the steps, the tokens and the held-out quality of two runs are the same."""
    summaries = [json.loads((path / "sae" / "training_summary.json").read_text()) for path in (folder, whole)]
    for name in ("training_steps", "training_tokens", "dead_features", "held_out"):
        assert summaries[0][name] == summaries[1][name]
    weights = [load_file(path / "sae" / "sae_weights.safetensors") for path in (folder, whole)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])
    assert not (folder / "sae.checkpoints").exists()


def test_sigterm_saves_and_a_resumed_run_ends_with_the_same_weights_in_the_same_wandb_run(
    config_of: Callable[..., Path], tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    logger = {
        "log_to_wandb": True, "log_weights_to_wandb": False, "wandb_log_frequency": 2, "eval_every_n_wandb_logs": 5,
    }  # fmt: skip
    config = config_of(tmp_path, logger=logger)
    process = start(config, "--set", "checkpoint_every_minutes=null")
    wait_for(lambda: "| mse_loss" in process.stderr.readline(), process)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "saved" in (said := errors.splitlines()[-1]) and said.endswith(
        "--set checkpoint_every_minutes=null --resume"
    )
    assert re.search(rf"stopped after step \d+ of {STEPS}", said)
    assert len(checkpoints(tmp_path)) == 1 and not (tmp_path / "sae").exists()

    with pytest.raises(UserError, match="has not ended: add --resume"):
        main(config)
    with pytest.raises(UserError, match=r"another run: lr is 0\.002 there and 0\.1 here"):
        main(config, "--resume", "--set", "lr=0.1")
    # A run that started over would end with the same weights: what tells is how many steps were left to do.
    taken: list[int] = []
    step = SAETrainer.step
    monkeypatch.setattr(SAETrainer, "step", lambda self, batch: (taken.append(1), step(self, batch))[1])
    main(config, "--resume")
    assert len(taken) == STEPS - int(re.search(r"stopped after step (\d+) of", said)[1])
    assert_same_result(tmp_path, whole)

    logs = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 2 and len({log.stem for log in logs}) == 1, "both parts are of the same W&B run"
    assert b"metrics/l0" in logs[-1].read_bytes() and b"held_out/explained_variance" in logs[-1].read_bytes()


def test_ctrl_c_saves_during_the_norm_estimate_too(config_of: Callable[..., Path], tmp_path: Path, whole: Path) -> None:
    config = config_of(tmp_path, checkpoint_every_minutes=1e-9)

    def press() -> None:
        wait_for(lambda: bool(checkpoints(tmp_path)))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(SystemExit) as stopped:
        main(config)
    thread.join()
    assert stopped.value.code == 130
    assert "-norm-" in checkpoints(tmp_path)[0].name
    main(config, "--resume")
    assert_same_result(tmp_path, whole)


def test_a_run_killed_while_it_writes_a_checkpoint_continues_from_the_one_before(
    config_of: Callable[..., Path], tmp_path: Path, whole: Path
) -> None:
    config = config_of(tmp_path, checkpoint_every_minutes=1e-9)
    process = start(config)
    folder = tmp_path / "sae.checkpoints"

    def half_written() -> list[Path]:
        return [path for path in folder.glob(".step-*") if ".old." not in path.name]

    while True:
        wait_for(lambda: len(checkpoints(tmp_path)) == 2 and bool(half_written()), process)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)  # a signal is delivered soon, not at once
        if half_written() and len(checkpoints(tmp_path)) == 2:
            break
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    process.communicate()
    before = checkpoints(tmp_path)
    assert half_written()
    # What is half written is not taken for a checkpoint, nor is one that lost a file.
    shutil.copytree(before[-1], folder / "step-999999999")
    (folder / "step-999999999" / "trainer_state.pt").write_bytes(b"")
    main(config, "--resume")
    assert_same_result(tmp_path, whole)


def test_resume_without_a_checkpoint_starts_and_after_the_end_does_nothing(
    config_of: Callable[..., Path],
    tmp_path: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(tmp_path, prefetch_llm_batches=2, n_checkpoints=1)
    main(config, "--resume")
    assert "no checkpoint to resume from: starting from the first step" in capsys.readouterr().out
    snapshots = list((tmp_path / "sae.checkpoints").glob("[0-9]*"))
    assert [path.name for path in snapshots] == [str((STEPS // 2 + 1) * 256)]
    shutil.rmtree(snapshots[0].parent)
    assert_same_result(tmp_path, whole)  # reading ahead changes nothing either

    monkeypatch.setattr("transformer_lens_r1.loading.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sae").iterdir()}
    main(config, "--resume")
    assert "this run is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sae").iterdir()} == before
    monkeypatch.undo()

    # A run that ended between its last step and its measurement is measured, not trained again.
    summary = tmp_path / "sae" / "training_summary.json"
    values = json.loads(summary.read_text())
    held_out = values.pop("held_out")
    summary.write_text(json.dumps(values))
    main(config, "--resume")
    assert json.loads(summary.read_text())["held_out"] == pytest.approx(held_out, rel=1e-6)
