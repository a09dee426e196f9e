"""A Qwen2 of one layer whose weights are set by hand. Its residual stream has five parts:

    THIS      the token itself
    PREVIOUS  the token before it
    THIRD     the token three before it (the row's first token where there is none)
    START     the row's first token
    WAVE      a sum over the tokens before it, whose weights go up and down with the distance: nearly 0 at the token
              itself, then −, then +, and so on

An embedding lies in THIS and has norm 1: an axis of its own for what features are planted on, and a random direction in
WORDS. One attention head each fills PREVIOUS, THIRD and START, two of opposite sign fill WAVE. Queries come from biases
alone, and so do keys, but for the row's first token, which the embedding marks: by the rotation of positions (RoPE)
what a head attends to is then a function of the distance. RMSNorm changes nothing, because all embeddings have norm 1,
and the MLP adds 0.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from planted.texts import BOS, N_IDS, THINK, Vocabulary

WIDTH = 32
"""Of each part of the residual stream, and of each head."""
THIS, PREVIOUS, THIRD, START, WAVE = (WIDTH * part for part in range(5))
"""Where each part begins."""
D_MODEL = 5 * WIDTH
HOOK_NAME = "blocks.0.hook_resid_post"

FIRST_AXIS, BOS_AXIS, THINK_AXIS, STOP_AXIS, LONE_AXIS = range(5)
THREE_AXES, LEFT_AXIS, RIGHT_AXIS = (5, 6, 7), 8, 9
WORDS = slice(10, WIDTH)
"""Axes within a part."""
ON_AXIS = 0.5**0.5
"""Component of a planted token's embedding on its axis; as much lies in WORDS, of a row's first token on FIRST_AXIS."""

ROPE_BASE = 10_000.0
FREQUENCIES = ROPE_BASE ** (-2 * np.arange(WIDTH // 2) / WIDTH)
WAVE_FREQUENCY = 2
"""Which of FREQUENCIES: a period of 20 tokens."""
WAVE_HEIGHT = 2.0
"""Logits of WAVE's heads go from minus this to this, as the sine of the distance does."""
WAVE_SINK = 3.6
"""Logit of the row's first token there: as heavy as 16 tokens, so that the first few do not decide alone."""
SHARP = 40.0
"""Logits for each frequency by which PREVIOUS and THIRD find their distance: 40 × 0.6 between best and next."""


def embeddings(vocabulary: Vocabulary, random: np.random.Generator) -> np.ndarray:
    """float32 [N_IDS, D_MODEL]"""
    table = np.zeros((N_IDS, D_MODEL))
    words = random.standard_normal((N_IDS, WORDS.stop - WORDS.start))
    table[:, WORDS] = words / np.linalg.norm(words, axis=1, keepdims=True)
    tokens = (vocabulary.stop, vocabulary.lone, *vocabulary.three, vocabulary.left, vocabulary.right)
    for token, axis in zip(tokens, (STOP_AXIS, LONE_AXIS, *THREE_AXES, LEFT_AXIS, RIGHT_AXIS), strict=True):
        table[token] *= ON_AXIS
        table[token, axis] = ON_AXIS
    for token, axis in ((BOS, BOS_AXIS), (THINK, THINK_AXIS)):
        table[token] = 0
        table[token, [FIRST_AXIS, axis]] = ON_AXIS
    return table.astype(np.float32)


def save_checkpoint(table: np.ndarray, folder: Path) -> None:
    """Save the model with these embeddings, and a tokenizer of N_IDS words, which nobody reads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=N_IDS, hidden_size=D_MODEL, intermediate_size=1, num_hidden_layers=1, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=1024, rms_norm_eps=1e-12, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE}, bos_token_id=BOS, eos_token_id=BOS,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        layer = model.model.layers[0]
        model.model.embed_tokens.weight.copy_(torch.from_numpy(table))
        layer.input_layernorm.weight.fill_(D_MODEL**-0.5)  # what RMSNorm divides an embedding by
        _set_attention(layer.self_attn)
    model.save_pretrained(folder)
    words = {"<bos>": BOS, "<think>": THINK} | {f"word{token}": token for token in range(2, N_IDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<bos>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>", unk_token="<bos>", pad_token="word2"
    ).save_pretrained(folder)


def _set_attention(attention: torch.nn.Module) -> None:
    """The five heads. Dimensions f and f + WIDTH/2 of query and key turn by FREQUENCIES[f] at each position."""
    half = WIDTH // 2
    slow = half - 1  # turns so little in a text that the distance does not matter
    unit = WIDTH**0.5  # a query of this length against a key of length 1 is a logit of 1
    for head in range(5):
        attention.v_proj.weight[WIDTH * head :, THIS:][:WIDTH, :WIDTH].fill_diagonal_(1)
        # A key's component by which the row's first token is found.
        attention.k_proj.weight[WIDTH * head + slow, THIS + FIRST_AXIS] = 1 / ON_AXIS
    for head, distance in ((0, 1), (1, 3)):
        query, key = _biases(attention, head)
        for f in range(half // 2):
            angle = FREQUENCIES[f] * distance
            key[f] = 1
            query[f], query[f + half] = SHARP * unit * math.cos(angle), -SHARP * unit * math.sin(angle)
    _biases(attention, 2)[0][slow] = SHARP * unit
    for head, sign in ((3, 1), (4, -1)):
        query, key = _biases(attention, head)
        key[WAVE_FREQUENCY] = 1
        attention.k_proj.weight[WIDTH * head + WAVE_FREQUENCY, THIS + FIRST_AXIS] = -1 / ON_AXIS  # 0 of the first token
        # A quarter turn ahead of the key: the logit is the sine of the distance, not its cosine.
        query[WAVE_FREQUENCY + half], query[slow] = sign * WAVE_HEIGHT * unit, WAVE_SINK * unit
    for head, (part, sign) in enumerate(((PREVIOUS, 1), (THIRD, 1), (START, 1), (WAVE, 1), (WAVE, -1))):
        attention.o_proj.weight[part:, WIDTH * head :][:WIDTH, :WIDTH].fill_diagonal_(sign)


def _biases(attention: torch.nn.Module, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    at = slice(WIDTH * head, WIDTH * (head + 1))
    return attention.q_proj.bias[at], attention.k_proj.bias[at]


def residual_by_definition(row: list[int], table: np.ndarray) -> np.ndarray:
    """What the residual stream must hold at each position, float64 [pos, D_MODEL], by a loop over tokens."""
    vectors = table[row, :WIDTH].astype(np.float64)
    residual = np.zeros((len(row), D_MODEL))
    for t in range(len(row)):
        logits = -np.sin(FREQUENCIES[WAVE_FREQUENCY] * (t - np.arange(t + 1))) * WAVE_HEIGHT
        crest, trough = np.exp(logits), np.exp(-logits)
        crest[0] = trough[0] = math.exp(WAVE_SINK * math.cos(FREQUENCIES[-1] * t))
        wave = (crest / crest.sum() - trough / trough.sum()) @ vectors[: t + 1]
        parts = [vectors[t], vectors[max(t - 1, 0)], vectors[max(t - 3, 0)], vectors[0], wave]
        residual[t] = np.concatenate(parts)
    return residual
