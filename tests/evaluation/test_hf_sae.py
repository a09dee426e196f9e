"""The steered back end: batches, counts, log-likelihoods, and nothing changed where nothing was asked for."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engines import PROMPTS, full_sae_change, generations, loglikelihoods
from lm_eval.models.huggingface import HFLM
from sae_lens import SAE
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_sae.engines.hf_model import HFSAE
from lm_eval_sae.grading.completion import Completion, measure_completion


@pytest.fixture(scope="module")
def sae(make_sae: Callable[..., Path]) -> Path:
    return make_sae("standard")


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> HFSAE:
    return load(tiny_llama, None)


@pytest.fixture(scope="module")
def greedy(tiny_llama: Path) -> list[list[int]]:
    """The new tokens that transformers itself generates for each of PROMPTS, alone."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    rows = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        rows.append(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs.input_ids.shape[1] :])
    return [row.tolist() for row in rows]


def load(model: Path, sae: Path | None, *, batch_size: int = 4) -> HFSAE:
    steering = {} if sae is None else {
        "sae_path": str(sae), "sae_feature_idx": 40, "sae_strength": 2.0, "sae_max_activation": 6.0
    }  # fmt: skip
    return HFSAE(str(model), dtype="float32", device="cpu", batch_size=batch_size, **steering)


def test_without_sae_arguments_it_is_stock_lm_eval(tiny_llama: Path, plain: HFSAE) -> None:
    stock = HFLM(str(tiny_llama), dtype="float32", device="cpu", batch_size=4)
    plain_requests = generations(PROMPTS)
    for request in plain_requests:
        request.args[1].pop("cutoff_token")  # which stock lm-eval hands to transformers, which refuses it
    assert plain.generate_until(generations(PROMPTS), disable_tqdm=True) == stock.generate_until(plain_requests)
    assert plain.loglikelihood(loglikelihoods(PROMPTS)) == stock.loglikelihood(loglikelihoods(PROMPTS))
    assert plain.steered_positions == 0 and plain.get_model_info()["sae"] is None


def test_a_padded_batch_generates_what_single_prompts_do(tiny_llama: Path, sae: Path, plain: HFSAE) -> None:
    batched, single = load(tiny_llama, sae), load(tiny_llama, sae, batch_size=1)
    together = batched.generate_until(generations(PROMPTS), disable_tqdm=True)
    alone = single.generate_until(generations(PROMPTS), disable_tqdm=True)
    assert together == alone
    assert [c.completion_tokens for c in together] == [c.completion_tokens for c in alone]
    assert together != plain.generate_until(generations(PROMPTS), disable_tqdm=True)

    # One at a time, every position but a completion's last token is steered, and nothing else.
    prompt_tokens = sum(len(single.tok_encode(prompt)) for prompt in PROMPTS)
    assert single.steered_positions == prompt_tokens + sum(c.completion_tokens - 1 for c in alone)
    # In a batch, left padding is not counted; rows that have ended wait for the others.
    waiting = batched.steered_positions - single.steered_positions
    assert 0 <= waiting <= sum(12 - c.completion_tokens for c in alone)


def test_completion_tokens_are_those_transformers_generated(plain: HFSAE, greedy: list[list[int]]) -> None:
    completions = plain.generate_until(generations(PROMPTS), disable_tqdm=True)
    for completion, new in zip(completions, greedy, strict=True):
        assert isinstance(completion, Completion)
        assert completion.completion_tokens == len(new)
        assert completion.truncated == (len(new) == 12 and new[-1] != plain.tokenizer.eos_token_id)


def test_loglikelihood_is_steered_at_the_prompt_too(tiny_llama: Path, sae: Path) -> None:
    full = SAE.load_from_disk(sae)
    full.fold_W_dec_norm()
    change = full_sae_change(full, {40: 12.0})
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model.model.layers[1].register_forward_hook(lambda _layer, _inputs, output: change(output))
    lm = load(tiny_llama, sae)
    got = lm.loglikelihood(loglikelihoods(PROMPTS))
    for (value, _), request in zip(got, loglikelihoods(PROMPTS), strict=True):
        context, continuation = (lm.tok_encode(text) for text in request.args)
        ids = torch.tensor([context + continuation])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0, len(context) - 1 : -1]
        expected = logprobs.gather(1, ids[0, len(context) :, None]).sum().item()
        assert value == pytest.approx(expected, abs=1e-3)


def test_a_missed_position_fails_the_run(tiny_llama: Path, sae: Path) -> None:
    lm = load(tiny_llama, sae)
    lm.model.model.layers[1]._forward_hooks.clear()
    with pytest.raises(RuntimeError, match="only 0 of"):
        lm.generate_until(generations(PROMPTS[:1]), disable_tqdm=True)


def test_a_qwen3_thinks_unless_it_is_told_not_to(tiny_qwen3: Path) -> None:
    asked = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    for arguments, expected in (({}, asked), ({"enable_thinking": False}, f"{asked}<think>\n\n</think>\n\n")):
        model = HFSAE(str(tiny_qwen3), dtype="float32", device="cpu", **arguments)
        assert model.apply_chat_template([{"role": "user", "content": "Why?"}]) == expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([10, 11, 1, 0, 0], (3, False)),  # ended by eos (1), then padded
        ([10, 11, 12, 13, 14], (5, True)),  # the limit
        ([10, 20, 21, 14, 15], (3, False)),  # "st" + "op", then run on with the batch
        ([10, 11, 12], (3, False)),  # ended early with the whole batch
    ],
)
def test_lengths_of_a_batch_row(tokens: list[int], expected: tuple[int, bool]) -> None:
    words = {20: "st", 21: "op"}

    def decode(ids: list[int]) -> str:
        return "".join(words.get(i, f" {i}") for i in ids)

    assert measure_completion(tokens, eos_ids={1}, stop=["stop", ""], max_tokens=5, decode=decode) == expected


def test_reasoning_tokens_are_those_before_the_first_cutoff(plain: HFSAE, greedy: list[list[int]]) -> None:
    for cutoff in {row[5] for row in greedy}:
        completions = plain.generate_until(generations(PROMPTS, cutoff_token=cutoff), disable_tqdm=True)
        expected = [row.index(cutoff) if cutoff in row else len(row) for row in greedy]
        assert [completion.reasoning_tokens for completion in completions] == expected

    without = generations(PROMPTS)
    for request in without:
        request.args[1].pop("cutoff_token")
    uncut = plain.generate_until(without, disable_tqdm=True)
    assert uncut == completions and all(completion.reasoning_tokens is None for completion in uncut)


def test_a_cutoff_that_is_no_token_of_the_model_is_said_once(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(tiny_llama, None)
    for cutoff in (128014, 128014, 5):
        model.generate_until(generations(PROMPTS[:1], cutoff_token=cutoff), disable_tqdm=True)
    assert [record.getMessage() for record in caplog.records if "cutoff_token" in record.getMessage()] == [
        "cutoff_token 128014 is no token of the model, which has 327: whole completions count as reasoning"
    ]


def test_a_completion_keeps_what_it_knows_when_it_is_pickled() -> None:
    copy = pickle.loads(pickle.dumps(Completion("text", 7, True, 3, False)))
    assert copy == "text"
    assert (copy.completion_tokens, copy.truncated, copy.reasoning_tokens, copy.judged) == (7, True, 3, False)
