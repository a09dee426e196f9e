"""The steered vLLM engine (its CPU build) against the steered transformers back end."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engines import (
    MIXED_PROMPTS,
    PLACES,
    PROMPTS,
    alone,
    assert_agree,
    assert_all_differ,
    assert_mixed_batch_equals,
    comparable,
    generate_mixed,
    generations,
    interventions,
    loglikelihoods,
    start_hf,
    start_vllm,
)

from lm_eval_sae.engines import vllm_engine
from lm_eval_sae.engines.hf_model import HFSAE
from lm_eval_sae.engines.kept_completions import FOLDER, Unfinished, kept_in
from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import Steering
from lm_eval_sae.steering.intervention import FeatureIntervention
from lm_eval_sae.steering.requests import intervention_key, request_arguments

if importlib.util.find_spec("vllm"):
    from lm_eval_sae.engines.vllm_model import VLLM, VLLMSAE, SamplingParams, steered, suit_platform

pytestmark = pytest.mark.needs_vllm


@pytest.fixture(scope="module")
def hf(tiny_llama: Path) -> HFSAE:
    return start_hf(tiny_llama)


@pytest.fixture(scope="module")
def eager(tiny_llama: Path) -> Iterator[VLLMSAE]:
    """Its worker can be told to lose its interventions (forgetful_worker.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent), prepend=":")
        patch.setattr(vllm_engine, "WORKER", "forgetful_worker.ForgetfulWorker")
        model = start_vllm(tiny_llama, layers=PLACES, max_num_seqs=2)
    yield model
    model.close()


def test_one_batch_of_every_intervention_has_the_texts_of_one_after_another_and_of_transformers(
    eager: VLLMSAE,
    mild_steerings: dict[str, Steering | None],
    tiny_llama: Path,
    texts_of_transformers: Callable[[Path], Any],
) -> None:
    """Seven interventions share two rows, as two requests run at once."""
    expected = texts_of_transformers(tiny_llama)
    assert_mixed_batch_equals(eager, expected, mild_steerings)
    assert alone(eager, MIXED_PROMPTS, mild_steerings) == expected


def test_eager_engine_equals_transformers(eager: VLLMSAE, hf: HFSAE, steerings: dict[str, Steering | None]) -> None:
    chosen = ("set", "clamp", "several", "nothing", "published", "set")
    values = [assert_agree(eager, hf, steerings[name], long=False) for name in chosen]
    assert values[0] == values[-1]  # back again
    assert_all_differ(values[:-1])


def test_the_prefix_cache_of_an_intervention_is_its_own(
    eager: VLLMSAE, hf: HFSAE, steerings: dict[str, Steering | None]
) -> None:
    """Three rounds of a prompt that no other test has: only what the same intervention left is found again."""
    prompt = "However, wait. " * 40

    def cached(*names: str) -> dict[str, bool]:
        chosen = {name: steerings[name] for name in names}
        outputs = {name: of[0] for name, of in generate_mixed(eager, [prompt], chosen).items()}
        assert {name: [comparable(of.outputs[0].text)] for name, of in outputs.items()} == alone(hf, [prompt], chosen)
        return {name: of.num_cached_tokens > 0 for name, of in outputs.items()}

    assert cached("set") == {"set": False}
    assert cached("set", "set another", "nothing") == {"set": True, "set another": False, "nothing": False}
    assert cached("clamp", "nothing", "set another", "set") == {
        "clamp": False, "nothing": True, "set another": True, "set": True,
    }  # fmt: skip


def test_in_bfloat16_other_requests_change_a_steered_one_no_more_than_a_baseline(
    tiny_llama: Path, mild_steerings: dict[str, Steering | None]
) -> None:
    """Rounding may depend on the batch, for a baseline as well; on most CPUs it does not, and all is equal."""
    model = start_vllm(tiny_llama, layers=PLACES, dtype="bfloat16")

    def ask(prompts: list[str], chosen: dict[str, Steering | None]) -> dict[str, list[list[float]]]:
        """The log-probabilities of each prompt."""
        outputs = generate_mixed(model, prompts, chosen, prompt_logprobs=1)
        return {
            name: [
                [at[token].logprob for token, at in zip(of.prompt_token_ids[1:], of.prompt_logprobs[1:], strict=True)]
                for of in of_name
            ]
            for name, of_name in outputs.items()
        }

    mixed, apart = ask(MIXED_PROMPTS, mild_steerings), {}
    for name, steering in mild_steerings.items():
        single = [ask([prompt], {name: steering})[name][0] for prompt in MIXED_PROMPTS]
        apart[name] = max(abs(a - b) for a, b in zip(sum(mixed[name], []), sum(single, []), strict=True))
    model.close()
    assert max(apart.values()) <= 10 * apart["nothing"] < 1, apart


def test_in_bfloat16_a_layer_is_changed_as_exactly_as_its_output_can_hold(
    steerings: dict[str, Steering | None],
) -> None:
    """Features are read from the sum of the two halves before it is rounded: that is too coarse for a small change."""
    from lm_eval_sae.engines.vllm_worker import SteeredLayer

    features = [feature for feature in steerings["several"].features if feature.layer == 1]
    assert [feature.mode for feature in features] == ["set", "add"]
    intervention = FeatureIntervention(256, 2)
    intervention.load(features)
    generator = torch.Generator().manual_seed(0)
    halves = torch.randn(2, 500, 256, generator=generator) * torch.tensor([0.1, 30.0])[:, None, None]
    mlp_out, residual = halves.bfloat16()
    layer = SteeredLayer(lambda *_: (mlp_out, residual), intervention, torch.zeros(500, dtype=torch.int64))
    steered, kept = layer()
    assert steered.dtype == torch.bfloat16 and kept is residual and layer.positions.tolist() == [500]

    set_, add = (feature.row for feature in features)
    encoder, decoder, direction = (row.double() for row in (set_.encoder, set_.decoder, add.decoder))
    active = ((mlp_out.double() + residual.double()) @ encoder + set_.bias).relu()
    assert 0.2 < (active > 0).double().mean() < 0.8
    change = (features[0].value - active)[:, None] * decoder + features[1].value * direction / direction.norm()
    expected = mlp_out.double() + change
    # Half of the last of bfloat16's 8 bits, and what float32 leaves of sums over the residual stream.
    allowed = expected.abs() * 2**-8 + 1e-4
    assert ((steered.double() - expected).abs() <= allowed).all()
    # The test can tell: read from the rounded sum, the feature's part of the change is another.
    rounded = ((mlp_out + residual).double() @ encoder + set_.bias).relu()
    assert (((rounded - active)[:, None] * decoder).abs() > 4 * allowed).any()


def test_positions_are_counted(eager: VLLMSAE, steerings: dict[str, Steering | None]) -> None:
    eager.set_intervention(steerings["several"])
    assert eager.steered_positions == 0  # not those of the warm-up, nor of what was steered before
    completions = eager.generate_until(generations(PROMPTS), disable_tqdm=True)
    prompt_tokens = sum(len(ids) for ids in eager.tok_encode(PROMPTS))
    # Short prompts fill no block, and without graphs of fixed sizes nothing is padded.
    assert eager.steered_positions == prompt_tokens + sum(c.completion_tokens - 1 for c in completions)
    record = eager.get_model_info()["sae"]
    assert record["steered_positions"] == eager.steered_positions and len(record["features"]) == 3


def test_repeats_differ_and_come_back_with_their_seed(eager: VLLMSAE, steerings: dict[str, Steering | None]) -> None:
    eager.set_intervention(steerings["set"])

    def texts(prompts: list[str], **more: int) -> dict[str, list[str]]:
        requests = [
            request
            for request in generations(prompts, do_sample=True, temperature=1.0, **more)
            for _ in range(4)  # the same object several times, as lm-eval repeats a request
        ]
        completions = eager.generate_until(requests, disable_tqdm=True)
        return {prompt: completions[4 * i :][:4] for i, prompt in enumerate(prompts)}

    first = texts(PROMPTS[:3])
    assert all(len(set(repeats)) == 4 for repeats in first.values())
    assert texts([PROMPTS[2], PROMPTS[0]]) == {prompt: first[prompt] for prompt in (PROMPTS[2], PROMPTS[0])}
    other = texts(PROMPTS[:3], seed=99)
    assert not any(set(other[prompt]) & set(first[prompt]) for prompt in first)


def test_completions_of_an_interrupted_run_are_not_generated_again(
    eager: VLLMSAE, steerings: dict[str, Steering | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "KEEP_EVERY_SECONDS", 0.0)
    written: list[int] = []
    add = Unfinished.add
    monkeypatch.setattr(Unfinished, "add", lambda self, new: (written.append(len(new)), add(self, new))[1])
    asked: list[int] = []
    generate = eager.engine.generate

    def count(prompts: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(len(prompts))
        return generate(prompts, *args, **kwargs)

    monkeypatch.setattr(eager.engine, "generate", count)

    def run(*, cut: bool = False) -> tuple[list[str], list[tuple[Any, ...]], int]:
        eager.set_intervention(steerings["set"])
        requests = generations(PROMPTS[:3], do_sample=True, temperature=1.0) + generations(PROMPTS[:1], max_gen_toks=40)
        with kept_in(str(tmp_path)):
            texts = eager.generate_until(requests, disable_tqdm=True)
            if cut:
                raise KeyboardInterrupt
        return texts, [(t.completion_tokens, t.reasoning_tokens, t.truncated) for t in texts], eager.steered_positions

    with pytest.raises(KeyboardInterrupt):
        run(cut=True)
    assert len([n for n in written if n]) > 1, "they are written while others are still being generated"
    (file,) = (tmp_path / FOLDER).iterdir()
    lines = file.read_text().splitlines()
    assert len(lines) == 4
    file.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    eager.set_intervention(steerings["set another"])
    with kept_in(str(tmp_path)), pytest.raises(KeyboardInterrupt):
        assert eager.generate_until(generations(PROMPTS[:1]), disable_tqdm=True)  # none of these is its own
        raise KeyboardInterrupt
    continued = run()
    whole = run()
    assert asked == [4, 1, 1, 4] and continued[:2] == whole[:2]
    assert not (tmp_path / FOLDER).exists()
    # The prefix cache is no part of a run that starts anew, so that counts can differ by what it held.
    assert continued[2] >= sum(json.loads(line)[1]["positions"] for line in lines[:3]) > 0


def test_an_intervention_that_does_not_fit_the_running_engine(
    eager: VLLMSAE, make_sae: Callable[..., Path], steerings: dict[str, Steering | None], tmp_path: Path
) -> None:
    eager.set_intervention(steerings["set"])
    third = make_sae("standard", hook_name="blocks.3.hook_resid_post")
    elsewhere = interventions(third, third, tmp_path)
    with pytest.raises(UserError, match="1 features at layer 3, where this engine can change 0"):
        eager.set_intervention(elsewhere["set"])
    narrow = make_sae("standard", d_in=128)
    with pytest.raises(UserError, match="d_in 128 but .* has hidden size 256"):
        eager.set_intervention(interventions(narrow, narrow, tmp_path)["set"])
    assert eager.steering == steerings["set"]


def test_without_sae_arguments_it_is_stock_lm_eval(
    eager: VLLMSAE, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same arguments for vLLM, and from the same engine the same answers."""
    from lm_eval.models import vllm_causallms

    made: list[dict[str, Any]] = []
    start = vllm_causallms.LLM
    monkeypatch.setattr(vllm_causallms, "LLM", lambda **arguments: (made.append(arguments), start(**arguments))[1])
    ours = start_vllm(tiny_llama)
    assert ours.get_model_info()["sae"] is None
    monkeypatch.setattr(vllm_causallms, "LLM", lambda **arguments: (made.append(arguments), ours.model)[1])
    of_platform = {"kv_cache_memory_bytes": 2**27}
    suit_platform(of_platform)
    stock = VLLM(
        str(tiny_llama), dtype="float32", max_model_len=1024, max_num_seqs=8, enforce_eager=True, **of_platform
    )
    assert made[0] == made[1] and "worker_cls" not in made[0]

    answers = [model.loglikelihood(loglikelihoods(PROMPTS), disable_tqdm=True) for model in (ours, stock)]
    assert answers[0] == answers[1]
    eager.set_intervention(None)
    for request in loglikelihoods(PROMPTS):
        one, same = (model.loglikelihood([request], disable_tqdm=True) for model in (ours, eager))
        assert one == same, "the baseline of an engine that can steer, to the bit"
    requests = generations(PROMPTS)
    for request in requests:
        del request.args[1]["cutoff_token"]  # which stock lm-eval hands to vLLM, which refuses it
    texts = ours.generate_until(generations(PROMPTS), disable_tqdm=True)
    assert texts == stock.generate_until(requests, disable_tqdm=True)
    ours.close()


def test_speculative_decoding_is_refused_in_words(tiny_llama: Path) -> None:
    with pytest.raises(
        UserError, match="steering does not work with the model argument speculative_config; leave it out"
    ):
        start_vllm(tiny_llama, layers=PLACES, speculative_config={"method": "ngram", "num_speculative_tokens": 2})


def test_a_gpu_of_which_little_is_free_is_enough_for_a_cache_of_a_given_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import CacheConfig
    from vllm.v1.worker.utils import request_memory

    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: False))

    def arguments(**given: Any) -> dict[str, Any]:
        suit_platform(given)
        return given

    sized = arguments(kv_cache_memory_bytes=2**27)
    card = SimpleNamespace(total_memory=80 * 2**30, free_memory=2 * 2**30, device_="cuda:0")  # others have the rest
    assert request_memory(card, CacheConfig(**sized)) <= card.free_memory
    with pytest.raises(ValueError, match="less than desired GPU memory utilization"):
        request_memory(card, CacheConfig(kv_cache_memory_bytes=2**27))
    given = {"kv_cache_memory_bytes": 2**27, "gpu_memory_utilization": 0.5}
    assert arguments(**given) == given and arguments() == {}


@pytest.mark.parametrize("forgotten", ["layer", "intervention"])
def test_what_was_not_steered_fails_and_everything_else_is_kept(
    forgotten: str, eager: VLLMSAE, steerings: dict[str, Steering | None], tmp_path: Path
) -> None:
    chosen = {name: steerings[name] for name in ("set", "nothing", "clamp")}
    key = intervention_key(request_arguments(chosen["set"]))
    lost = {"layer": ["set", "clamp"], "intervention": ["set"]}[forgotten]
    files = {name: Unfinished(tmp_path / name) for name in chosen}
    prompts = eager.tok_encode([f"Because {i} is even" for i in range(3)])
    params = [steered(SamplingParams(temperature=0, max_tokens=4), steering) for steering in chosen.values()] * 3
    arguments = [prompt for prompt in prompts for _ in chosen], params
    keep = [(files[name], str(i)) for i in range(3) for name in chosen]
    needed = sum(map(len, prompts)) + 3 * 3
    eager.model.collective_rpc(f"forget_{forgotten}", args=({"layer": 1, "intervention": key}[forgotten],))
    try:
        with pytest.raises(RuntimeError, match=f"not everything was steered: only 0 of {needed} token pos") as failure:
            eager.engine.generate(*arguments, progress=False, keep=keep)
    finally:
        eager.model.collective_rpc("remember_again")
    assert str(failure.value).count("only 0 of") == len(lost)
    assert {name: len(file.read()) for name, file in files.items()} == {
        name: 0 if name in lost else 3 for name in chosen
    }
    eager.engine.generate(*arguments, progress=False, keep=keep)
    assert all(len(file.read()) == 3 for file in files.values())


def test_the_real_small_model_in_the_engine_equals_transformers(
    smollm2: Path, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    sae = make_sae("standard", d_in=576, hook_name="blocks.19.hook_resid_post")
    steerings = interventions(sae, sae, tmp_path)
    reference = start_hf(smollm2)
    model = start_vllm(smollm2, layers={19: 3})
    values = [assert_agree(model, reference, steerings[name], long=False) for name in ("set", "several", "nothing")]
    model.close()
    assert_all_differ(values)
