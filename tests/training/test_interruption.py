"""A run that is stopped, or killed at any moment, continues to the SAE that it would have given without."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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


def config_of(folder: Path, tiny_llama: Path, fixture_tokens: Path, **values: Any) -> Path:
    """A run of seconds on the small model, with a checkpoint every few steps, as a YAML file."""
    config = {
        "model_name": str(tiny_llama),
        "hook_name": "blocks.2.hook_resid_post",
        "dataset_path": str(fixture_tokens),
        "context_size": 128,
        "prepend_bos": False,
        "exclude_special_tokens": [0, 1, 2],
        "sae": {
            "d_in": 256, "d_sae": 512, "apply_b_dec_to_input": False, "l1_coefficient": 1, "l1_warm_up_steps": 30,
            "normalize_activations": "expected_average_only_in",
        },
        "training_tokens": STEPS * 256,
        "train_batch_size_tokens": 256,
        "n_batches_in_buffer": 8,
        "store_batch_size_prompts": 4,
        "n_batches_for_norm_estimate": 4,
        "n_eval_batches": 2,
        "lr": 2e-3,
        "lr_warm_up_steps": 10,
        "lr_decay_steps": 20,
        "evaluate_cross_entropy": False,
        "checkpoint_every_minutes": 0.001,
        "logger": {"log_to_wandb": False},
        "checkpoint_path": str(folder / "checkpoints"),
        "output_path": str(folder / "sae"),
        **values,
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/sae.checkpoints/step-*"))


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
def whole(tiny_llama: Path, fixture_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    main(config_of(folder, tiny_llama, fixture_tokens))
    return folder


def assert_same_result(folder: Path, whole: Path) -> None:
    """The weights, the steps, the tokens and the held-out quality of two runs are the same."""
    summaries = [json.loads((path / "sae" / "training_summary.json").read_text()) for path in (folder, whole)]
    for name in ("training_steps", "training_tokens", "dead_features", "held_out"):
        assert summaries[0][name] == summaries[1][name]
    weights = [load_file(path / "sae" / "sae_weights.safetensors") for path in (folder, whole)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])
    assert not (folder / "checkpoints" / "sae.checkpoints").exists()


def test_sigterm_saves_and_a_resumed_run_ends_with_the_same_weights(
    tiny_llama: Path, fixture_tokens: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, tiny_llama, fixture_tokens)
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


def test_ctrl_c_saves_during_the_norm_estimate_too(
    tiny_llama: Path, fixture_tokens: Path, tmp_path: Path, whole: Path
) -> None:
    config = config_of(tmp_path, tiny_llama, fixture_tokens, checkpoint_every_minutes=1e-9)

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
    tiny_llama: Path, fixture_tokens: Path, tmp_path: Path, whole: Path
) -> None:
    config = config_of(tmp_path, tiny_llama, fixture_tokens, checkpoint_every_minutes=1e-9)
    process = start(config)
    folder = tmp_path / "checkpoints" / "sae.checkpoints"

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
    tiny_llama: Path,
    fixture_tokens: Path,
    tmp_path: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(tmp_path, tiny_llama, fixture_tokens, prefetch_llm_batches=2, n_checkpoints=1)
    main(config, "--resume")
    assert "no checkpoint to resume from: starting from the first step" in capsys.readouterr().out
    snapshots = list((tmp_path / "checkpoints" / "sae.checkpoints").iterdir())
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


def test_smollm2_killed_at_a_random_step_ends_the_same_and_the_curves_are_in_wandbs_files(
    smollm2: Path, smollm2_run: Path, smollm2_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(smollm2_config(tmp_path, checkpoint_every_minutes=0.005)))
    steps = json.loads((smollm2_run / "sae" / "training_summary.json").read_text())["training_steps"]
    moment = random.Random(4).randrange(steps // 4, 3 * steps // 4)
    process = start(config, WANDB_DIR=str(tmp_path))

    def past_the_moment() -> bool:
        done = [int(number) for number in re.findall(r"(\d+)\| mse_loss", process.stderr.readline())]
        return bool(done) and done[-1] >= moment and bool(checkpoints(tmp_path))

    wait_for(past_the_moment, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = start(config, "--resume", WANDB_DIR=str(tmp_path))
    output, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors

    summaries = [json.loads((path / "sae" / "training_summary.json").read_text()) for path in (tmp_path, smollm2_run)]
    for name in ("training_steps", "training_tokens"):
        assert summaries[0][name] == summaries[1][name]
    for name in ("l0", "explained_variance", "ce_loss_recovered"):
        assert summaries[0]["held_out"][name] == pytest.approx(summaries[1]["held_out"][name], rel=0.02)
    assert "cross-entropy loss recovered" in output and "explained variance" in output

    logs = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 2 and len({log.stem for log in logs}) == 1, "both parts are of the same W&B run"
    # W&B writes in a process of its own, and what that had not written when the run was killed is lost.
    assert b"metrics/l0" in logs[-1].read_bytes() and b"held_out/ce_loss_recovered" in logs[-1].read_bytes()
