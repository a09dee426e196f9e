"""`python -m lm_eval_sae`: real runs on the tiny model, and mistakes answered before anything is loaded."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import TASK_DATA, read_run, write_local_task

from lm_eval_sae.cli import main
from lm_eval_sae.errors import UserError


def run_cli(model: Path, output: Path, sae: str = "") -> None:
    main(
        [
            "--model", "hf", "--model_args", f"pretrained={model}{sae}", "--tasks", "quickstart_problems",
            "--device", "cpu", "--output_path", str(output),
        ]
    )  # fmt: skip


def sae_arguments(sae: object, **arguments: object) -> str:
    values = {"sae_path": sae, "sae_feature_idx": 3, "sae_strength": 2.0, "sae_max_activation": 5.0} | arguments
    return "".join(f",{key}={value}" for key, value in values.items() if value is not None)


RECORD = {
    "architecture": "standard",
    "hook_name": "blocks.1.hook_resid_post",
    "layer": 1,
    "d_in": 256,
    "d_sae": 64,
    "feature_idx": 40,
    "strength": 2.0,
    "max_activation": 6.5,
    "value": 13.0,
    "mode": "set",
    "units": "folded",
    "max_activation_from": "given",
    "commit": None,
}
"""Of the feature that all tasks are run with, beside the SAE and its hashes."""


ENGINES = {
    "hf": ["--device", "cpu", "--batch_size", "64", "--model_args", "dtype=float32"],
    "vllm": [
        "--batch_size", "auto", "--model_args",
        f"dtype=float32,tensor_parallel_size=1,max_model_len=512,kv_cache_memory_bytes={2**27},enforce_eager=True",
    ],
}  # fmt: skip


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm", marks=pytest.mark.needs_vllm)])
def test_all_tasks_run_by_the_papers_command_line(
    engine: str, tiny_llama: Path, make_sae: Callable[..., Path], benchmark_facts: dict[str, Any], tmp_path: Path
) -> None:
    """Their configuration differs from the real one in the source of its data alone."""
    repeats = benchmark_facts["self_consistency_repeats"]
    tasks = [*TASK_DATA, *repeats]
    names = [write_local_task(task, tmp_path / "tasks") for task in tasks]
    *options, model_args = ENGINES[engine]
    sae = make_sae("standard")
    steering = sae_arguments(sae, sae_feature_idx=40, sae_max_activation=6.5)
    main(
        [
            "--model", engine, *options, f"pretrained={tiny_llama},{model_args}{steering}", "--tasks", ",".join(names),
            "--include_path", str(tmp_path / "tasks"), "--apply_chat_template", "--log_samples", "--seed", "3",
            "--output_path", str(tmp_path / "out"), "--gen_kwargs", "max_gen_toks=8,cutoff_token=5",
        ]
    )  # fmt: skip
    results, _ = read_run(tmp_path / "out", names[0])
    record = results["config"]["sae"]
    (feature,) = record["features"]
    assert record.keys() == {"features", "steered_positions"}
    assert feature.pop("sae") == str(sae) and re.fullmatch("[0-9a-f]{64}", feature.pop("row_sha256"))
    assert feature.pop("cfg_sha256") == hashlib.sha256((sae / "cfg.json").read_bytes()).hexdigest()
    assert feature == RECORD
    assert results["config"]["torch_seed"] == 3 and results["config"]["judge"] is None
    assert engine == "hf" or results["config"]["model_args"]["seed"] == 3
    required = 0
    for task, name in zip(tasks, names, strict=True):
        _, (sample,) = read_run(tmp_path / "out", name)
        n = repeats.get(task, 1)
        assert len(sample["resps"][0]) == len(set(sample["resps"][0])) == n, "every repeat is a text of its own"
        lengths = ("completion_tokens", "reasoning_tokens")
        for metric in ("exact_match", "exact_match_string", "undecided", "truncated", *lengths):
            assert results["results"][name][f"{metric},none"] == sample[metric]
        assert 0 <= sample["reasoning_tokens"] <= sample["completion_tokens"] <= 8 and sample["exact_match"] == 0
        required += n * (sample["completion_tokens"] - 1)

        prompt, generation = sample["arguments"]["gen_args_0"].values()
        row = TASK_DATA[task.removesuffix("_self_consistency")][0]
        assert (row.get("problem") or row["Question"]) in prompt
        assert prompt.startswith("<｜begin▁of▁sentence｜><｜User｜>")
        assert generation["until"] == benchmark_facts["stop"] and generation["do_sample"] is True
        assert {key: generation[key] for key in benchmark_facts["sampling"]} == benchmark_facts["sampling"]
        if "Question" in row:  # the order of the choices is in the samples file
            assert sample["doc"]["choices"]["ABCD".index(sample["doc"]["answer"])] == "this"
            assert sample["target"] == sample["doc"]["answer"]
    assert record["steered_positions"] > required


@pytest.mark.parametrize(
    ("sae", "arguments", "message"),
    [
        ({}, {"sae_feature_index": 3}, "unknown model argument 'sae_feature_index'.*did you mean 'sae_feature_idx'"),
        ({}, {"sae_feature_idx": 64}, "feature 64 is not in the SAE, which has features 0 to 63"),
        ({}, {"sae_max_activation": None}, "sae_max_activation is missing"),
        ({}, {"sae_max_activation": "auto"}, "auto needs sae_stats"),
        ({}, {"sae_mode": "ad"}, "sae_mode is 'ad', expected one of set, clamp, add"),
        ({}, {"sae_mode": "published", "sae_units": "folded"}, "weights as they are stored; expected sae_units=raw"),
        ({}, {"sae_release": "a/b"}, "both sae_path and sae_release"),
        ({}, {"sae_path": None}, "which SAE"),
        ({"d_in": 128}, {}, "d_in 128 but .* has hidden size 256"),
        ({"hook_name": "blocks.4.hook_resid_post"}, {}, "layers 0 to 3"),
        ({"hook_name": "blocks.1.hook_mlp_out"}, {}, "expected blocks.<layer>.hook_resid_post"),
        ({"normalize_activations": "layer_norm"}, {}, "layer_norm"),
        ({"architecture": "topk", "k": 8}, {}, "'topk'"),
    ],
)
def test_mistakes_of_steering_end_before_the_model_is_loaded(
    sae: dict[str, Any], arguments: dict[str, Any], message: str, tiny_llama: Path, make_sae: Callable[..., Path],
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_model: None,
) -> None:  # fmt: skip
    monkeypatch.setenv("QUICKSTART_PROBLEMS", str(problems))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        run_cli(tiny_llama, out, sae_arguments(make_sae(**sae), **arguments))
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tsks", "math-500"], "unrecognized arguments: --tsks.*did you mean '--tasks'"),
        (["--model_args", "pretrained=/nowhere", "--tasks", "math-500"], "no model at '/nowhere'"),
        (["--model_args", "pretrained=MODEL", "--tasks", "math-50"], "no task 'math-50'; did you mean 'math-500'"),
        (["--model_args", "pretrained=MODEL", "--tasks", "quickstart_problems"], "needs QUICKSTART_PROBLEMS"),
        (["--model", "dummy", "--model_args", "sae_path=x", "--tasks", "math-500"], "--model dummy cannot steer"),
    ],
)
def test_mistakes_of_the_command_line(
    options: list[str], message: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUICKSTART_PROBLEMS", raising=False)
    with pytest.raises(UserError, match=message):
        main([option.replace("MODEL", str(tiny_llama)) for option in options])


def test_other_architectures_are_not_steered(
    tiny_llama: Path, problems: Path, make_sae: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    no_model: None,
) -> None:  # fmt: skip
    monkeypatch.setenv("QUICKSTART_PROBLEMS", str(problems))
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is a MistralForCausalLM; steering takes LlamaForCausalLM, Qwen2"):
        run_cli(model, out, sae_arguments(make_sae()))
    with pytest.raises(pytest.fail.Exception, match="loaded"):  # unsteered, it is lm-eval's to judge
        run_cli(model, out)


def test_a_mistake_is_one_line_and_exit_status_2(tiny_llama: Path) -> None:
    sae = sae_arguments("/nowhere")
    command = [sys.executable, "-m", "lm_eval_sae", "--tasks", "math-500", "--model_args", f"pretrained=x{sae}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no SAE folder at /nowhere; expected") and done.stderr.count("\n") == 1
