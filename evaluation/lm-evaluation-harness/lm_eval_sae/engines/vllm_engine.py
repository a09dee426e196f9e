"""A vLLM engine that steers each request as it asks: one, or a replica in a Ray actor for each data-parallel rank."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval_sae.engines.kept_completions import Unfinished
from lm_eval_sae.errors import NotSteered, UserError
from lm_eval_sae.steering.requests import Served, intervention_key

WORKER = "lm_eval_sae.engines.vllm_worker.SteeringWorker"
CONFIG_KEY = "lm_eval_sae"
CORES_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
# What vLLM's own data parallelism reads. A replica is an engine by itself, whatever its parent was.
DATA_PARALLEL_VARIABLES = (
    "VLLM_DP_RANK", "VLLM_DP_RANK_LOCAL", "VLLM_DP_SIZE", "VLLM_DP_MASTER_IP", "VLLM_DP_MASTER_PORT",
)  # fmt: skip
KEEP_EVERY_SECONDS = 4.0  # a killed run loses what was finished in its last five
Place = tuple[Unfinished, str]
"""A file of completions, and a key in it."""


def positions_of(output: Any) -> int:
    """Token positions that the engine went through for a request.

    A completion's last token is not fed back; what the prefix cache held was steered when it was computed.
    """
    cached = output.num_cached_tokens or 0
    return len(output.prompt_token_ids) - cached + len(output.outputs[0].token_ids) - 1


class Engine:
    """vLLM's `LLM` whose requests carry their intervention in the `extra_args` of their sampling parameters.

    Args:
        llm: a `vllm.LLM` that was made with the arguments of `steering_arguments` if it is to steer.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        config = (llm.llm_engine.vllm_config.additional_config or {}).get(CONFIG_KEY)
        self.layers = list(Served.of(config).layers) if config else []
        self.finished = (0, 0)
        """Requests that `generate` has finished, and the tokens that it generated for them."""

    def steered_positions(self, keys: Sequence[str]) -> dict[str, int]:
        """Token positions that went through each intervention: of several layers and ranks, those of the fewest."""
        workers = self.llm.collective_rpc("steered_positions", args=(list(keys),)) if keys else []

        def of_layer(layer: int, key: str) -> int:
            return min((worker[layer][key] for worker in workers if layer in worker), default=0)

        return {key: min(of_layer(layer, key) for layer in self.layers) for key in keys}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[Any],
        lora_request: Any = None,
        *,
        keep: Sequence[Place] | None = None,
        progress: bool | Callable[[int, int], None] = True,
    ) -> list[Any]:
        """vLLM's outputs for prompts of token ids, in order.

        Args:
            prompts: token ids of each.
            params: vLLM's `SamplingParams` of each.
            lora_request: for all.
            keep: where the completion of each is put as it is finished, once its positions are proven; entries are
                {"text", "token_ids", "finish_reason", "positions"}.
            progress: vLLM's own bar or none, or what is called with `finished`.

        Raises:
            NotSteered: requests were not steered at every position. Those of other interventions are kept.
        """
        from vllm import TokensPrompt

        keys = [intervention_key(one.extra_args) for one in params]
        # One salt for an intervention: what the prefix cache holds was computed under it.
        tokens = [
            TokensPrompt(prompt_token_ids=list(ids), **({"cache_salt": key} if key else {}))
            for ids, key in zip(prompts, keys, strict=True)
        ]
        proof = _Proof(self, keys, keep)
        self.finished = (0, 0)

        def see(finished: Sequence[tuple[int, Any]]) -> None:
            proof.see(finished)
            tokens = sum(len(output.outputs[0].token_ids) for _, output in finished)
            self.finished = self.finished[0] + len(finished), self.finished[1] + tokens
            if finished and callable(progress):
                progress(*self.finished)

        with _after_each_step(self.llm, see):
            outputs = self.llm.generate(
                tokens, list(params), lora_request=lora_request, use_tqdm=progress if progress is True else False
            )
        proof.end()
        return outputs

    def progress(self) -> tuple[int, int]:
        """`finished`, for who cannot read it."""
        return self.finished

    def close(self) -> None:
        """Ends the engine's processes."""
        self.llm.llm_engine.engine_core.shutdown()


class Replica(Engine):
    """An engine in a process that Ray started."""

    def __init__(self, engine_args: Mapping[str, Any]) -> None:
        for name in DATA_PARALLEL_VARIABLES:
            os.environ.pop(name, None)
        from vllm import LLM

        super().__init__(LLM(**engine_args))


class Replicas:
    """Engines in Ray actors, one for each data-parallel rank; requests are dealt to them in turn.

    Args:
        engine_args: of `vllm.LLM`, the same for each.
        count: how many.
    """

    def __init__(self, engine_args: Mapping[str, Any], count: int) -> None:
        import ray
        from vllm.platforms import current_platform

        # Within an actor vLLM must start its own workers: nested placement groups wait for one another.
        engine_args = {key: value for key, value in engine_args.items() if key != "distributed_executor_backend"}
        ranks = int(engine_args.get("tensor_parallel_size", 1)) * int(engine_args.get("pipeline_parallel_size", 1))
        on_cpu = current_platform.is_cpu()
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            ray.init(include_dashboard=False, logging_level="warning")
        gpus = ray.cluster_resources().get("GPU", 0)
        if not on_cpu and gpus < count * ranks:  # Ray would wait for more, for ever
            raise UserError(
                f"data_parallel_size={count} with {ranks} GPUs each needs {count * ranks} GPUs, Ray sees {gpus:g}; "
                "set data_parallel_size or CUDA_VISIBLE_DEVICES"
            )
        bindings = split_cores(count, ranks) if on_cpu else [""] * count
        self._ray = ray
        self.actors = [
            ray.remote(Replica)
            .options(
                # Ray shows an actor the GPUs it asked for, and none otherwise.
                num_gpus=0 if on_cpu else ranks,
                num_cpus=0,
                max_concurrency=2,  # it tells its progress while it generates
                runtime_env={"env_vars": {CORES_VARIABLE: cores} if cores else {}},
            )
            .remote(engine_args)
            for cores in bindings
        ]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[Any],
        lora_request: Any = None,
        *,
        keep: Sequence[Place] | None = None,
        progress: bool | Callable[[int, int], None] = True,
    ) -> list[Any]:
        """As `Engine.generate`; every n-th request goes to the same replica, which mixes long and short ones."""
        n = len(self.actors)
        parts = [
            actor.generate.remote(
                list(prompts[i::n]), list(params[i::n]), lora_request,
                keep=keep and keep[i::n], progress=progress is True,
            )
            for i, actor in enumerate(self.actors)
            if prompts[i::n]
        ]  # fmt: skip
        while callable(progress) and self._ray.wait(parts, num_returns=len(parts), timeout=1.0)[1]:
            finished = self._ray.get([actor.progress.remote() for actor in self.actors[: len(parts)]])
            progress(*map(sum, zip(*finished, strict=True)))
        outputs = self._ray.get(parts)
        return [outputs[i % n][i // n] for i in range(len(prompts))]

    def close(self) -> None:
        """Ends the replicas' processes."""
        self._ray.get([actor.close.remote() for actor in self.actors])
        for actor in self.actors:
            self._ray.kill(actor)
        if self._started_ray:
            self._ray.shutdown()


@contextmanager
def _after_each_step(llm: Any, see: Callable[[Sequence[tuple[int, Any]]], None]) -> Iterator[None]:
    """Calls `see` with the outputs that a step finished, each after the place of its request in the next `generate`."""
    engine, first = llm.llm_engine, llm.request_counter.counter
    step = engine.step

    def seen_step() -> list[Any]:
        outputs = step()
        see([(int(output.request_id) - first, output) for output in outputs if output.finished])
        return outputs

    engine.step = seen_step
    try:
        yield
    finally:
        del engine.step  # the method of its class is there again


class _Proof:
    """Counts what the finished requests of each intervention took against what was steered, and keeps completions.

    Args:
        engine: that generates.
        keys: the intervention of each request, "" for a baseline.
        keep: None keeps nothing.
    """

    def __init__(self, engine: Engine, keys: Sequence[str], keep: Sequence[Place] | None) -> None:
        self.engine, self.keys, self.keep = engine, keys, keep
        self.required = dict.fromkeys(filter(None, keys), 0)
        self.before = engine.steered_positions(list(self.required))
        self.waiting: list[tuple[int, dict[str, Any]]] = []
        self.written = time.monotonic()

    def see(self, finished: Sequence[tuple[int, Any]]) -> None:
        """After each step: the outputs that it finished, each after the place of its request."""
        for place, output in finished:
            completion, positions = output.outputs[0], positions_of(output)
            if self.keys[place]:
                self.required[self.keys[place]] += positions
            if self.keep is not None:
                entry = {
                    "text": completion.text, "token_ids": list(completion.token_ids),
                    "finish_reason": completion.finish_reason, "positions": positions,
                }  # fmt: skip
                self.waiting.append((place, entry))
        if self.waiting and time.monotonic() - self.written >= KEEP_EVERY_SECONDS:
            self._write()

    def end(self) -> None:
        """Keeps the rest. Raises NotSteered if fewer positions of an intervention were steered than it took."""
        missed = self._write()
        if missed:
            counts = "; ".join(f"only {n} of {self.required[key]} token positions ({key})" for key, n in missed.items())
            raise NotSteered(f"not everything was steered: {counts}")

    def _write(self) -> dict[str, int]:
        """Keeps what is proven; returns how much was steered for each intervention that is not."""
        now = self.engine.steered_positions(list(self.required))
        steered = {key: now[key] - self.before[key] for key in now}
        missed = {key: count for key, count in steered.items() if count < self.required[key]}
        files: dict[Unfinished, list[tuple[str, dict[str, Any]]]] = {}
        for place, entry in self.waiting:
            if self.keys[place] not in missed:
                file, key = self.keep[place]
                files.setdefault(file, []).append((key, entry))
        for file, entries in files.items():
            file.add(entries)
        self.waiting, self.written = [], time.monotonic()
        return missed


def steering_arguments(layers: Mapping[int, int], additional_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of `vllm.LLM` that let requests change `layers[layer]` features of each layer."""
    own = {CONFIG_KEY: Served(layers).record()}
    return {"worker_cls": WORKER, "additional_config": {**(additional_config or {}), **own}}


def split_cores(replicas: int, ranks: int) -> list[str]:
    """What CORES_VARIABLE is to hold for each replica: this process's cores dealt out to replicas, then to their ranks.

    By itself vLLM binds every rank to all cores of a NUMA node, where they then wait for one another. With fewer
    cores than ranks, ranks share.
    """
    cores = sorted(os.sched_getaffinity(0))
    total = replicas * ranks
    share = max(len(cores) // total, 1)
    parts = [cores[(i * share) % len(cores) :][:share] for i in range(total)]
    names = [",".join(map(str, part)) for part in parts]
    return ["|".join(names[i * ranks : (i + 1) * ranks]) for i in range(replicas)]
