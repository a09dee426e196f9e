"""Features of an SAE, set by hand, for which it is known what they fire on, and a matched control for each.

A planted feature fires where enough of some axes of the residual stream are there, for instance RIGHT in THIS and LEFT
in PREVIOUS. As with real features the size varies a little, here with the tokens so far (a direction in WAVE).

Its control fires as often in rows that begin with THINK, as often in the others, and as strongly, but no token tells
when: it is a threshold on a direction in WAVE, lower after THINK. A token does next to nothing to it where it stands,
raises it at some distances and lowers it at others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from reasonscore.sae import encoder_of
from torch import Tensor

from planted.model import (
    D_MODEL,
    HOOK_NAME,
    LEFT_AXIS,
    LONE_AXIS,
    ON_AXIS,
    PREVIOUS,
    RIGHT_AXIS,
    START,
    STOP_AXIS,
    THINK_AXIS,
    THIRD,
    THIS,
    THREE_AXES,
    WAVE,
    WORDS,
    embeddings,
    save_checkpoint,
)
from planted.texts import BOS, ORDINARY, REASONING, THINK, Vocabulary, draw_rows, draw_vocabulary
from transformer_lens_r1 import load_model, residual_stream

if TYPE_CHECKING:
    from sae_lens import SAE

IN_WAVE = slice(WAVE + WORDS.start, WAVE + WORDS.stop)


class Planted(NamedTuple):
    """What a feature fires on: at least `needed` of the axes."""

    name: str
    verdict: str
    """What the test must say of it."""
    axes: tuple[int, ...]
    needed: int = 1


FEATURES = (
    Planted("one token", "token", (THIS + LONE_AXIS,)),
    Planted("any of three tokens", "token", tuple(THIS + axis for axis in THREE_AXES)),
    Planted("a token, only after another", "token", (THIS + RIGHT_AXIS, PREVIOUS + LEFT_AXIS), 2),
    Planted("third token of a sentence", "context", (THIRD + STOP_AXIS,)),
    Planted("row that begins with the marker", "context", (START + THINK_AXIS,)),
)
IGNORED = (BOS, THINK)


class Repetition(NamedTuple):
    """All that one seed decides: texts, model and SAE."""

    vocabulary: Vocabulary
    table: np.ndarray
    """The embeddings, [N_IDS, D_MODEL]."""
    reasoning: Tensor
    """int64 [rows, context]"""
    ordinary: Tensor
    """likewise"""
    sae: SAE
    """Features in the order of FEATURES, then their controls."""
    encode: Callable[[Tensor], Tensor]
    """ids [rows, pos] to activations [rows, pos, features], 0 at ignored ids"""


def draw_repetition(seed: int, *, n_rows: int = 100, context: int = 64) -> Repetition:
    """Texts, model and SAE of a seed.

    Args:
        seed: decides everything.
        n_rows: rows of each text.
        context: tokens in a row.
    """
    random = np.random.default_rng(seed)
    vocabulary = draw_vocabulary(random)
    table = embeddings(vocabulary, random)
    reasoning, ordinary = (
        torch.from_numpy(draw_rows(kind, vocabulary, n_rows, context, random)) for kind in (REASONING, ORDINARY)
    )
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(table, Path(folder))
        model = load_model(folder)
    residual = residual_stream(model, torch.cat([reasoning, ordinary]), HOOK_NAME).numpy()[:, 1:]
    sae = _sae(*_encoder(residual, random))
    columns = encoder_of(sae, list(range(sae.cfg.d_sae)))
    ignored = torch.tensor(IGNORED)

    def encode(ids: Tensor) -> Tensor:
        return columns(residual_stream(model, ids, HOOK_NAME)).masked_fill(torch.isin(ids, ignored)[..., None], 0)

    return Repetition(vocabulary, table, reasoning, ordinary, sae, encode)


def _encoder(residual: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """W_enc [D_MODEL, features] and b_enc; controls are matched on these residual streams [rows, pos, D_MODEL]."""
    n = len(FEATURES)
    weights, bias = np.zeros((D_MODEL, 2 * n)), np.zeros(2 * n)
    directions = random.standard_normal((WORDS.stop - WORDS.start, 2 * n))
    weights[IN_WAVE] = directions / np.linalg.norm(directions, axis=0)
    for feature, planted in enumerate(FEATURES):
        weights[list(planted.axes), feature] = 1 / ON_AXIS
        bias[feature] = 0.5 - planted.needed
        activations = np.maximum(residual @ weights[:, feature] + bias[feature], 0)
        _match_control(weights[:, n + feature], bias[n + feature :], residual, activations)
    return weights, bias


def _match_control(weights: np.ndarray, bias: np.ndarray, residual: np.ndarray, activations: np.ndarray) -> None:
    """Make a direction in WAVE fire as `activations` does: set the weight of the marker, the bias and the size."""
    marked = residual[:, 0, START + THINK_AXIS] > 0
    wave = residual @ weights  # [rows, pos]
    thresholds = [np.quantile(wave[rows], 1 - (activations[rows] > 0).mean()) for rows in (marked, ~marked)]
    weights[START + THINK_AXIS] = (thresholds[1] - thresholds[0]) / ON_AXIS
    bias[0] = -thresholds[1]
    fires = np.maximum(residual @ weights + bias[0], 0)
    size = activations.sum() / fires.sum()
    weights *= size
    bias[0] *= size


def _sae(weights: np.ndarray, bias: np.ndarray) -> SAE:
    """A standard SAE of this encoder; its decoder, which the test does not read, has the encoder's directions."""
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class("standard")
    sae = sae_class(config_class(d_in=D_MODEL, d_sae=len(bias), dtype="float32", device="cpu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(weights))
        sae.b_enc.copy_(torch.from_numpy(bias))
        sae.W_dec.copy_(sae.W_enc.T / sae.W_enc.norm(dim=0)[:, None])
        sae.b_dec.zero_()
    return sae.eval().requires_grad_(False)
