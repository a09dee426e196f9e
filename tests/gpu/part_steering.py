"""Steering: a compiled vLLM engine against the full SAE, counted positions, and what steering costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from material import make_material, sizes_for
from measure import Machine, Rows, run_part

if TYPE_CHECKING:
    from lm_eval_sae.engines.vllm_model import VLLMSAE
    from lm_eval_sae.steering.arguments import Steering

LIMITS = {"cuda": {"float32": 3e-3, "bfloat16": 5e-2}, "cpu": {"float32": 1e-3}}
"""Of differences over the effect of steering. In float32, vLLM's attention on a GPU rounds to TF32."""


def with_vllm() -> bool:
    """Whether vLLM and lm-eval are installed."""
    return find_spec("vllm") is not None and find_spec("lm_eval") is not None


def engine_arguments(machine: Machine, work: Path, **arguments: Any) -> dict[str, Any]:
    """Those of an engine that leaves memory to others, and compiles here and now."""
    os.environ["VLLM_CACHE_ROOT"] = str(work / "vllm")
    if not machine.is_cuda:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process less to start
        return {"kv_cache_memory_bytes": 2**27, **arguments}
    return {"kv_cache_memory_bytes": 4 * 2**30, "gpu_memory_utilization": 0.6, **arguments}


def time_engine(
    rows: Rows, name: str, model: VLLMSAE, sequences: int, dtype: str, *, mixed: Sequence[Steering | None] = (None,)
) -> None:
    """Speed of reading prompts and of greedy generation; memory is all that is in use on the GPU.

    The requests of a batch take the interventions of `mixed` in turn.
    """
    from steered import sampling

    from lm_eval_sae.engines.vllm_model import steered

    machine, sizes = rows.machine, sizes_for(rows.machine)
    in_use = None
    if machine.is_cuda:
        free, total = torch.cuda.mem_get_info()
        in_use = total - free
    for what, length, new in (("prompts", sizes.context, 1), ("generation", 32, 128 if machine.is_cuda else 16)):
        prompts = sizes.tokens(4 * sequences, seed=3 + new)[:, :length].tolist()
        batches = (prompts[i * sequences : (i + 1) * sequences] for i in range(4))  # not what the prefix cache holds
        params = [steered(sampling(new, logprobs=None), mixed[i % len(mixed)]) for i in range(sequences)]
        ask = partial(model.engine.generate, params=params, progress=False)
        seconds = machine.seconds(lambda ask=ask, batches=batches: ask(next(batches)))
        tokens = sequences * (length if new == 1 else new)
        flops = sizes.forward_flops(sizes.layers, context=length) / length
        rows.speed(f"{name}: {what}", tokens=tokens, seconds=seconds, work={dtype: flops * tokens}, peak=in_use)


def part(rows: Rows, work: Path) -> None:
    if not with_vllm():
        rows.note("steering in vLLM", "left out: vllm and lm-eval are not both installed")
        return
    from steered import Question, compare, start

    machine, material = rows.machine, make_material(work, rows.machine)
    question = Question(material)
    sequences = 64 if machine.is_cuda else 8
    for dtype, limit in LIMITS[machine.device].items():
        arguments = engine_arguments(machine, work, dtype=dtype, max_num_seqs=sequences)
        model = start(material, **arguments)
        config = model.model.llm_engine.vllm_config.compilation_config
        described = f"compiled: {config.mode.name}, CUDA graphs: {config.cudagraph_mode.name}"
        if machine.is_cuda:
            rows.check(f"{dtype} engine", described, "CUDA graphs", config.cudagraph_mode.name != "NONE")
        else:
            rows.note(f"{dtype} engine", described)
        compare(rows, dtype, model, question, limit=limit)
        if dtype == list(LIMITS[machine.device])[-1]:
            mixed = [case.steering for case in question.cases]
            time_engine(rows, f"interventions mixed, {sequences} sequences", model, sequences, dtype, mixed=mixed)
        model.close()
    if not machine.is_cuda:
        rows.note(f"vLLM alone, {sequences} sequences", "timed only on CUDA")
        return
    model = start(material, can_steer=False, **arguments)
    time_engine(rows, f"vLLM alone, {sequences} sequences", model, sequences, dtype)
    model.close()


if __name__ == "__main__":
    run_part(part)
