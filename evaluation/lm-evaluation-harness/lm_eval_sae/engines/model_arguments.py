"""Checks of what a run says of its model, before the model is loaded."""

import dataclasses
import inspect
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lm_eval_sae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig

FLAGS = ("batch_size", "max_batch_size", "device")
"""lm-eval passes these beside --model_args."""
FROM_PRETRAINED = (
    "allow_all_kernels", "attn_implementation", "cache_dir", "code_revision", "config", "device_map", "disable_mmap",
    "distributed_config", "experts_implementation", "force_download", "fusion_config", "generation_config",
    "ignore_mismatched_sizes", "kernel_config", "key_mapping", "local_files_only", "low_cpu_mem_usage", "max_memory",
    "offload_buffers", "proxies", "quantization_config", "token", "tp_size", "use_kernels", "use_safetensors",
    "variant", "weights_only",
)  # fmt: skip
"""What transformers' from_pretrained takes beyond HFLM's own arguments and the entries of the model's config."""
VLLM_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
PARALLEL = ("tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size")
POSITIVE = (*PARALLEL, "max_length", "max_model_len", "max_gen_toks", "max_num_seqs", "max_num_batched_tokens")


def check_flags(config: "EvaluatorConfig") -> None:
    """Raises UserError for a --batch_size, --max_batch_size, --limit or --num_fewshot that lm-eval cannot use."""
    if not re.fullmatch(r"[1-9]\d*|auto(:\d+(\.\d+)?)?", str(config.batch_size)):
        raise UserError(f"--batch_size is '{config.batch_size}', expected a whole number above 0, auto or auto:<times>")
    if config.max_batch_size is not None and not _is_whole(config.max_batch_size, least=1):
        raise UserError(f"--max_batch_size is {config.max_batch_size}, expected a whole number above 0")
    if config.num_fewshot is not None and not _is_whole(config.num_fewshot, least=0):
        raise UserError(f"--num_fewshot is {config.num_fewshot}, expected a whole number from 0")
    limit = config.limit
    if limit is None:
        return
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool) and math.isfinite(limit)
    if not is_number or limit <= 0 or (limit > 1 and limit != int(limit)):
        raise UserError(f"--limit is {limit}, expected a number of questions above 0, or a fraction of them below 1")


def check_hf_arguments(arguments: Mapping[str, Any], model_config: Any, *, flags: Mapping[str, Any]) -> None:
    """Raises UserError for an argument or value that neither HFLM nor transformers takes.

    Args:
        arguments: of the model, without the `sae_*` ones.
        model_config: of transformers; its entries may be arguments.
        flags: those of FLAGS that are given on the command line or in lm-eval's --config file.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    known = {*inspect.signature(HFLM.__init__).parameters, *FROM_PRETRAINED} - {"self", "kwargs"}
    # Whoever else loads the model, or brings code of their own, may take more.
    if not any(arguments.get(name) for name in ("trust_remote_code", "autogptq", "gptqmodel")):
        _check_names(arguments, known, also={*model_config.to_dict(), *model_config.attribute_map})
    _check_values(arguments)
    for name in ("dtype", "softmax_dtype", "mixed_precision_dtype"):
        value = arguments.get(name)
        if value is None or (name == "dtype" and value == "auto"):
            continue
        dtype = getattr(torch, value, None) if isinstance(value, str) else value
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            near = did_you_mean(str(value), ("float32", "float16", "bfloat16"))
            raise UserError(f"{name} is '{value}', expected auto, float32, float16 or bfloat16{near}")
    device = flags.get("device") or arguments.get("device")
    if device is None:
        require_usable_card()
    elif not arguments.get("parallelize"):
        _check_device(device)


def check_vllm_arguments(arguments: Mapping[str, Any], *, steered: bool) -> None:
    """Raises UserError for an argument or value that neither lm-eval's VLLM nor vLLM's engine takes.

    Also where the run needs more GPUs than there are, and for a `worker_cls` in a steered run.

    Args:
        arguments: of the model, without the `sae_*` ones.
        steered: whether there are any of those.
    """
    if steered:
        refuse_worker_class(arguments)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    from lm_eval_sae.engines.vllm_model import VLLM

    fields = {field.name for field in dataclasses.fields(EngineArgs) if not field.name.startswith("_")}
    known = {*inspect.signature(VLLM.__init__).parameters, *fields, "chat_template", "swap_space"}
    _check_names(arguments, known - {"self", "kwargs", "model"})
    _check_values(arguments)
    dtype = arguments.get("dtype", "auto")
    if dtype not in VLLM_DTYPES:
        near = did_you_mean(str(dtype), VLLM_DTYPES)
        raise UserError(f"dtype is '{dtype}', expected one of {', '.join(VLLM_DTYPES)}{near}")
    share = arguments.get("gpu_memory_utilization")
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
        raise UserError(f"gpu_memory_utilization is {share}, expected a share of the GPU's memory above 0, 1 at most")
    if arguments.get("max_length") is not None and arguments.get("max_model_len") is not None:
        raise UserError("both max_length and max_model_len are given; expected one of them")
    one_machine = arguments.get("distributed_executor_backend") != "ray" and not os.environ.get("RAY_ADDRESS")
    if current_platform.is_cuda_alike() and one_machine and arguments.get("nnodes", 1) == 1:
        require_gpus(arguments, current_platform.device_count())
    require_usable_card(vllm_on_cpu=current_platform.is_cpu())


def refuse_worker_class(arguments: Mapping[str, Any]) -> None:
    """Raises UserError for a `worker_cls` among the model arguments of a steered run."""
    if arguments.get("worker_cls") is not None:
        raise UserError(
            "both worker_cls and sae_* arguments are given, but steering has a vLLM worker class of its own; "
            "leave out worker_cls"
        )


def require_gpus(arguments: Mapping[str, Any], gpus: int) -> None:
    """Raises UserError where the parallel sizes come to more than `gpus`."""
    sizes = {name: arguments[name] for name in PARALLEL if arguments.get(name, 1) > 1}
    needed = math.prod(sizes.values())
    if needed > gpus:
        product = " × ".join(f"{name}={size}" for name, size in sizes.items()) or "the run"
        raise UserError(
            f"{product} needs {needed} GPUs, but {gpus} {'is' if gpus == 1 else 'are'} visible; "
            "expected no more than that (see CUDA_VISIBLE_DEVICES)"
        )


def check_flags_given_once(arguments: Mapping[str, Any], passed: Mapping[str, Any]) -> None:
    """Raises UserError for a model argument that lm-eval passes as a flag as well.

    Args:
        arguments: of the model.
        passed: those of FLAGS that lm-eval passes, its defaults included.
    """
    for name in FLAGS:
        if name in arguments and passed.get(name) is not None:
            raise UserError(f"{name} is in --model_args, where lm-eval does not take it; give --{name} instead")


def _check_names(arguments: Iterable[str], known: Iterable[str], *, also: Iterable[str] = ()) -> None:
    known, also = set(known), set(also)
    for name in arguments:
        if name not in known and name not in also:
            hint = did_you_mean(name, known) or "; 'pretrained', 'dtype' and 'revision' are some that there are"
            raise UserError(f"unknown model argument '{name}'{hint}")


def _check_values(arguments: Mapping[str, Any]) -> None:
    for name in POSITIVE:
        if arguments.get(name) is not None and not _is_whole(arguments[name], least=1):
            raise UserError(f"{name} is {arguments[name]!r}, expected a whole number above 0")


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


def _check_device(device: Any) -> None:
    """lm-eval would take another device without a word, or fail when the model is loaded."""
    import torch

    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device is '{device}', expected cpu, cuda, cuda:<number> or mps") from None
    if parsed.type == "cuda":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (parsed.index or 0) >= gpus:
            there = f"only cuda:0 to cuda:{gpus - 1}" if gpus > 1 else "only cuda:0" if gpus else "no GPU"
            raise UserError(f"--device is '{device}', but torch finds {there} here; expected one of those, or cpu")
    elif parsed.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device is '{device}', but torch finds no such device here; expected cpu")
    elif parsed.type == "cpu" and parsed.index is not None:
        raise UserError(f"--device is '{device}', expected cpu")


def _is_whole(value: Any, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
