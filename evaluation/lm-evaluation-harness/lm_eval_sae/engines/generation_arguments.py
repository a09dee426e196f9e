"""Checks of what a run asks its engine for, before the engine starts."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lm_eval_sae import TASKS_DIR
from lm_eval_sae.grading.completion import split_cutoff
from lm_eval_sae.errors import UserError, did_you_mean

# Of lm-eval and of this package; lm-eval has other names for max_gen_toks, which a task's own value would outdo.
OWN = ("until", "max_gen_toks", "do_sample", "cutoff_token")
SAME_AS = {
    "max_new_tokens": "max_gen_toks", "max_tokens": "max_gen_toks", "max_completion_tokens": "max_gen_toks",
    "max_length": "max_gen_toks", "stop": "until",
}  # fmt: skip
NUMBERS = {
    "temperature": (0, math.inf), "top_k": (0, math.inf), "top_p": (0, 1), "min_p": (0, 1),
    "repetition_penalty": (0, math.inf),
}  # fmt: skip
# One text for each request: repeats are the task's.
NOT_FOR_TASKS = ("n", "num_return_sequences", "detokenize", "output_kind", "prompt_logprobs", "return_dict_in_generate")


class _TaskLoader(yaml.SafeLoader):
    """Reads a task's YAML and leaves its functions alone."""


_TaskLoader.add_constructor("!function", lambda loader, node: None)


def require_vllm(model_args: Mapping[str, Any]) -> None:
    """Raises UserError where vLLM, or what data parallelism needs besides, is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed; run setup.sh, which says what it needs, or use --model hf")
    replicas = model_args.get("data_parallel_size", 1)
    if isinstance(replicas, int) and replicas > 1 and importlib.util.find_spec("ray") is None:
        raise UserError(f"data_parallel_size={replicas} needs Ray; pip install ray")


def check_generation_arguments(gen_kwargs: Mapping[str, Any], *, engine: str) -> None:
    """Raises UserError for a generation argument or value that lm-eval, this package and the engine do not know."""
    engine_kwargs, _ = split_cutoff(gen_kwargs)
    if engine == "hf-sae":
        from transformers import GenerationConfig

        names, engine_errors = set(GenerationConfig().to_dict()), ()
    else:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError

        names = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
        engine_errors = (VLLMValidationError,)
    known = {*OWN, *names} - {*NOT_FOR_TASKS, *SAME_AS}
    for key in gen_kwargs:
        if key in SAME_AS:
            raise UserError(f"generation argument '{key}' is called {SAME_AS[key]} in lm-eval")
        if key not in known:
            raise UserError(f"unknown generation argument '{key}'{did_you_mean(key, known)}")
    _check_values(gen_kwargs, ranges=engine == "hf-sae")
    values = {key: value for key, value in engine_kwargs.items() if key not in OWN}
    try:
        if engine == "hf-sae":
            GenerationConfig(**values).validate()
        else:
            SamplingParams(**values)
    except (TypeError, ValueError, *engine_errors) as error:
        raise UserError(f"--gen_kwargs: {str(error).strip().splitlines()[0]}") from error


def _check_values(gen_kwargs: Mapping[str, Any], *, ranges: bool) -> None:
    """Of arguments whose values lm-eval, and with `ranges` transformers, would take as they come."""
    for key, value in gen_kwargs.items():
        if value is None:
            continue
        expected = None
        if key == "do_sample" and not isinstance(value, bool):
            expected = "true or false"
        elif key == "until" and not isinstance(value, str) and not _are_texts(value):
            expected = "a text or a list of texts"
        elif key in NUMBERS:
            least, most = NUMBERS[key] if ranges else (-math.inf, math.inf)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                expected = "a number" + (f" from {least:g} to {most:g}" if math.isfinite(most) else "")
                expected += " from 0" if ranges and not math.isfinite(most) else ""
        if expected:
            raise UserError(f"--gen_kwargs: {key} is {value!r}, expected {expected}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def max_gen_toks(gen_kwargs: Mapping[str, Any], tasks: Sequence[str]) -> int | None:
    """The most tokens that a run may generate for a question: as given, else of those tasks that are this package's."""
    if "max_gen_toks" in gen_kwargs:
        return gen_kwargs["max_gen_toks"]
    own = [_task_max_gen_toks(task) for task in tasks if (TASKS_DIR / f"{task}.yaml").is_file()]
    return max((value for value in own if value is not None), default=None)


def _task_max_gen_toks(task: str) -> int | None:
    files, kwargs = [f"{task}.yaml"], None
    while files and kwargs is None:
        config = yaml.load((TASKS_DIR / files.pop()).read_text(encoding="utf-8"), Loader=_TaskLoader)
        kwargs = config.get("generation_kwargs")
        included = config.get("include", [])
        files += [included] if isinstance(included, str) else included
    return (kwargs or {}).get("max_gen_toks")


def check_context(wanted: int | None, model_args: Mapping[str, Any], config: Any, *, name: str) -> None:
    """Raises UserError where the tokens to generate leave no room for a prompt in the context of the model."""
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
        raise UserError(f"max_gen_toks is {wanted!r}, expected a whole number above 0")
    given = model_args.get("max_length") or model_args.get("max_model_len")
    context = given or getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(wanted, int) and isinstance(context, int) and wanted >= context:
        raise UserError(
            f"max_gen_toks is {wanted} but the context of {name} is {context} tokens, prompt included; "
            f"set max_gen_toks in --gen_kwargs (evaluate.sh: GEN_KWARGS) well below {context}"
        )
