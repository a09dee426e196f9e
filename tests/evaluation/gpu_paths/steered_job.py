"""What the scripts of this folder do with the engine that each of them makes: a job of steered requests.

A job is JSON: {"model", "layer", "batches"}. A batch is a list of requests {"prompt", "params"} that run together, each
with its intervention in `params["extra_args"]`.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.compilation.counter import compilation_counter

from lm_eval_sae.engines.vllm_engine import Engine, positions_of, steering_arguments
from lm_eval_sae.steering.requests import intervention_key


def run_job(**engine_arguments: Any) -> dict[str, Any]:
    """Runs the job that the command line names, in an engine with the given arguments of `vllm.LLM`.

    Three requests run at once, and the key-value cache has three blocks of 128 tokens.

    Returns:
        {"batches": what `_run` found of each, "compiled": vLLM's counts of compilations before the first and after the
        last, "runner": the module of the model runner, "scheduler": the class of the scheduler}.
    """
    job = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(
        job["model"], dtype="float32", max_model_len=256, max_num_seqs=3, skip_tokenizer_init=True,
        kv_cache_memory_bytes=2**25, num_gpu_blocks_override=4, **engine_arguments,
        **steering_arguments({job["layer"]: 1}),
    )  # fmt: skip
    engine = Engine(llm)
    before = asdict(compilation_counter)
    batches = [_run(engine, requests) for requests in job["batches"]]
    return {
        "batches": batches,
        "compiled": [before, asdict(compilation_counter)],
        "runner": llm.collective_rpc(lambda worker: type(worker.model_runner).__module__)[0],
        "scheduler": type(llm.llm_engine.engine_core.engine_core.scheduler).__name__,
    }


def write_result(result: dict[str, Any]) -> None:
    """Writes what a script found to the file that its command line names."""
    Path(sys.argv[2]).write_text(json.dumps(result))


def _run(engine: Engine, requests: list[dict[str, Any]]) -> dict[str, Any]:
    params = [SamplingParams(detokenize=False, ignore_eos=True, logprobs=1, **one["params"]) for one in requests]
    keys = [intervention_key(one.extra_args) for one in params]
    before = engine.steered_positions(keys)
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    preempted: list[str] = []
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *args, **kwargs: (
        preempted.append(request.request_id),
        preempt(request, *args, **kwargs),
    )
    outputs = engine.generate([one["prompt"] for one in requests], params, progress=False)
    del scheduler._preempt_request
    after = engine.steered_positions(keys)
    return {
        "outputs": [
            {
                "tokens": list(output.outputs[0].token_ids),
                "logprob": output.outputs[0].cumulative_logprob,
                "prompt_logprob": _prompt_logprob(output),
            }
            for output in outputs
        ],
        "needed": {key: sum(positions_of(o) for o, of in zip(outputs, keys, strict=True) if of == key) for key in keys},
        "steered": {key: after[key] - before[key] for key in keys},
        "preempted": len(preempted),
    }


def _prompt_logprob(output: Any) -> float | None:
    """Of the prompt after its first token, if the request asked for it."""
    if output.prompt_logprobs is None:
        return None
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return sum(of[token].logprob for token, of in pairs)
