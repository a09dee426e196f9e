"""A vLLM engine that steers: one, or a replica in a Ray actor for each data-parallel rank."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from lm_eval_sae.engines.kept_completions import Unfinished
from lm_eval_sae.errors import UserError

WORKER = "lm_eval_sae.engines.vllm_worker.SteeringWorker"
CONFIG_KEY = "lm_eval_sae"
CORES_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
# What vLLM's own data parallelism reads. A replica is an engine by itself, whatever its parent was.
DATA_PARALLEL_VARIABLES = (
    "VLLM_DP_RANK", "VLLM_DP_RANK_LOCAL", "VLLM_DP_SIZE", "VLLM_DP_MASTER_IP", "VLLM_DP_MASTER_PORT",
)  # fmt: skip
KEEP_EVERY_SECONDS = 5.0


@dataclass
class Keep:
    """Where `generate` is to put completions as they are finished, each when the positions it took are proven.

    Entries are {"text", "token_ids", "finish_reason", "positions"}.
    """

    where: Unfinished
    keys: Sequence[str]
    """Of each request."""
    layers: Sequence[str]
    """That are steered."""


def positions_of(output: Any) -> int:
    """Token positions that the engine went through for a request.

    A completion's last token is not fed back; what the prefix cache held was steered when it was computed.
    """
    cached = output.num_cached_tokens or 0
    return len(output.prompt_token_ids) - cached + len(output.outputs[0].token_ids) - 1


def fewest(counts: Mapping[str, int], layers: Iterable[str]) -> int:
    """Of the positions steered by layer, those of the layer with the fewest."""
    return min(counts[layer] for layer in layers)


def require_steered(steered: int, required: int) -> None:
    """Raises RuntimeError if fewer positions were steered than requests took."""
    if steered < required:
        raise RuntimeError(f"only {steered} of {required} token positions were steered")


class Engine:
    """vLLM's `LLM` with an intervention that can be changed while it runs.

    Args:
        llm: a `vllm.LLM` that was made with the arguments of `steering_arguments` where it is to steer.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def set_intervention(self, values: Mapping[str, Mapping[str, list]]) -> None:
        """Changes the intervention of every worker and forgets what was cached under the one before.

        Raises RuntimeError if a layer is on no worker, or the prefix cache could not be reset.
        """
        owned = {layer for layers in self.llm.collective_rpc("set_intervention", args=(values,)) for layer in layers}
        if owned != set(values):
            raise RuntimeError(f"no worker has layer {', '.join(sorted(set(values) - owned))}")
        # What is kept outside the engine (a KV connector) was computed under the one before as well.
        if not self.llm.reset_prefix_cache(reset_connector=True):
            raise RuntimeError("vLLM could not reset its prefix cache: requests are still running")

    def steered_positions(self) -> dict[str, int]:
        """By layer, the positions changed since the intervention was set: of several ranks, where there are fewest."""
        counts: dict[str, int] = {}
        for worker in self.llm.collective_rpc("steered_positions"):
            for layer, count in worker.items():
                counts[layer] = min(count, counts.get(layer, count))
        return counts

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[Any],
        lora_request: Any = None,
        *,
        keep: Keep | None = None,
        progress: bool = True,
    ) -> list[Any]:
        """vLLM's outputs for prompts of token ids, in order.

        Raises RuntimeError if completions were to be kept that were not steered.
        """
        from vllm import TokensPrompt

        tokens = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        run = partial(self.llm.generate, tokens, list(params), lora_request=lora_request, use_tqdm=progress)
        if keep is None:
            return run()
        keeper = _Keeper(keep, lambda: fewest(self.steered_positions(), keep.layers) if keep.layers else None)
        with _finished_outputs(self.llm, keeper.see):
            outputs = run()
        keeper.write()
        return outputs

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
                runtime_env={"env_vars": {CORES_VARIABLE: cores} if cores else {}},
            )
            .remote(engine_args)
            for cores in bindings
        ]

    def set_intervention(self, values: Mapping[str, Mapping[str, list]]) -> None:
        """As `Engine.set_intervention`, on every replica."""
        self._ray.get([actor.set_intervention.remote(values) for actor in self.actors])

    def steered_positions(self) -> dict[str, int]:
        """As `Engine.steered_positions`, added up over the replicas."""
        counts: dict[str, int] = {}
        for replica in self._ray.get([actor.steered_positions.remote() for actor in self.actors]):
            for layer, count in replica.items():
                counts[layer] = counts.get(layer, 0) + count
        return counts

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[Any],
        lora_request: Any = None,
        *,
        keep: Keep | None = None,
        progress: bool = True,
    ) -> list[Any]:
        """As `Engine.generate`; every n-th request goes to the same replica, which mixes long and short ones."""
        n = len(self.actors)
        keeps = [keep and replace(keep, keys=keep.keys[i::n]) for i in range(n)]
        parts = self._ray.get(
            [
                actor.generate.remote(
                    list(prompts[i::n]), list(params[i::n]), lora_request, keep=keeps[i], progress=progress
                )
                for i, actor in enumerate(self.actors)
                if prompts[i::n]
            ]
        )
        return [parts[i % n][i // n] for i in range(len(prompts))]

    def close(self) -> None:
        """Ends the replicas' processes."""
        self._ray.get([actor.close.remote() for actor in self.actors])
        for actor in self.actors:
            self._ray.kill(actor)
        if self._started_ray:
            self._ray.shutdown()


@contextmanager
def _finished_outputs(llm: Any, see: Callable[[int, Any], None]) -> Iterator[None]:
    """Calls `see` with every output as it is finished, and the place of its request in the next `llm.generate`."""
    engine, first = llm.llm_engine, llm.request_counter.counter
    step = engine.step

    def seen_step() -> list[Any]:
        outputs = step()
        for output in outputs:
            if output.finished:
                see(int(output.request_id) - first, output)
        return outputs

    engine.step = seen_step
    try:
        yield
    finally:
        del engine.step  # the method of its class is there again


@dataclass
class _Keeper:
    """Writes outputs to where they are kept, every few seconds.

    Args:
        keep: where.
        count: gives the positions steered so far; None if nothing is to be steered.
    """

    keep: Keep
    count: Callable[[], int | None]
    before: int | None = field(init=False)
    required: int = 0
    waiting: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    written: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.before = self.count()

    def see(self, place: int, output: Any) -> None:
        completion, positions = output.outputs[0], positions_of(output)
        self.required += positions
        entry = {
            "text": completion.text, "token_ids": list(completion.token_ids),
            "finish_reason": completion.finish_reason, "positions": positions,
        }  # fmt: skip
        self.waiting.append((self.keep.keys[place], entry))
        if time.monotonic() - self.written >= KEEP_EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """What waits, where at least as many positions were steered as all outputs so far took."""
        if self.before is not None:
            require_steered(self.count() - self.before, self.required)
        self.keep.where.add(self.waiting)
        self.waiting, self.written = [], time.monotonic()


def steering_arguments(slots: Mapping[int, int], additional_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of `vllm.LLM` that make `slots[layer]` features of each layer changeable."""
    own = {CONFIG_KEY: {"slots": {str(layer): count for layer, count in sorted(slots.items())}}}
    return {"worker_cls": WORKER, "additional_config": {**(additional_config or {}), **own}}


def as_lists(values: Mapping[int, Mapping[str, Tensor]]) -> dict[str, dict[str, list]]:
    """Buffers by layer in the plain types that vLLM hands to its workers; exact, as every float32 is a float64."""
    return {str(layer): {name: value.tolist() for name, value in of.items()} for layer, of in values.items()}


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
