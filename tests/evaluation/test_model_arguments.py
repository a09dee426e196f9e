"""Mistakes in what a run says of its model: one line each, before the model is loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from engines import write_local_task

from lm_eval_sae.cli import main, parse, prepare_run
from lm_eval_sae.errors import UserError

VLLM = pytest.param("vllm", marks=pytest.mark.needs_vllm)


def prepare(model: Path, *options: str, arguments: str = "", engine: str = "hf", gen: str = "max_gen_toks=8") -> None:
    more = f",{arguments}" if arguments else ""
    command = ["--model", engine, "--model_args", f"pretrained={model}{more}", "--tasks", "math-500"]
    prepare_run(parse([*command, "--gen_kwargs", gen, *options]))


@pytest.mark.parametrize("engine", ["hf", VLLM])
def test_what_the_library_refuses_is_one_line(engine: str, tiny_llama: Path, tmp_path: Path) -> None:
    write_local_task("math-500", tmp_path)
    command = ["--model", engine, "--model_args", f"pretrained={tiny_llama},dtpye=float32", "--tasks", "local_math-500"]
    with pytest.raises(UserError, match="^--model_args: .*dtpye"):
        main([*command, "--include_path", str(tmp_path), "--gen_kwargs", "max_gen_toks=8"])


def test_a_flag_among_the_model_arguments_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="is in --model_args, where lm-eval does not take it; give --"):
        prepare(tiny_llama, arguments="device=cpu")


@pytest.mark.parametrize("name", ["token", "hf_token"])
def test_a_token_among_the_model_arguments_is_refused(name: str, tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="set HF_TOKEN in the environment") as refused:
        prepare(tiny_llama, arguments=f"{name}=hf_planted")
    assert "hf_planted" not in str(refused.value)


@pytest.mark.needs_vllm
@pytest.mark.parametrize(
    "argument", ["worker_cls=vllm.v1.worker.cpu_worker.CPUWorker", "speculative_config=x", "enable_dbo=True"]
)
def test_what_a_steered_engine_cannot_have_is_refused(
    argument: str, tiny_llama: Path, make_sae: Callable[..., Path]
) -> None:
    prepare(tiny_llama, arguments=argument, engine="vllm")
    steered = f"{argument},sae_path={make_sae()},sae_feature_idx=3,sae_strength=2,sae_max_activation=5"
    name = argument.partition("=")[0]
    with pytest.raises(UserError, match=f"steering does not work with the model argument {name}; leave it out"):
        prepare(tiny_llama, arguments=steered, engine="vllm")


@pytest.mark.parametrize(("gpus", "device"), [(0, "cude"), (0, "cuda"), (1, "cuda:1"), (2, "cuda:2")])
def test_a_device_that_is_not_there_is_not_replaced(
    gpus: int, device: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    there = {0: "cpu", 1: "cpu, cuda, cuda:0", 2: "cpu, cuda, cuda:0, cuda:1"}[gpus]
    with pytest.raises(UserError, match=f"^--device is '{device}', but torch finds {there} here"):
        prepare(tiny_llama, "--device", device)


@pytest.mark.parametrize(
    ("engine", "gen", "message"),
    [
        ("hf", "temprature=1", "unknown generation argument 'temprature'; did you mean 'temperature'"),
        ("hf", "max_new_tokens=64", "generation argument 'max_new_tokens' is called max_gen_toks in lm-eval"),
        pytest.param("vllm", "top_p=5", "--gen_kwargs: top_p must be in", marks=pytest.mark.needs_vllm),
        ("hf", "cutoff_token=</think>", "cutoff_token is '</think>', expected the id of a token, a whole number"),
    ],
)
def test_a_generation_argument_that_would_be_ignored(engine: str, gen: str, message: str, tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tiny_llama, engine=engine, gen=gen)
