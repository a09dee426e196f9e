"""What a run checks before its model loads, and what it writes when its judge fails after the generations."""

import json
from pathlib import Path
from typing import Any

import pytest
from engines import write_local_task
from judge_server import KEY, JudgeServer, Reply, completion

from lm_eval_sae.cli import JUDGE_STOPPED, check_tasks, main, parse, prepare_run
from lm_eval_sae.errors import UserError
from lm_eval_sae.judge.client import get_judge


def arguments(model: Path, task: str, *options: str) -> list[str]:
    return [
        "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", task, "--device", "cpu",
        "--gen_kwargs", "max_gen_toks=4", *options,
    ]  # fmt: skip


def test_data_out_of_reach_end_the_run_before_the_model_loads(
    tiny_llama: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets.exceptions import DatasetNotFoundError

    with pytest.raises(UserError, match="data of the task math-500 cannot be loaded: .*HuggingFaceH4/MATH-500"):
        main(arguments(tiny_llama, "math-500"))

    def load_dataset(*_args: Any, **_kwargs: Any) -> None:
        raise DatasetNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match="gpqa_diamond cannot be loaded: .*gated.*; accept the terms .*`hf auth login`"):
        check_tasks(parse(arguments(tiny_llama, "openai_gpqa_diamond")))


def test_the_data_are_loaded_once(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    loads, original = [], datasets.load_dataset
    monkeypatch.setattr("datasets.load_dataset", lambda **kwargs: loads.append(kwargs) or original(**kwargs))
    name = write_local_task("math-500", tmp_path / "tasks")
    main(arguments(tiny_llama, name, "--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")))
    assert len(loads) == 1 and len(list(tmp_path.rglob("results_*.json"))) == 1


def test_a_group_is_taken_apart_in_the_order_of_lm_eval(tiny_llama: Path, tmp_path: Path) -> None:
    names = [write_local_task(name, tmp_path) for name in ("math-500", "aime2024_nofigures")]
    inner = f"{{group: inner, task: [{names[1]}]}}"
    (tmp_path / "z_group.yaml").write_text(f"group: local_group\ntask: [{names[0]}, {inner}]\n")
    command = [*arguments(tiny_llama, "local_group"), "--include_path", str(tmp_path)]
    assert check_tasks(parse(command)) == names


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    with JudgeServer() as running:
        variables = {
            "PROCESSOR": "m", "PROCESSOR_BASE_URL": running.base_url, "OPENROUTER_API_KEY": KEY, "JUDGE": "all",
            "JUDGE_CACHE": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield running


PAYMENT = Reply(402, {"error": {"message": "Insufficient credits"}})


def test_a_judge_that_refuses_after_the_trial_leaves_the_results(
    server: JudgeServer, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [r"\boxed{one half}"]
    monkeypatch.setattr("lm_eval_sae.engines.hf_model.HFSAE.generate_until", lambda *_, **__: words)
    server.script, server.always = [Reply(body=completion("SAME"))], PAYMENT
    name = write_local_task("math-500", tmp_path / "tasks")
    with pytest.raises(SystemExit) as ended:
        main(arguments(tiny_llama, name, "--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path)))
    assert ended.value.code == JUDGE_STOPPED == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "the results are written, but the judge stopped answering" in line and "402: Insufficient credits" in line
    (results,) = tmp_path.rglob("results_*.json")
    judge = json.loads(results.read_text())["config"]["judge"]
    assert (judge["questions"], judge["failed"]) == (1, 1) and "402: Insufficient credits" in judge["stopped"]
    assert get_judge().report()["questions"] == 0, "the next run of this process starts its own account"


def test_a_judge_that_refuses_the_trial_ends_the_run_before_the_model_loads(
    server: JudgeServer, tiny_llama: Path, no_model: None
) -> None:
    server.always = PAYMENT
    with pytest.raises(UserError, match="refuses a request for 'm' .*402: Insufficient credits"):
        prepare_run(parse(arguments(tiny_llama, "math-500")))
    assert len(server.requests) == 1
