"""Steering in the code that vLLM runs on GPUs, on its CPU build: the second model runner and the piecewise graph.

Each engine is in a process of its own, as the scripts in `gpu_paths/` replace parts of vLLM.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import full_sae_change, steering_of
from sae_lens import SAE
from transformers import AutoModelForCausalLM

from lm_eval_sae.steering.intervention import BUFFERS
from lm_eval_sae.steering.requests import request_arguments

pytestmark = pytest.mark.needs_vllm

SCRIPTS = Path(__file__).resolve().parent / "gpu_paths"
LAYER, FEATURE = 2, 17  # of the fixture's SAE; the feature is active at most positions
# How and to what the feature is set; None leaves it alone. More than requests run at once.
STEPS = [None, ("set", 2.0), ("set", -2.0), ("set", 0.0), ("published", 2.0)]
REQUESTS = [
    {"prompt": list(range(5, 42)), "params": {"temperature": 0, "max_tokens": 6}},
    {"prompt": list(range(50, 61)), "params": {"temperature": 1, "seed": 7, "max_tokens": 9}},
    {"prompt": list(range(50, 140)), "params": {"temperature": 0, "max_tokens": 4, "prompt_logprobs": 1}},
]
# Three of them fill the key-value cache, and none finishes in the block that it has then.
LONG_REQUEST = {"prompt": list(range(5, 125)), "params": {"temperature": 0, "max_tokens": 16}}
# Each with its step: neighbours differ.
BATCHES = [
    [(request, step) for request in REQUESTS for step in STEPS],
    [(LONG_REQUEST, step) for step in STEPS[:3]],
]
TOLERANCE = 2e-4  # of a sum of log-probabilities; the worst that was seen is 3e-5, of the 89 of a prompt


@pytest.fixture(scope="module", autouse=True)
def cpu_build() -> None:
    """On a GPU these paths are what all other tests of vLLM run."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("replaces parts of vLLM's CPU build; another build is installed here")


@pytest.fixture(scope="module")
def job(tiny_llama: Path, legacy_sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BATCHES as `gpu_paths/steered_job.py` reads them."""
    folder = tmp_path_factory.mktemp("job")

    def steered(request: dict[str, Any], step: tuple[str, float] | None) -> dict[str, Any]:
        if step is None:
            return request
        entry = {"sae_path": str(legacy_sae), "sae_feature_idx": FEATURE, "sae_max_activation": 1.0}
        steering = steering_of(folder, "one", [{**entry, "sae_mode": step[0], "sae_strength": step[1]}])
        return {**request, "params": {**request["params"], "extra_args": request_arguments(steering)}}

    batches = [[steered(*one) for one in batch] for batch in BATCHES]
    file = folder / "job.json"
    file.write_text(json.dumps({"model": str(tiny_llama), "layer": LAYER, "batches": batches}))
    return file


@pytest.fixture(scope="module")
def expected(tiny_llama: Path, legacy_sae: Path) -> "Reference":
    return Reference(tiny_llama, legacy_sae)


class Reference:
    """transformers, with the whole SAE in the layer's output: x' = decode(f with f_i = v) + (x − decode(f)).

    As published it is the MLP's output that it is in, and its weights are as they are stored.
    """

    def __init__(self, model: Path, sae: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.step: tuple[str, float] | None = None
        layer = self.model.model.layers[LAYER]
        for mode, module in (("set", layer), ("published", layer.mlp)):
            of_mode = SAE.load_from_disk(sae)
            if mode == "set":
                of_mode.fold_W_dec_norm()
            module.register_forward_hook(partial(self._steer, mode, of_mode))

    def _steer(self, mode: str, sae: SAE, _module: torch.nn.Module, _inputs: Any, x: torch.Tensor) -> torch.Tensor:
        if self.step is None or self.step[0] != mode:
            return x
        return full_sae_change(sae, {FEATURE: self.step[1]})(x)

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], step: tuple[str, float] | None) -> torch.Tensor:
        """Of every token of the vocabulary at every position but the last: [positions − 1, vocabulary]."""
        self.step = step
        return self.model(torch.tensor([list(ids)])).logits[0, :-1].log_softmax(-1)


def run(script: str, job: Path, folder: Path) -> dict[str, Any]:
    """What a script of `gpu_paths/` found; vLLM keeps what it compiles in `folder`."""
    result = folder / "result.json"
    environment = {
        **os.environ, "VLLM_CACHE_ROOT": str(folder / "vllm"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, str(SCRIPTS / script), str(job), str(result)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return json.loads(result.read_text())


def assert_steered(batches: Sequence[dict[str, Any]], expected: Reference) -> None:
    """Each request is the reference's under its own step, and every position that it needed was steered once."""
    mixed, crowded = batches
    assert mixed["preempted"] == 0 and mixed["steered"] == mixed["needed"] and len(mixed["steered"]) == len(STEPS)
    # What was preempted is computed again.
    assert crowded["preempted"] > 0
    assert all(crowded["steered"][key] >= needed for key, needed in crowded["needed"].items())
    logprobs: dict[tuple[int, Any], float] = {}
    for requests, batch in zip(BATCHES, batches, strict=True):
        for (request, step), found in zip(requests, batch["outputs"], strict=True):
            prompt, tokens = request["prompt"], torch.tensor(found["tokens"])
            reference = expected.logprobs([*prompt, *found["tokens"]], step)
            generated = reference[len(prompt) - 1 :]
            if request["params"]["temperature"] == 0:
                assert torch.equal(generated.argmax(-1), tokens)
            total = generated.gather(1, tokens[:, None]).sum().item()
            assert found["logprob"] == pytest.approx(total, abs=TOLERANCE)
            if request["params"].get("prompt_logprobs"):
                of_prompt = reference[: len(prompt) - 1].gather(1, torch.tensor(prompt[1:])[:, None]).sum().item()
                assert found["prompt_logprob"] == pytest.approx(of_prompt, abs=TOLERANCE)
            logprobs[len(prompt), step] = found["logprob"]
    # The comparison can tell: as small a change as taking away the feature's own activation is far more than it allows.
    of_first = [logprobs[len(REQUESTS[0]["prompt"]), step] for step in STEPS]
    assert min(abs(a - b) for i, a in enumerate(of_first) for b in of_first[:i]) > 20 * TOLERANCE


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton's interpreter; triton is not installed here")
def test_the_second_model_runner_steers(job: Path, expected: Reference, tmp_path: Path) -> None:
    results = run("second_runner.py", job, tmp_path)
    for name, scheduler in (("synchronous", "Scheduler"), ("asynchronous", "AsyncScheduler")):
        result = results[name]
        assert (result["runner"], result["scheduler"]) == ("vllm.v1.worker.cpu.model_runner", scheduler)
        assert_steered(result["batches"], expected)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("piecewise")


@pytest.fixture(scope="module")
def cold(job: Path, cache: Path) -> dict[str, Any]:
    """Of a process that compiles the piecewise graph."""
    return run("piecewise_graph.py", job, cache)


@pytest.fixture(scope="module")
def warm(cold: dict[str, Any], job: Path, cache: Path) -> dict[str, Any]:
    """Of a second process, with the compile cache that the first left."""
    return run("piecewise_graph.py", job, cache)


def test_the_piecewise_graph_has_steering_in_one_of_its_pieces(cold: dict[str, Any]) -> None:
    pieces = cold["pieces"]
    assert [piece["splitting"] for piece in pieces] == [False, True] * 4 + [False]  # split at 4 layers' attention
    # What follows the attention of the steered layer, to that of the next.
    buffers = sorted(["rows", "positions", *BUFFERS])
    assert [place for place, piece in enumerate(pieces) if piece["steering"]] == [2 * LAYER + 2]
    assert pieces[2 * LAYER + 2]["steering"] == buffers


def test_the_piecewise_graph_follows_every_request_without_compiling_again(
    cold: dict[str, Any], expected: Reference
) -> None:
    assert_steered(cold["batches"], expected)
    before, after = cold["compiled"]
    assert before == after and before["num_inductor_compiles"] > 0


def test_a_second_start_takes_the_piecewise_graph_from_the_cache(cold: dict[str, Any], warm: dict[str, Any]) -> None:
    assert warm["batches"] == cold["batches"]
    names = ("num_graphs_seen", "num_inductor_compiles", "num_aot_artifacts_loaded")
    assert [cold["compiled"][1][name] for name in names] == [1, 5, 0]
    assert [warm["compiled"][1][name] for name in names] == [0, 0, 1]
