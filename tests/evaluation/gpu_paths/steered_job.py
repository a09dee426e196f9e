"""What the scripts of this folder do with the engine that each of them makes: a job of steered requests.

A job is JSON: {"model", "layer", "interventions", "requests"}. Every request {"prompt", "params"} runs under every
intervention (buffers as `vllm_engine.as_lists` makes them), one after another in the same engine.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.compilation.counter import compilation_counter

from lm_eval_sae.engines.vllm_engine import Engine, positions_of, steering_arguments


def run_job(**engine_arguments: Any) -> dict[str, Any]:
    """Runs the job that the command line names, in an engine with the given arguments of `vllm.LLM`.

    Returns:
        {"runs": one entry per intervention, "compiled": vLLM's counts of compilations before the first intervention
        and after the last, "runner": the module of the model runner, "scheduler": the class of the scheduler}.
    """
    job = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(
        job["model"], dtype="float32", max_model_len=256, max_num_seqs=4, skip_tokenizer_init=True,
        kv_cache_memory_bytes=2**25, **engine_arguments, **steering_arguments({job["layer"]: 1}),
    )  # fmt: skip
    engine = Engine(llm)
    before = asdict(compilation_counter)
    runs = [_run(engine, values, job["requests"]) for values in job["interventions"]]
    return {
        "runs": runs,
        "compiled": [before, asdict(compilation_counter)],
        "runner": llm.collective_rpc(lambda worker: type(worker.model_runner).__module__)[0],
        "scheduler": type(llm.llm_engine.engine_core.engine_core.scheduler).__name__,
    }


def write_result(result: dict[str, Any]) -> None:
    """Writes what a script found to the file that its command line names."""
    Path(sys.argv[2]).write_text(json.dumps(result))


def _run(engine: Engine, values: dict[str, Any], requests: list[dict[str, Any]]) -> dict[str, Any]:
    engine.set_intervention(values)
    params = [SamplingParams(detokenize=False, ignore_eos=True, logprobs=1, **one["params"]) for one in requests]
    outputs = engine.generate([one["prompt"] for one in requests], params, progress=False)
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "logprobs": [output.outputs[0].cumulative_logprob for output in outputs],
        "prompt_logprobs": [_prompt_logprobs(output) for output in outputs],
        "needed_positions": sum(map(positions_of, outputs)),
        "steered_positions": engine.steered_positions(),
    }


def _prompt_logprobs(output: Any) -> list[float] | None:
    """Of each prompt token after the first, if the request asked for them."""
    if output.prompt_logprobs is None:
        return None
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [of[token].logprob for token, of in pairs]
