"""`python -m lm_eval_sae`: real runs on the tiny model, and mistakes answered before anything is loaded."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from engines import TASK_DATA, write_local_task

from lm_eval_sae.cli import main
from lm_eval_sae.errors import UserError


def run_cli(model: Path, output: Path, *options: str, task: str, sae: str = "", gen: str = "max_gen_toks=8") -> None:
    main(
        [
            "--model", "hf", "--model_args", f"pretrained={model},dtype=float32{sae}", "--tasks", task,
            "--device", "cpu", "--batch_size", "4", "--gen_kwargs", f"{gen},cutoff_token=5", "--log_samples",
            "--output_path", str(output), *options,
        ]
    )  # fmt: skip


def read_run(output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (results,) = output.rglob("results_*.json")
    (samples,) = output.rglob("samples_*.jsonl")
    return json.loads(results.read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(
    tiny_llama: Path, make_sae: Callable[..., Path], problems: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a plain and a steered run of `quickstart_problems`, made by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    sae = f",sae_path={make_sae('standard')},sae_feature_idx=40,sae_strength=2,sae_max_activation=6.5"
    for name, extra in (("plain", ""), ("steered", sae)):
        run_cli(tiny_llama, folder / name, "--metadata", f"problems={problems}", task="quickstart_problems", sae=extra)
    return folder


def test_steered_text_differs_from_plain(runs: Path) -> None:
    (plain, plain_samples), (steered, steered_samples) = (read_run(runs / name) for name in ("plain", "steered"))
    assert len(plain_samples) == len(steered_samples) == 6
    assert [s["doc"] for s in plain_samples] == [s["doc"] for s in steered_samples]
    assert [s["resps"] for s in plain_samples] != [s["resps"] for s in steered_samples]
    for results, samples in ((plain, plain_samples), (steered, steered_samples)):
        metrics = results["results"]["quickstart_problems"]
        assert metrics["completion_tokens,none"] == pytest.approx(sum(s["completion_tokens"] for s in samples) / 6)
        assert all(1 <= s["completion_tokens"] <= 8 for s in samples)


def test_the_results_file_records_the_intervention(runs: Path) -> None:
    plain, steered = read_run(runs / "plain")[0], read_run(runs / "steered")[0]
    assert plain["config"]["sae"] is None
    record = steered["config"]["sae"]
    assert record.pop("steered_positions") > 6 * 8
    (feature,) = record.pop("features")
    sae = Path(feature.pop("sae"))
    assert record == {} and feature.pop("cfg_sha256") == hashlib.sha256((sae / "cfg.json").read_bytes()).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", feature.pop("row_sha256"))
    assert feature == {
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


def test_summary_of_real_runs(
    runs: Path, load_script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summarize = load_script("evaluation/summarize.py")
    summarize.main(["--results", str(runs), "--output_dir", str(tmp_path / "report")])
    table = (tmp_path / "report" / "summary.md").read_text()
    assert "| set 40 to 2 × 6.5 (blocks.1.hook_resid_post) | 6 |" in table
    assert "1. 6 questions, fewer than the 30 that an interval needs" in capsys.readouterr().out

    with (tmp_path / "report" / "summary.csv").open() as file:
        plain_row, steered_row = csv.DictReader(file)
    texts, lengths = [], []
    for name in ("plain", "steered"):
        samples = read_run(runs / name)[1]
        texts.append([s["resps"][0][0] for s in samples])
        lengths.append(sum(s["completion_tokens"] for s in samples) / 6)
    assert int(steered_row["answers_changed"]) == sum(a != b for a, b in zip(*texts, strict=True)) > 0
    assert float(steered_row["completion_tokens_change"]) == pytest.approx(lengths[1] / lengths[0] - 1)
    assert plain_row["completion_tokens_change"] == "" and plain_row["intervention"] == "none"
    marks = [warning for warning in steered_row["warnings"].split("; ") if "(baseline)" in warning]
    assert marks == []  # nothing that is recorded of a run differs but the steering

    summarize.main(["--results", str(runs / "steered"), "--output_dir", str(tmp_path / "alone")])
    assert "no baseline" in (tmp_path / "alone" / "summary.md").read_text()


def run_benchmark(task: str, folder: Path, model: Path, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run of a benchmark whose configuration differs from the real one in the source of its data alone."""
    name = write_local_task(task, folder)
    run_cli(
        model, folder / "out", "--include_path", str(folder), "--apply_chat_template", "--batch_size", "64", *options,
        task=name,
    )  # fmt: skip
    return read_run(folder / "out")


@pytest.mark.parametrize("task", TASK_DATA)
def test_benchmark_tasks_run_on_rows_in_their_schema(
    task: str, tiny_llama: Path, benchmark_facts: dict[str, Any], tmp_path: Path
) -> None:
    results, (sample,) = run_benchmark(task, tmp_path / "plain", tiny_llama)
    prompt, generation = sample["arguments"]["gen_args_0"].values()
    doc = TASK_DATA[task][0]
    assert (doc.get("problem") or doc["Question"]) in prompt and prompt.startswith("<｜begin▁of▁sentence｜><｜User｜>")
    assert generation["until"] == benchmark_facts["stop"]
    assert {name: generation[name] for name in ("temperature", "top_p", "do_sample")} == {
        **benchmark_facts["sampling"],
        "do_sample": True,
    }
    flags, lengths = (
        ("exact_match", "exact_match_string", "undecided", "truncated"),
        ("completion_tokens", "reasoning_tokens"),
    )
    for metric in (*flags, *lengths):
        assert results["results"][f"local_{task}"][f"{metric},none"] == sample[metric]
    assert sample["exact_match"] == 0 and 0 <= sample["reasoning_tokens"] <= sample["completion_tokens"] <= 8
    if task == "openai_gpqa_diamond":  # the order of the choices is in the samples file
        assert (
            sample["doc"]["choices"]["ABCD".index(sample["doc"]["answer"])] == "this"
            and sample["target"] == sample["doc"]["answer"]
        )


@pytest.mark.parametrize("benchmark", TASK_DATA)
def test_self_consistency_tasks_run_on_rows_in_their_schema(
    benchmark: str, tiny_llama: Path, benchmark_facts: dict[str, Any], tmp_path: Path
) -> None:
    task = f"{benchmark}_self_consistency"
    n = benchmark_facts["self_consistency_repeats"][task]
    run, (sample,) = run_benchmark(task, tmp_path / "run", tiny_llama)
    results = run["results"][f"local_{task}"]
    assert len(sample["repeats"]) == len(sample["resps"][0]) == n == results["repeats,none"]
    assert len(set(sample["resps"][0])) == n, "every repeat is a text of its own"
    for metric in ("exact_match", "completion_tokens", "reasoning_tokens", "truncated", "undecided"):
        mean = sum(row[metric] for row in sample["repeats"]) / n
        assert sample[metric] == results[f"{metric},none"] == pytest.approx(mean)
    assert {f"cov@{n},none", f"maj@{n},none"} <= set(results)


def test_repeats_come_back_with_their_seed(tiny_llama: Path, tmp_path: Path) -> None:
    texts = []
    for name, seed in (("first", "1"), ("again", "1"), ("other", "2")):
        run, (sample,) = run_benchmark("math-500_self_consistency", tmp_path / name, tiny_llama, "--seed", seed)
        assert run["config"]["torch_seed"] == int(seed)
        texts.append(sample["resps"][0])
    first, again, other = texts
    assert first == again and not set(first) & set(other)


def sae_arguments(sae: object, **arguments: object) -> str:
    values = {"sae_path": sae, "sae_feature_idx": 3, "sae_strength": 2.0, "sae_max_activation": 5.0} | arguments
    return "".join(f",{key}={value}" for key, value in values.items() if value is not None)


@pytest.mark.parametrize(
    ("sae", "arguments", "message"),
    [
        ({}, {"sae_feature_index": 3}, "unknown model argument 'sae_feature_index'.*did you mean 'sae_feature_idx'"),
        ({}, {"sae_feature_idx": 64}, "feature 64 is not in the SAE, which has features 0 to 63"),
        ({}, {"sae_feature_idx": -1}, "feature -1 is not in the SAE"),
        ({}, {"sae_feature_idx": "x"}, "sae_feature_idx is 'x', expected a whole number"),
        ({}, {"sae_max_activation": None}, "sae_max_activation is missing"),
        ({}, {"sae_max_activation": "auto"}, "auto needs sae_stats"),
        ({}, {"sae_max_activation": "auto", "sae_stats": "/nowhere"}, "holds no feature_stats.safetensors"),
        ({}, {"sae_mode": "ad"}, "sae_mode is 'ad', expected one of set, clamp, add"),
        ({}, {"sae_units": "half"}, "sae_units is 'half'"),
        ({}, {"sae_mode": "published", "sae_units": "folded"}, "weights as they are stored; expected sae_units=raw"),
        ({}, {"sae_release": "a/b"}, "both sae_path and sae_release"),
        ({}, {"sae_path": None}, "which SAE"),
        ({}, {"sae_path": "/nowhere"}, "no SAE folder at /nowhere"),
        ({"d_in": 128}, {}, "d_in 128 but .* has hidden size 256"),
        ({"hook_name": "blocks.4.hook_resid_post"}, {}, "layers 0 to 3"),
        ({"hook_name": "blocks.1.hook_mlp_out"}, {}, "expected blocks.<layer>.hook_resid_post"),
        ({"normalize_activations": "layer_norm"}, {}, "layer_norm"),
        ({"architecture": "topk", "k": 8}, {}, "'topk'"),
    ],
)
def test_mistakes_of_steering_end_before_the_model_is_loaded(
    sae: dict[str, Any],
    arguments: dict[str, Any],
    message: str,
    tiny_llama: Path,
    make_sae: Callable[..., Path],
    problems: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QUICKSTART_PROBLEMS", str(problems))
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM._create_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message):
        run_cli(
            tiny_llama, tmp_path / "out", task="quickstart_problems", sae=sae_arguments(make_sae(**sae), **arguments)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tsks", "math-500"], "unrecognized arguments: --tsks.*did you mean '--tasks'"),
        (["--model_args", "pretrained=/nowhere", "--tasks", "math-500"], "no model at '/nowhere'"),
        (["--model_args", "dtype=float32", "--tasks", "math-500"], "no pretrained="),
        (["--model_args", "pretrained=MODEL", "--tasks", "math-50"], "no task 'math-50'; did you mean 'math-500'"),
        (["--model_args", "pretrained=MODEL"], "no --tasks"),
        (["--model_args", "pretrained=MODEL", "--tasks", "quickstart_problems"], "needs QUICKSTART_PROBLEMS"),
        (["--model", "dummy", "--model_args", "sae_path=x", "--tasks", "math-500"], "--model dummy cannot steer"),
        (["--model_args", "pretrained=MODEL", "--tasks", "math-500", "--log_samples"], "Specify --output_path"),
    ],
)
def test_mistakes_of_the_command_line(
    options: list[str], message: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUICKSTART_PROBLEMS", raising=False)
    with pytest.raises(UserError, match=message):
        main([option.replace("MODEL", str(tiny_llama)) for option in options])


def test_only_llama_and_qwen2_are_steered(
    tiny_llama: Path, problems: Path, make_sae: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICKSTART_PROBLEMS", str(problems))
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM._create_model", lambda *_, **__: pytest.fail("loaded"))
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is a MistralForCausalLM; steering takes LlamaForCausalLM and Qwen2"):
        run_cli(model, out, task="quickstart_problems", sae=sae_arguments(make_sae()))
    with pytest.raises(pytest.fail.Exception, match="loaded"):  # unsteered, it is lm-eval's to judge
        run_cli(model, out, task="quickstart_problems")


def test_a_mistake_is_one_line_and_exit_status_2(tiny_llama: Path) -> None:
    sae = sae_arguments("/nowhere")
    command = [sys.executable, "-m", "lm_eval_sae", "--tasks", "math-500", "--model_args", f"pretrained=x{sae}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no SAE folder at /nowhere; expected") and done.stderr.count("\n") == 1
