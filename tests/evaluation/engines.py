"""What the tests of both back ends ask of a model, and the comparison of one with the other."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from sae_lens import SAE
from torch import Tensor

from lm_eval_sae import TASKS_DIR
from lm_eval_sae.engines.hf_model import HFSAE
from lm_eval_sae.steering.arguments import Steering, read_steering
from lm_eval_sae.steering.requests import intervention_key, request_arguments

if TYPE_CHECKING:
    from lm_eval_sae.engines.vllm_model import VLLMSAE

PROMPTS = ["What is 2 + 2?", "Wait, let me think about this again. However, 7 times 6", "So", "What is 2 + 2?"]
# Longer than a block of vLLM's prefix cache, and all alike at the start.
LONG_PROMPTS = ["Wait, let me think about this again. " * 24 + end for end in PROMPTS]
MIXED_PROMPTS = ["What is 2 + 2?", "Wait, let me think", "So", "7", "x = y, but", "However", *LONG_PROMPTS[:2]]
MIXED_TOKENS = 20
PLACES = {1: 2, 2: 1}  # features by layer, of the interventions below on SAEs at layers 1 and 2

# One row of each benchmark in its own schema.
TASK_DATA = {
    "math-500": [{"problem": "What is $\\frac{1}{2}$ of 3?", "solution": "...", "answer": "\\frac{3}{2}"}],
    "aime2024_nofigures": [{"problem": "Find $n$.", "solution": "...", "answer": "073"}],
    "openai_gpqa_diamond": [
        {
            "Question": "Which one?", "Correct Answer": "this\n", "Incorrect Answer 1": "one",
            "Incorrect Answer 2": "two [x]", "Incorrect Answer 3": "three",
        }
    ],
}  # fmt: skip


def write_local_task(task: str, folder: Path, rows: Sequence[Mapping[str, str]] = ()) -> str:
    """A task that differs from a benchmark's in its name and its data (`rows`, else TASK_DATA); returns its name."""
    benchmark = task.removesuffix("_self_consistency")
    split = "test" if benchmark == "math-500" else "train"
    folder.mkdir(exist_ok=True)
    data = folder / f"{task}.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows or TASK_DATA[benchmark]))
    (folder / f"{task}.yaml").write_text(
        f"include: {TASKS_DIR / task}.yaml\ntask: local_{task}\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{{split}: {data}}}}}\n"
    )
    return f"local_{task}"


def read_run(folder: Path, task: str = "*") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of the run in a folder, and the samples of its task, or of the one that is named."""
    (results,), (samples,) = folder.rglob("results_*.json"), folder.rglob(f"samples_{task}_2*.jsonl")
    return json.loads(results.read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


def loglikelihoods(prompts: Sequence[str]) -> list[Instance]:
    pairs = [(prompt, " the answer") for prompt in prompts]
    return [Instance("loglikelihood", {}, pair, 0, metadata=("task", i, 1)) for i, pair in enumerate(pairs)]


def generations(prompts: Sequence[str], **gen_kwargs: Any) -> list[Instance]:
    gen_kwargs = {"until": ["Problem:"], "max_gen_toks": 12, "do_sample": False, "cutoff_token": 5} | gen_kwargs
    return [
        Instance("generate_until", {}, (prompt, dict(gen_kwargs)), 0, metadata=("task", i, 1))
        for i, prompt in enumerate(prompts)
    ]


def start_vllm(model: Path, *, eager: bool = True, **arguments: Any) -> "VLLMSAE":
    """A small engine, in float32 by default. Skips the test if it is to be spread over more GPUs than there are."""
    from vllm.platforms import current_platform

    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    needed = math.prod(arguments.get(name, 1) for name in sizes)
    if current_platform.is_cuda_alike() and needed > (gpus := current_platform.device_count()):
        pytest.skip(f"needs {needed} GPUs; there {'is' if gpus == 1 else 'are'} {gpus}")
    from lm_eval_sae.engines.vllm_model import VLLMSAE

    small = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 8, "kv_cache_memory_bytes": 2**27}
    return VLLMSAE(str(model), enforce_eager=eager, **(small | arguments))


def full_sae_change(sae: SAE, values: Mapping[int, float]) -> Callable[[Tensor], Tensor]:
    """The residual stream as the whole SAE rebuilds it with some features at given values, plus the SAE's error."""

    def change(x: Tensor) -> Tensor:
        acts = sae.encode(x)
        error = x - sae.decode(acts)
        acts = acts.clone()
        for feature, value in values.items():
            acts[..., feature] = value
        return sae.decode(acts) + error

    return change


def start_hf(model: Path) -> HFSAE:
    return HFSAE(str(model), dtype="float32", device="cpu", batch_size=4)


def steering_of(folder: Path, name: str, entries: Sequence[dict[str, Any]], *, strength: float = 2.0) -> Steering:
    """An intervention as a file of several describes it."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"sae_strength": strength, "features": list(entries)}))
    steering = read_steering({"sae_intervention_path": str(file)})
    assert steering is not None
    return steering


def interventions(first: Path, second: Path, folder: Path, *, strength: float = 2.0) -> dict[str, Steering | None]:
    """Of two SAEs at different layers: one feature, another, every other mode, several at once, nothing."""

    def entry(sae: Path, index: int, maximum: float, **more: Any) -> dict[str, Any]:
        return {"sae_path": str(sae), "sae_feature_idx": index, "sae_max_activation": maximum, **more}

    kinds = {
        "set": [entry(first, 3, 4.0)],
        "set another": [entry(first, 41, 6.0)],
        "clamp": [entry(first, 3, 5.0, sae_mode="clamp")],
        "add": [entry(second, 9, 3.0, sae_mode="add")],
        "published": [entry(first, 3, 4.0, sae_mode="published")],
        "published clamps": [entry(first, i, 4.0, sae_mode="published_clamp") for i in (3, 9)],
        "several": [entry(first, 3, 4.0), entry(first, 9, 2.0, sae_mode="add"), entry(second, 5, 3.0)],
    }
    read = {name: steering_of(folder, name, entries, strength=strength) for name, entries in kinds.items()}
    return {"set": read["set"], **read, "nothing": None}


def assert_agree(vllm: "VLLMSAE", hf: HFSAE, steering: Steering | None, *, long: bool = True) -> list[float]:
    """Both give the same log-likelihoods to 1e-3 and the same greedy completions; returns the former."""
    vllm.set_intervention(steering)
    hf.set_intervention(steering)
    ours = [value for value, _ in vllm.loglikelihood(loglikelihoods(PROMPTS), disable_tqdm=True)]
    theirs = [value for value, _ in hf.loglikelihood(loglikelihoods(PROMPTS), disable_tqdm=True)]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3

    prompts = LONG_PROMPTS if long else PROMPTS
    for a, b in zip(
        vllm.generate_until(generations(prompts), disable_tqdm=True),
        hf.generate_until(generations(prompts), disable_tqdm=True),
        strict=True,
    ):
        for attribute in ("completion_tokens", "reasoning_tokens", "truncated"):
            assert getattr(a, attribute) == getattr(b, attribute)
        assert a.rstrip("\ufffd") == b.rstrip("\ufffd")  # vLLM leaves out a character whose bytes are not complete
    return ours


def generate_mixed(
    model: "VLLMSAE", prompts: Sequence[str], steerings: Mapping[str, Steering | None], **params: Any
) -> dict[str, list[Any]]:
    """vLLM's outputs for each prompt under every intervention, greedy, in one batch in which neighbours differ.

    Fails where the positions that an engine counted for an intervention are not exactly those that it went through.
    """
    from vllm import SamplingParams

    from lm_eval_sae.engines.vllm_engine import positions_of
    from lm_eval_sae.engines.vllm_model import steered

    greedy = SamplingParams(**{"temperature": 0, "max_tokens": MIXED_TOKENS, **params})
    ids = model.tok_encode(list(prompts))
    keys = {name: intervention_key(request_arguments(steering)) for name, steering in steerings.items()}
    before = steered_positions(model, list(keys.values()))
    outputs = model.engine.generate(
        [one for one in ids for _ in steerings],
        [steered(greedy, steering) for _ in ids for steering in steerings.values()],
        progress=False,
    )
    of_name = {name: outputs[i :: len(steerings)] for i, name in enumerate(steerings)}
    after = steered_positions(model, list(keys.values()))
    for name, key in keys.items():
        if key:
            assert after[key] - before[key] == sum(map(positions_of, of_name[name])), name
    return of_name


def steered_positions(model: "VLLMSAE", keys: Sequence[str]) -> dict[str, int]:
    """`Engine.steered_positions`, of all replicas together."""
    from lm_eval_sae.engines.vllm_engine import Replicas

    if not isinstance(model.engine, Replicas):
        return model.engine.steered_positions(keys)
    counts = model.engine._ray.get([actor.steered_positions.remote(keys) for actor in model.engine.actors])
    return {key: sum(count[key] for count in counts) for key in keys}


def comparable(text: str) -> str:
    """Without what only one back end shows: special tokens, and a character at the end whose bytes are not complete."""
    return re.sub("<｜[^｜]*｜>", "", text).rstrip("\ufffd")


def alone(
    model: "VLLMSAE | HFSAE", prompts: Sequence[str], steerings: Mapping[str, Steering | None]
) -> dict[str, list[str]]:
    """The greedy completions under every intervention, one intervention after another."""
    texts = {}
    for name, steering in steerings.items():
        model.set_intervention(steering)
        completions = model.generate_until(generations(prompts, max_gen_toks=MIXED_TOKENS), disable_tqdm=True)
        texts[name] = [comparable(text) for text in completions]
    return texts


def assert_mixed_batch_equals(
    model: "VLLMSAE", expected: Mapping[str, list[str]], steerings: Mapping[str, Steering | None]
) -> None:
    """One batch of MIXED_PROMPTS under every intervention has the texts of `alone`."""
    mixed = generate_mixed(model, MIXED_PROMPTS, steerings)
    found = {name: [comparable(output.outputs[0].text) for output in outputs] for name, outputs in mixed.items()}
    assert found == expected and len(set(map(tuple, expected.values()))) == len(steerings)


def assert_all_differ(values: Sequence[Sequence[float]]) -> None:
    """Log-likelihoods under several interventions are apart from one another by more than engines disagree."""
    for i, one in enumerate(values):
        for other in values[:i]:
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.01


class Scripted(LM):
    """A stock back end that gives texts, plain strings, in the order of the requests."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__()
        self.texts = texts

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        assert len(requests) == len(self.texts)
        return list(self.texts)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


def count_starts(model: type[LM], monkeypatch: pytest.MonkeyPatch) -> list[LM]:
    """A list that every model of a class joins as it is made from here on."""
    made: list[LM] = []
    original = model.__init__

    def count(self: LM, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(model, "__init__", count)
    return made
