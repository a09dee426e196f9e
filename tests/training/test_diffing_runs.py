"""training/diffing.sh: five runs, each from the SAE of the stage before, as the ways S→D→F and S→M→F say."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from sae_training.config import read_config
from safetensors.torch import load_file
from train_sae import main

RUNS = {"S": None, "S-D": "S", "S-M": "S", "D-F": "S-D", "M-F": "S-M"}


def test_stages_differ_in_model_or_data_and_fine_tuning_has_one_schedule(repository: Path) -> None:
    runs = {name: read_config(repository / f"training/configs/diffing/{name}.yaml") for name in RUNS}
    paper = read_config(repository / "training/configs/r1-distill-llama-8b.yaml")
    changed = {"model_name", "dataset_path", "logger", "output_path"}
    assert {key for key in runs["S"] if runs["S"][key] != paper.get(key)} == changed
    for name, before in RUNS.items():
        run = runs[name]
        reasoning_model, reasoning_data = name.endswith(("M", "F")), name.endswith(("D", "F"))
        assert run["model_name"] == (paper["model_name"] if reasoning_model else "meta-llama/Llama-3.1-8B")
        tokens = f"{'r1' if reasoning_model else 'llama'}-{'openthoughts' if reasoning_data else 'general'}"
        assert run["dataset_path"] == f"tokens/diffing/{tokens}"
        assert run["output_path"] == f"sae_runs/diffing/{name}"
        assert run.get("from_pretrained_path") == (before and runs[before]["output_path"])
        if before:
            assert {key for key in run if run[key] != runs["S-D"][key]} <= {*changed, "from_pretrained_path"}
            assert {key for key in run["sae"] if run["sae"][key] != paper["sae"][key]} == {"l1_warm_up_steps"}


def test_the_script_plans_all_five_and_trains_those_that_are_not_finished(
    repository: Path, tiny_llama: Path, fixture_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "model_name": tiny_llama, "dataset_path": fixture_tokens, "hook_name": "blocks.2.hook_resid_post",
        "device": "cpu", "context_size": 128, "exclude_special_tokens": "[0, 1, 2]", "sae.d_in": 256, "sae.d_sae": 128,
        "training_tokens": 2048, "train_batch_size_tokens": 256, "n_batches_in_buffer": 8, "lr_warm_up_steps": 0,
        "lr_decay_steps": 0, "n_batches_for_norm_estimate": 2, "n_eval_batches": 1, "n_checkpoints": 0, "lr": "1e-3",
        "evaluate_cross_entropy": "false", "logger.log_to_wandb": "false", "float32_matmul_precision": "highest",
    }  # fmt: skip
    flags = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]

    def script(**environment: str) -> str:
        return subprocess.run(
            ["bash", str(repository / "training/diffing.sh"), *flags],
            cwd=tmp_path, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip

    plan = script(PLAN="1")
    assert [line for line in plan.splitlines() if line.startswith("plan of")] == [
        f"plan of {name}.yaml for H100 SXM, at 0.4 of its peak rate" for name in RUNS
    ]
    assert not (tmp_path / "sae_runs").exists()

    monkeypatch.chdir(tmp_path)
    main([str(repository / "training/configs/diffing/S.yaml"), *flags])
    written = (tmp_path / "sae_runs/diffing/S").stat().st_mtime_ns
    assert script().count("this run is finished") == 1
    assert (tmp_path / "sae_runs/diffing/S").stat().st_mtime_ns == written
    saes = {name: tmp_path / "sae_runs" / "diffing" / name for name in RUNS}
    decoders = {name: load_file(sae / "sae_weights.safetensors")["W_dec"] for name, sae in saes.items()}
    for name, before in RUNS.items():
        assert json.loads((saes[name] / "runner_cfg.json").read_text())["output_path"].endswith(name)
        if before:  # eight steps later, most directions are still those that they began as
            cosine = (
                (decoders[name] * decoders[before]).sum(1) / decoders[name].norm(dim=1) / decoders[before].norm(dim=1)
            )
            assert 0.8 < cosine.median() < 1 - 1e-6


def test_plan_is_yes_or_no(repository: Path) -> None:
    script = subprocess.run(
        ["bash", str(repository / "training/diffing.sh")],
        env={**os.environ, "PLAN": "yes"},
        capture_output=True,
        text=True,
    )
    assert (script.returncode, script.stderr) == (2, "error: PLAN is 'yes', expected 1 or 0\n")
