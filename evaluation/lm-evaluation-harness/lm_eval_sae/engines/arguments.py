"""Checks of a run's arguments before the engine starts: mistakes that nothing else would tell, or only hours later.

Whatever lm-eval, transformers and vLLM refuse themselves as the engine starts is left to them (`in_one_line`).
"""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from lm_eval_sae.engines.requests import split_cutoff
from lm_eval_sae.errors import UserError, did_you_mean

FLAGS = ("batch_size", "max_batch_size", "device")
"""lm-eval passes these beside --model_args."""
SECRETS = ("token", "hf_token", "use_auth_token", "api_key")
# Of lm-eval and of this package; lm-eval has other names for max_gen_toks, which a task's own value would outdo.
OWN = ("until", "max_gen_toks", "do_sample", "cutoff_token")
SAME_AS = {
    "max_new_tokens": "max_gen_toks", "max_tokens": "max_gen_toks", "max_completion_tokens": "max_gen_toks",
    "max_length": "max_gen_toks", "stop": "until",
}  # fmt: skip
# One text for each request: repeats are the task's.
NOT_FOR_TASKS = ("n", "num_return_sequences", "detokenize", "output_kind", "prompt_logprobs", "return_dict_in_generate")


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Raises the errors of a library that refuses an argument as UserError, with the library's words."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, AssertionError, OSError) as error:
        raise UserError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error


def require_vllm() -> None:
    """Raises UserError if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed; run setup.sh, which says what it needs, or use --model hf")


def check_flags_given_once(arguments: Mapping[str, Any], passed: Mapping[str, Any]) -> None:
    """Raises UserError for a model argument that lm-eval passes as a flag as well.

    Args:
        arguments: of the model.
        passed: those of FLAGS that lm-eval passes, its defaults included.
    """
    for name in FLAGS:
        if name in arguments and passed.get(name) is not None:
            raise UserError(f"{name} is in --model_args, where lm-eval does not take it; give --{name} instead")


def check_device(device: Any) -> None:
    """Raises UserError for a --device that is not there: lm-eval would take another without a word."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    there += ["mps", "mps:0"] if torch.backends.mps.is_available() else []
    if str(device) not in there:
        raise UserError(f"--device is '{device}', but torch finds {', '.join(there)} here; expected one of those")


def refuse_secrets(arguments: Mapping[str, Any]) -> None:
    """Raises UserError for a token among the model arguments, which are written to results, logs and reports."""
    if given := [name for name in SECRETS if arguments.get(name) not in (None, True, False)]:
        raise UserError(
            f"the model argument {given[0]} would be written to the results and every report; leave it out and set "
            "HF_TOKEN in the environment"
        )


def refuse_for_steering(arguments: Mapping[str, Any]) -> None:
    """Raises UserError for model arguments that a steered vLLM engine cannot have.

    Its worker class is this package's, and it must see the tokens of the batch in their order.
    """
    for name in ("worker_cls", "speculative_config", "enable_dbo", "ubatch_size", "prefill_context_parallel_size"):
        if str(arguments.get(name)) not in ("None", "False", "0", "1"):  # True is 1
            raise UserError(f"steering does not work with the model argument {name}; leave it out")


def check_generation_arguments(gen_kwargs: Mapping[str, Any], *, engine: str) -> None:
    """Raises UserError for a generation argument or value that lm-eval, this package and the engine do not know."""
    engine_kwargs, _ = split_cutoff(gen_kwargs)
    if engine == "hf-sae":
        from transformers import GenerationConfig

        names, engine_errors = set(GenerationConfig().to_dict()), ()
    else:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError

        names, engine_errors = set(SamplingParams.__struct_fields__), (VLLMValidationError,)
    known = {*OWN, *names} - {*NOT_FOR_TASKS, *SAME_AS}
    for key in gen_kwargs:
        if key in SAME_AS:
            raise UserError(f"generation argument '{key}' is called {SAME_AS[key]} in lm-eval")
        if key not in known:
            raise UserError(f"unknown generation argument '{key}'{did_you_mean(key, known)}")
    if not isinstance(sampled := gen_kwargs.get("do_sample", True), bool):  # any text would count as true
        raise UserError(f"--gen_kwargs: do_sample is {sampled!r}, expected true or false")
    values = {key: value for key, value in engine_kwargs.items() if key not in OWN}
    try:
        if engine == "hf-sae":
            GenerationConfig(**values).validate()
        else:
            SamplingParams(**values)
    except (TypeError, ValueError, *engine_errors) as error:
        raise UserError(f"--gen_kwargs: {str(error).strip().splitlines()[0]}") from error


def require_usable_card(*, vllm_on_cpu: bool = False) -> None:
    """Raises UserError for an NVIDIA card that would be left idle without a word, and the CPU used in its place.

    A card that CUDA_VISIBLE_DEVICES hides is no mistake.

    Args:
        vllm_on_cpu: vLLM is to run, in its build for the CPU.
    """
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    if torch.cuda.is_available():
        if vllm_on_cpu:
            raise UserError(
                "there is an NVIDIA card, but vLLM is installed in its build for the CPU: run bash setup.sh, or set "
                "CUDA_VISIBLE_DEVICES= to run on the CPU"
            )
        return
    smi = shutil.which("nvidia-smi")
    query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    drivers = subprocess.run(query, capture_output=True, text=True).stdout if smi else ""
    if torch.cuda.device_count() or re.match(r"\d+\.", drivers):
        raise UserError(
            f"there is an NVIDIA card, but torch {torch.__version__} cannot use it: update its driver (CUDA 13 needs "
            "580 or newer), run bash setup.sh if torch is a build for the CPU, or set CUDA_VISIBLE_DEVICES= to run on "
            "the CPU"
        )
