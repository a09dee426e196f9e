"""Running the texts through the model, and what is kept of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from falsification.injection import Injected
from falsification.material import TOKENS, Experiment, Observed, PerText, Settings, Unit
from transformer_lens_r1.shared.errors import UserError

Encode = Callable[[Tensor], Tensor]
"""Ids int64 [rows, pos] to the tested features' activations [rows, pos, features]."""


def observe(encode: Encode, ids: Tensor, settings: Settings) -> Observed:
    """The features' activations on rows that fit into memory."""
    ignored = torch.isin(ids, torch.tensor(settings.ignored_ids, dtype=torch.int64))
    batches = ids.split(max(1, settings.tokens_per_pass // ids.shape[1]))
    encoded = torch.cat([encode(batch).float().cpu() for batch in batches])
    encoded.masked_fill_(ignored[..., None], 0)
    return Observed(ids.numpy(), [encoded.permute(2, 0, 1).contiguous().numpy()])


def measure_unchanged(experiment: Experiment, encode: Encode) -> PerText:
    """The maximal activation in each ordinary text, and every activation on the reasoning texts, of all features."""

    def activations(texts: np.ndarray) -> np.ndarray:  # [features, texts, length]
        return observe(encode, torch.from_numpy(texts), experiment.settings).parts[0]

    ordinary, reasoning = activations(experiment.ordinary_texts).max(axis=2), activations(experiment.reasoning_texts)
    n_texts = max(ordinary.shape[1], reasoning.shape[1])
    changed = np.full((len(ordinary), experiment.removal + 1, 2, 3, n_texts), np.nan, dtype=np.float32)
    highest, total = reasoning.max(axis=2), reasoning.sum(axis=2)  # of texts that no removal changes
    changed[:, experiment.removal, TOKENS, :, : reasoning.shape[1]] = np.stack([highest, highest, total], axis=1)
    for feature, strategy in experiment.units():
        if strategy == experiment.removal:
            with_tokens = [text.there.any() for text in experiment.variants(Unit(feature, strategy))[0]]
            changed[feature, strategy, TOKENS, :, np.flatnonzero(with_tokens)] = np.nan
    return PerText(ordinary, reasoning, changed)


def measure_changed(experiment: Experiment, encode: Encode, measured: PerText, units: Sequence[Unit]) -> Iterator[int]:
    """Run the changed texts of units, and fill in what was measured.

    Yields:
        How many texts were measured, after each forward pass.
    """
    settings = experiment.settings
    ignored = torch.tensor(settings.ignored_ids, dtype=torch.int64)

    def texts() -> Iterator[tuple[int, int, int, int, Injected]]:
        for unit in units:
            for side, variants in enumerate(experiment.variants(unit)):
                for index, injected in enumerate(variants):
                    if not injected.there.any():  # a reasoning text without the feature's tokens stays as it is
                        continue
                    yield unit.feature, unit.strategy, side, index, injected

    for length, same_length in itertools.groupby(texts(), key=lambda text: len(text[-1].ids)):
        while batch := list(itertools.islice(same_length, max(1, settings.tokens_per_pass // length))):
            *places, injected = zip(*batch, strict=True)
            features, strategies, sides, indices = (np.array(place) for place in places)
            ids = torch.from_numpy(np.stack([text.ids for text in injected]))
            there = torch.from_numpy(np.stack([text.there for text in injected]))
            encoded = encode(ids)
            own = encoded[torch.arange(len(ids)), :, torch.from_numpy(features)].float()  # [texts, length]
            own = own.masked_fill(torch.isin(ids, ignored).to(own.device), 0)
            untouched = own.masked_fill(there.to(own.device), 0)
            found = torch.stack([own.amax(1), untouched.amax(1), untouched.sum(1)], dim=1).cpu()
            if not found.isfinite().all():
                raise UserError("some activations are not finite in these number formats: try --dtype float32")
            measured.changed[features, strategies, sides, :, indices] = found.numpy()
            yield len(batch)


def is_measured(experiment: Experiment, measured: PerText, unit: Unit) -> bool:
    """Whether all of a unit's texts were run."""
    sides, texts = 2, experiment.ordinary_texts
    if unit.strategy == experiment.removal:
        sides, texts = 1, experiment.reasoning_texts
    return not np.isnan(measured.changed[unit.feature, unit.strategy, :sides, :, : len(texts)]).any()
