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


def measure_unchanged(experiment: Experiment, encode: Encode, measured: PerText) -> None:
    """The maximal activation in each ordinary text, and every activation on the reasoning texts, of all features."""
    ignored = torch.tensor(experiment.settings.ignored_ids, dtype=torch.int64)
    for of, store in ((experiment.ordinary, "ordinary"), (experiment.reasoning, "reasoning")):
        texts = torch.from_numpy(experiment.texts(of))
        done = 0
        for batch in texts.split(max(1, experiment.settings.tokens_per_pass // texts.shape[1])):
            encoded = encode(batch).float()
            encoded = encoded.masked_fill(torch.isin(batch, ignored).to(encoded.device)[..., None], 0)
            found = encoded.amax(dim=1).T if store == "ordinary" else encoded.permute(2, 0, 1)
            getattr(measured, store)[:, done : done + len(batch)] = found.cpu().numpy()
            done += len(batch)
    highest, total = measured.reasoning.max(axis=2), measured.reasoning.sum(axis=2)  # of texts that no removal changes
    measured.changed[:, -1, TOKENS, :, : highest.shape[1]] = np.stack([highest, highest, total], axis=1)
    for feature, strategy in experiment.units():
        if strategy == experiment.removal:
            with_tokens = [text.there.any() for text in experiment.variants(Unit(feature, strategy))[0]]
            measured.changed[feature, strategy, TOKENS, :, np.flatnonzero(with_tokens)] = np.nan


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
    of = experiment.reasoning if unit.strategy == experiment.removal else experiment.ordinary
    sides = slice(0, experiment.n_texts(unit) // len(experiment.texts(of)))
    values = measured.changed[unit.feature, unit.strategy, sides, :, : len(experiment.texts(of))]
    return not np.isnan(values).any()
