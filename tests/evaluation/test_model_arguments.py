"""Mistakes in what a run says of its model: one line each, before the model is loaded."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm_eval_sae.cli import parse, prepare_run
from lm_eval_sae.engines.arguments import require_gpus
from lm_eval_sae.errors import UserError


def prepare(model: Path, *options: str, arguments: str = "", engine: str = "hf", gen: str = "max_gen_toks=8") -> None:
    more = f",{arguments}" if arguments else ""
    command = ["--model", engine, "--model_args", f"pretrained={model}{more}", "--tasks", "math-500"]
    prepare_run(parse([*command, "--gen_kwargs", gen, *options]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "dtype=float31",
            r"^dtype is 'float31', expected auto, float32, .*; did you mean 'float32'\?$",
        ),
        ("dtype=int8", "^dtype is 'int8', expected"),
        ("dtype=nn", "^dtype is 'nn', expected"),
        ("softmax_dtype=auto", "^softmax_dtype is 'auto', expected"),
        ("dtpye=float32", r"^unknown model argument 'dtpye'; did you mean 'dtype'\?$"),
        ("tensor_parallel_size=2", "^unknown model argument 'tensor_parallel_size'"),
        ("batch_size=4", "batch_size is in --model_args, where lm-eval does not take it; give --batch_size instead"),
        ("device=cpu", "device is in --model_args, .*; give --device instead"),
        ("max_length=many", "max_length is 'many', expected a whole number above 0"),
    ],
)
def test_a_wrong_model_argument_of_transformers(arguments: str, message: str, tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tiny_llama, arguments=arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "tensor_parralel_size=2",
            "^unknown model argument 'tensor_parralel_size'; did you mean 'tensor_parallel_size'",
        ),
        ("dtype=float31", r"^dtype is 'float31', expected one of auto, .*; did you mean 'float32'\?$"),
        ("tensor_parallel_size=two", "^tensor_parallel_size is 'two', expected a whole number above 0$"),
        ("data_parallel_size=0", "^data_parallel_size is 0, expected a whole number above 0$"),
        ("gpu_memory_utilization=85", "^gpu_memory_utilization is 85, expected a share"),
        ("max_length=64,max_model_len=64", "both max_length and max_model_len"),
        ("parallelize=True", "^unknown model argument 'parallelize'"),
    ],
)
def test_a_wrong_model_argument_of_vllm(arguments: str, message: str, tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tiny_llama, arguments=arguments, engine="vllm")


def test_a_worker_class_is_refused_where_steering_has_its_own(tiny_llama: Path, make_sae: Callable[..., Path]) -> None:
    worker = "worker_cls=vllm.v1.worker.cpu_worker.CPUWorker"
    prepare(tiny_llama, arguments=worker, engine="vllm")
    steered = f"{worker},sae_path={make_sae()},sae_feature_idx=3,sae_strength=2,sae_max_activation=5"
    with pytest.raises(UserError, match=r"both worker_cls and sae_\* arguments are given.*leave out worker_cls"):
        prepare(tiny_llama, arguments=steered, engine="vllm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "foo"], "^--batch_size is 'foo', expected a whole number above 0, auto or auto:<times>$"),
        (["--batch_size", "0"], "^--batch_size is '0'"),
        (["--max_batch_size", "0"], "^--max_batch_size is 0"),
        (["--limit", "-3"], "^--limit is -3.0, expected a number of questions above 0, or a fraction of them below 1$"),
        (["--limit", "0"], "^--limit is 0"),
        (["--limit", "2.5"], "^--limit is 2.5"),
        (["--limit", "nan"], "^--limit is nan"),
        (["--num_fewshot", "-1"], "^--num_fewshot is -1"),
        (["--device", "cude"], "^--device is 'cude', expected cpu, cuda, cuda:<number> or mps$"),
        (["--device", "cpu:0"], "^--device is 'cpu:0', expected cpu$"),
        (["--gen_kwargs", "do_sample=maybe"], "^--gen_kwargs: do_sample is 'maybe', expected true or false$"),
        (["--gen_kwargs", "temperature=hot"], "^--gen_kwargs: temperature is 'hot', expected a number from 0$"),
        (["--gen_kwargs", "top_p=5"], "^--gen_kwargs: top_p is 5, expected a number from 0 to 1$"),
        (["--gen_kwargs", "until=3"], "^--gen_kwargs: until is 3, expected a text or a list of texts$"),
    ],
)
def test_a_wrong_flag(options: list[str], message: str, tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tiny_llama, *options)


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        (0, "cuda", "no GPU here; expected one of those, or cpu"),
        (0, "cuda:0", "no GPU"),
        (1, "cuda:1", "only cuda:0 here"),
        (2, "cuda:2", "only cuda:0 to cuda:1"),
    ],
)
def test_a_device_that_is_not_there(
    gpus: int, device: str, message: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(UserError, match=f"^--device is '{device}', but torch finds {message}"):
        prepare(tiny_llama, "--device", device)


@pytest.mark.parametrize(
    ("engine", "arguments"),
    [
        # An entry of the model's config, and one of from_pretrained's own.
        ("hf", "dtype=bfloat16,attn_implementation=eager,use_cache=False,revision=main"),
        ("hf", "trust_remote_code=True,of_their_own_code=3"),
        ("vllm", "dtype=half,enforce_eager=True,max_num_seqs=8,enable_thinking=False,swap_space=4"),
    ],
)
def test_arguments_that_the_engines_take_pass(engine: str, arguments: str, tiny_llama: Path) -> None:
    options = ["--batch_size", "auto:4", "--limit", "0.5"]
    prepare(tiny_llama, *options, arguments=arguments, engine=engine, gen="max_gen_toks=8,do_sample=True,top_p=0.5")


def test_more_gpus_than_are_visible_are_refused() -> None:
    require_gpus({}, 1)
    require_gpus({"tensor_parallel_size": 2, "data_parallel_size": 2}, 4)
    for arguments, gpus, message in (
        ({"tensor_parallel_size": 2}, 1, "^tensor_parallel_size=2 needs 2 GPUs, but 1 is visible"),
        (
            {"tensor_parallel_size": 2, "data_parallel_size": 1, "pipeline_parallel_size": 2},
            3,
            "=2 × .*=2 needs 4 GPUs",
        ),
        ({}, 0, "the run needs 1 GPUs, but 0 are visible"),
    ):
        with pytest.raises(UserError, match=message):
            require_gpus(arguments, gpus)


def test_a_cuda_machine_counts_its_gpus(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_cuda_alike=lambda: True, is_cpu=lambda: False, device_count=lambda: 1)
    monkeypatch.setattr("vllm.platforms.current_platform", cuda)
    prepare(tiny_llama, arguments="tensor_parallel_size=1", engine="vllm")
    prepare(tiny_llama, arguments="tensor_parallel_size=2,distributed_executor_backend=ray", engine="vllm")
    with pytest.raises(UserError, match="tensor_parallel_size=2 needs 2 GPUs, but 1 is visible"):
        prepare(tiny_llama, arguments="tensor_parallel_size=2", engine="vllm")


def test_a_misspelt_argument_is_one_line_and_exit_status_2(tiny_llama: Path) -> None:
    command = [sys.executable, "-m", "lm_eval_sae", "--tasks", "math-500", "--gen_kwargs", "max_gen_toks=8"]
    command += ["--model", "hf", "--model_args", f"pretrained={tiny_llama},dtpye=float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: unknown model argument 'dtpye'; did you mean 'dtype'?\n"
