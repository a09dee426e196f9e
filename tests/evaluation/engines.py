"""What the tests of both back ends ask of a model, and the comparison of one with the other."""

import json
import math
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

if TYPE_CHECKING:
    from lm_eval_sae.engines.vllm_model import VLLMSAE

PROMPTS = ["What is 2 + 2?", "Wait, let me think about this again. However, 7 times 6", "So", "What is 2 + 2?"]
# Longer than a block of vLLM's prefix cache, and all alike at the start.
LONG_PROMPTS = ["Wait, let me think about this again. " * 24 + end for end in PROMPTS]
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
    """A small engine in float32. Skips the test if it is to be spread over more GPUs than there are."""
    from vllm.platforms import current_platform

    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    needed = math.prod(arguments.get(name, 1) for name in sizes)
    if current_platform.is_cuda_alike() and needed > (gpus := current_platform.device_count()):
        pytest.skip(f"needs {needed} GPUs; there {'is' if gpus == 1 else 'are'} {gpus}")
    from lm_eval_sae.engines.vllm_model import VLLMSAE

    arguments = {"kv_cache_memory_bytes": 2**27} | arguments
    return VLLMSAE(str(model), dtype="float32", max_model_len=1024, max_num_seqs=8, enforce_eager=eager, **arguments)


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


def steering_of(folder: Path, name: str, entries: Sequence[dict[str, Any]]) -> Steering:
    """An intervention as a file of several describes it."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"sae_strength": 2.0, "features": list(entries)}))
    steering = read_steering({"sae_intervention_path": str(file)})
    assert steering is not None
    return steering


def interventions(first: Path, second: Path, folder: Path) -> dict[str, Steering | None]:
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
    read = {name: steering_of(folder, name, entries) for name, entries in kinds.items()}
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
