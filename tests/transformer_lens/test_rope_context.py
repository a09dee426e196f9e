"""Rotary frequencies of Llama 3.1 for another original context, as the published code has them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from transformer_lens_r1 import UserError, load_config, load_model, residual_stream
from transformer_lens_r1.loading import PUBLISHED_ROPE_CONTEXT, check_rope_context

MakeCheckpoint = Callable[[str], Path]


def llama_3_frequencies(theta: float, head_dim: int, context: int) -> list[float]:
    """Llama 3.1's rule with its factors 8, 1 and 4.

    A frequency that turns more than four times in the original context stays, one that turns less than once is divided
    by 8, and between them the factor is interpolated by the number of turns.
    """
    frequencies = []
    for pair in range(head_dim // 2):
        frequency = theta ** (-2 * pair / head_dim)
        turns = context * frequency / (2 * math.pi)
        kept = min(1, max(0, (turns - 1) / (4 - 1)))
        frequencies.append(kept * frequency + (1 - kept) * frequency / 8)
    return frequencies


def test_the_frequencies_follow_the_rule_for_the_context_asked_for(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("llama 3.1")  # theta 500,000, heads of 32, trained on 2,048
    found = {}
    for context in (None, 16_384, 64):
        model = load_model(folder, n_layers=1, rope_original_context=context)
        found[context] = model.original_model.model.rotary_emb.inv_freq.double()
        expected = torch.tensor(llama_3_frequencies(500_000, 32, context or 2048), dtype=torch.float64)
        torch.testing.assert_close(found[context], expected, rtol=1e-6, atol=0)
    assert (found[None] / found[16_384]).max() < 1 + 1e-6  # a longer context keeps more of a frequency
    assert (found[None] / found[16_384]).min() < 0.6


def test_the_residual_stream_is_that_of_transformers_with_the_same_change(make_checkpoint: MakeCheckpoint) -> None:
    folder, tokens = make_checkpoint("llama 3.1"), torch.randint(0, 327, (2, 300))
    name = "blocks.0.hook_resid_post"
    residual = residual_stream(load_model(folder, n_layers=1, rope_original_context=64), tokens, name)
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {**config.rope_parameters, "original_max_position_embeddings": 64}
    changed = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    with torch.no_grad():
        expected = changed(tokens, output_hidden_states=True).hidden_states[1]
    scale = expected.abs().max()
    assert (residual - expected).abs().max() <= 1e-5 * scale
    assert (residual_stream(load_model(folder, n_layers=1), tokens, name) - expected).abs().max() > 1e-2 * scale


@pytest.mark.parametrize("kind", ["llama", "qwen2, theta 1e4"])
def test_a_model_without_llama_3s_scaling_has_no_context_to_replace(make_checkpoint: MakeCheckpoint, kind: str) -> None:
    folder = make_checkpoint(kind)
    with pytest.raises(UserError, match=r"rope_original_context 16384: .* is 'default', and only Llama 3's") as caught:
        load_model(folder, rope_original_context=16_384)
    assert "\n" not in str(caught.value)
    config = load_config(folder)
    assert check_rope_context(folder, config, None) is None
    # what --as_published sets is left out, what the user sets beside it is not
    assert check_rope_context(folder, config, PUBLISHED_ROPE_CONTEXT, as_published=True) is None
    with pytest.raises(UserError, match="rope_original_context 4096"):
        check_rope_context(folder, config, 4096, as_published=True)
