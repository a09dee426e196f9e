"""Does a feature mean reasoning? The test of Ma et al. 2026 (arXiv 2601.05679), and what it lacks.

Their objection: features found by contrast fire on a few tokens, wherever these stand. For each feature

    how much does the token alone say?      R² of the activation from the current token, and from (previous, current)
    are the tokens enough?                  ρ = (A_injected − A_control) / (A_reasoning − A_ordinary)
    are the tokens needed?                  share of the activation that stays at untouched positions of reasoning text
                                            when each of the feature's tokens is replaced by a control token
    does context matter for one token?      AUROC of the activation at a token in reasoning against ordinary text

A is the mean over texts of the maximal activation, once over all positions and once without the injected ones. A
control is the same strategy at the same places, with tokens of like frequency on which the feature is silent.

Texts are pieces of the rows. Only the tested features' columns of the encoder are computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from falsification.injection import STRATEGIES, Injected, added_tokens, can_inject, inject, replaced
from falsification.statistics import (
    NOT_DEFINED,
    Estimate,
    MaEtAl,
    explained_by_tokens,
    holm,
    ma_et_al,
    p_more_than_control,
    ratio_over_texts,
    recovered_share,
    same_token_in_two_texts,
)
from falsification.tokens import FeatureTokens, NGrams, Text, find_ngrams, tokens_of_feature
from falsification.verdict import decide

REMOVAL = "removal"
TOKENS, CONTROL = 0, 1
"""Which tokens were put in."""
ALL, UNTOUCHED, SUM_UNTOUCHED = 0, 1, 2
"""The maximum over all positions, that without the injected ones, and the sum over the latter."""
Encode = Callable[[Tensor], Tensor]
"""Ids int64 [rows, pos] to the tested features' activations [rows, pos, features]."""


@dataclass(frozen=True)
class Settings:
    """How the test is made."""

    comma: int
    """Id of a comma, for comma_list."""
    ignored_ids: tuple[int, ...] = ()
    """Ids at which activations count nowhere."""
    strategies: tuple[str, ...] = STRATEGIES
    n_texts: int = 500
    """Ordinary texts that tokens are put into, and as many reasoning texts."""
    text_length: int = 64
    """Tokens in a text."""
    seed: int = 42
    tokens_per_pass: int = 16 * 1024
    """Tokens in a forward pass: bounds the memory."""


class Observed(NamedTuple):
    """Rows of text, and the tested features' activations on them."""

    ids: np.ndarray
    """int64 [rows, context]"""
    parts: Sequence[np.ndarray]
    """float32 [features, rows, context] of one part of the rows after the other; 0 at ignored ids. May be mapped from
    files."""

    def of(self, feature: int) -> np.ndarray:
        """The activations of one feature, [rows, context]."""
        return np.concatenate([part[feature] for part in self.parts])


@dataclass
class PerText:
    """What was measured on each text; NaN: not yet, or not possible for the feature."""

    ordinary: np.ndarray
    """[features, texts]: the maximal activation."""
    reasoning: np.ndarray
    """[features, reasoning texts, length]: every activation."""
    changed: np.ndarray
    """[features, strategies + 1, TOKENS or CONTROL, ALL … SUM_UNTOUCHED, texts]; the last strategy is REMOVAL, on the
    reasoning texts."""

    def arrays(self) -> dict[str, np.ndarray]:
        return {"ordinary": self.ordinary, "reasoning": self.reasoning, "changed": self.changed}


@dataclass(frozen=True)
class Finding:
    """All that was found out about one feature."""

    tokens: FeatureTokens
    r2: dict[int, Estimate]
    """From the current token (1) and from (previous, current) (2)."""
    recovered: dict[str, Estimate]
    """ρ by strategy, injected positions included."""
    recovered_untouched: dict[str, Estimate]
    """Likewise without the injected positions."""
    p_adjusted: dict[str, float]
    """Holm's, over all features and strategies of the run."""
    on_tokens: float
    """Share of the activation on the reasoning texts that lies on the feature's top tokens."""
    stays: Estimate
    """Share that stays at untouched positions when the tokens are replaced."""
    auroc: dict[int, Estimate]
    """Of the feature's top tokens (1) and top bigrams (2)."""
    ma: MaEtAl | None
    """Their class; None if nothing could be injected."""
    verdict: str
    by: str
    notes: tuple[str, ...] = field(default=())
    """What could not be computed, in words."""


class Unit(NamedTuple):
    """A feature and what is done to its texts."""

    feature: int
    strategy: int
    """Index among the strategies; behind the last: REMOVAL."""


@dataclass(frozen=True)
class Experiment:
    """The texts and the features' tokens; everything but the model.

    Args:
        reasoning: rows of reasoning text.
        ordinary: rows of ordinary text, of the same context.
        settings: how the test is made.
    """

    reasoning: Observed
    ordinary: Observed
    settings: Settings
    both: Text = field(init=False)
    ngrams: list[NGrams] = field(init=False)
    tokens: list[FeatureTokens] = field(init=False)

    def __post_init__(self) -> None:
        ids = np.concatenate([self.reasoning.ids, self.ordinary.ids])
        both = Text(ids, ~np.isin(ids, self.settings.ignored_ids))
        of_reasoning = Text(*(part[: len(self.reasoning.ids)] for part in both))
        ngrams = [find_ngrams(both, n) for n in (1, 2, 3)]
        tokens = [
            tokens_of_feature(both, of_reasoning, ngrams, self.activations(feature))
            for feature in range(len(self.reasoning.parts[0]))
        ]
        for name, value in {"both": both, "ngrams": ngrams, "tokens": tokens}.items():
            object.__setattr__(self, name, value)

    def activations(self, feature: int) -> np.ndarray:
        """Of one feature on the reasoning rows, then on the ordinary ones: [rows, context]."""
        return np.concatenate([self.reasoning.of(feature), self.ordinary.of(feature)])

    def texts(self, of: Observed) -> np.ndarray:
        """ids [texts, length]: pieces of the rows, the first of all rows before the second ones.

        If rows begin with ids that are ignored (bos), each of a row's pieces does.
        """
        starts_with_bos = int(np.isin(of.ids[:, 0], self.settings.ignored_ids).all())
        size = self.settings.text_length - starts_with_bos
        pieces = [
            np.concatenate([of.ids[:, :starts_with_bos], of.ids[:, start : start + size]], axis=1)
            for start in range(starts_with_bos, of.ids.shape[1] - size + 1, size)
        ]
        return np.concatenate(pieces)[: self.settings.n_texts]

    def units(self) -> list[Unit]:
        """All that is to be done, by length, so that texts of one length can share a pass."""
        strategies = self.settings.strategies
        order = sorted(range(len(strategies)), key=lambda index: added_tokens(strategies[index]))
        features = range(len(self.tokens))
        removals = [
            Unit(f, len(strategies)) for f in features if self.tokens[f].top and self.tokens[f].controls.of_token
        ]
        return removals + [Unit(f, s) for s in order for f in features if can_inject(self.tokens[f], strategies[s])]

    def variants(self, unit: Unit) -> tuple[list[Injected], ...]:
        """The changed texts of a unit: with the feature's tokens and with controls; for REMOVAL, without the tokens."""
        tokens, settings = self.tokens[unit.feature], self.settings
        if unit.strategy == len(settings.strategies):
            return (replaced(self.texts(self.reasoning), tokens),)
        texts = self.texts(self.ordinary)
        bos = bool(np.isin(texts[:, 0], settings.ignored_ids).all())
        strategy = settings.strategies[unit.strategy]
        seed = (settings.seed, unit.feature, STRATEGIES.index(strategy))
        return inject(texts, tokens, strategy, first=int(bos), comma=settings.comma, seed=seed)

    def n_texts(self, unit: Unit) -> int:
        """Texts that `variants` gives for a unit."""
        if unit.strategy == len(self.settings.strategies):
            return len(self.texts(self.reasoning))
        return 2 * len(self.texts(self.ordinary))

    def nothing_yet(self) -> PerText:
        """Arrays to fill."""
        n_features, n_strategies = len(self.tokens), len(self.settings.strategies)
        ordinary, reasoning = self.texts(self.ordinary), self.texts(self.reasoning)
        n_texts = max(len(ordinary), len(reasoning))
        return PerText(
            np.full((n_features, len(ordinary)), np.nan, dtype=np.float32),
            np.full((n_features, *reasoning.shape), np.nan, dtype=np.float32),
            np.full((n_features, n_strategies + 1, 2, 3, n_texts), np.nan, dtype=np.float32),
        )


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
        if strategy == len(experiment.settings.strategies):
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
            found = torch.stack([own.amax(1), untouched.amax(1), untouched.sum(1)], dim=1)
            measured.changed[features, strategies, sides, :, indices] = found.cpu().numpy()
            yield len(batch)


def is_measured(experiment: Experiment, measured: PerText, unit: Unit) -> bool:
    """Whether all of a unit's texts were run."""
    of = experiment.reasoning if unit.strategy == len(experiment.settings.strategies) else experiment.ordinary
    sides = slice(0, experiment.n_texts(unit) // len(experiment.texts(of)))
    values = measured.changed[unit.feature, unit.strategy, sides, :, : len(experiment.texts(of))]
    return not np.isnan(values).any()


def findings(experiment: Experiment, measured: PerText) -> list[Finding]:
    """What the measurements say of each feature."""
    settings = experiment.settings
    n_features, names = len(experiment.tokens), settings.strategies
    n_texts = measured.ordinary.shape[1]
    injected = measured.changed[:, :-1, :, :, :n_texts].astype(np.float64)
    p_values = np.full((n_features, len(names)), np.nan)
    for f, s in itertools.product(range(n_features), range(len(names))):
        if can_inject(experiment.tokens[f], names[s]):
            p_values[f, s] = p_more_than_control(injected[f, s, TOKENS, ALL], injected[f, s, CONTROL, ALL])
    adjusted = holm(p_values.ravel()).reshape(p_values.shape)
    return [_finding(experiment, measured, injected[f], adjusted[f], f) for f in range(n_features)]


def _finding(
    experiment: Experiment, measured: PerText, injected: np.ndarray, adjusted: np.ndarray, feature: int
) -> Finding:
    settings, tokens = experiment.settings, experiment.tokens[feature]
    random = np.random.default_rng([settings.seed, feature])
    activations = experiment.activations(feature).astype(np.float64)
    ordinary = measured.ordinary[feature].astype(np.float64)
    reasoning = measured.reasoning[feature].astype(np.float64)  # [texts, length]
    tried = {name: injected[s] for s, name in enumerate(settings.strategies) if can_inject(tokens, name)}

    def recovered(positions: int) -> dict[str, Estimate]:
        return {
            name: recovered_share(
                values[TOKENS, positions], values[CONTROL, positions], ordinary, reasoning.max(axis=1), random
            )
            for name, values in tried.items()
        }

    p_adjusted = {name: float(adjusted[settings.strategies.index(name)]) for name in tried}
    r2 = explained_by_tokens(activations, experiment.both.counted, *experiment.ngrams[:2], random)
    is_reasoning = np.arange(len(activations)) < len(experiment.reasoning.ids)
    auroc = {
        n: same_token_in_two_texts(activations, is_reasoning, experiment.ngrams[n - 1], chosen, random)
        for n, chosen in ((1, tokens.top), (2, tokens.bigrams))
    }
    enough = recovered(ALL)
    verdict, by = decide(enough, p_adjusted, r2, auroc)
    on_tokens, stays = _needed(experiment, measured, reasoning, feature, random)
    return Finding(
        tokens=tokens,
        r2=r2,
        recovered=enough,
        recovered_untouched=recovered(UNTOUCHED),
        p_adjusted=p_adjusted,
        on_tokens=on_tokens,
        stays=stays,
        auroc=auroc,
        ma=ma_et_al(ordinary, {name: values[TOKENS, ALL] for name, values in tried.items()}) if tried else None,
        verdict=verdict,
        by=by,
        notes=tuple(_notes(experiment, feature, enough, auroc[1], ordinary, reasoning)),
    )


def _needed(
    experiment: Experiment, measured: PerText, reasoning: np.ndarray, feature: int, random: np.random.Generator
) -> tuple[float, Estimate]:
    """The share of a feature's activation that lies on its top tokens, and what stays elsewhere without them."""
    tokens, total = experiment.tokens[feature], reasoning.sum()
    at_tokens = np.isin(experiment.texts(experiment.reasoning), [token for (token,) in tokens.top])
    elsewhere = np.where(at_tokens, 0, reasoning).sum(axis=1)
    after = measured.changed[feature, -1, TOKENS, SUM_UNTOUCHED, : len(reasoning)].astype(np.float64)
    can_remove = tokens.top and tokens.controls.of_token
    return (
        float(1 - elsewhere.sum() / total) if total > 0 else math.nan,
        ratio_over_texts(after, elsewhere, random) if can_remove else NOT_DEFINED,
    )


def _notes(
    experiment: Experiment,
    feature: int,
    recovered: dict[str, Estimate],
    auroc: Estimate,
    ordinary: np.ndarray,
    reasoning: np.ndarray,
) -> Iterator[str]:
    """What could not be computed for a feature, and why."""
    tokens = experiment.tokens[feature]
    if not experiment.activations(feature).any():
        yield "never active on either text"
        return
    if not experiment.ordinary.of(feature).any():
        yield "never active on the ordinary text"
    if not tokens.top:
        yield "no token on which it is active was seen often enough: nothing was injected"
    elif not tokens.controls.of_token:
        yield "too few other tokens for controls: nothing was injected"
        return
    if tokens.top and not tokens.controls.silent:
        yield "active on most tokens: controls are its quieter ones"
    if recovered and all(math.isnan(rho.value) for rho in recovered.values()):
        yield (
            "recovered share not defined: reasoning texts are not clearly more active than ordinary ones "
            f"({reasoning.max(axis=1).mean():.3g} and {ordinary.mean():.3g})"
        )
    if tokens.top and math.isnan(auroc.value):
        yield "AUROC not defined: no top token was seen often enough in both texts"


def run_experiment(encode: Encode, reasoning: Tensor, ordinary: Tensor, settings: Settings) -> list[Finding]:
    """The whole test, on texts that fit into memory.

    Args:
        encode: of the tested features alone.
        reasoning: ids int64 [rows, context].
        ordinary: likewise.
        settings: how the test is made.
    """
    experiment = Experiment(observe(encode, reasoning, settings), observe(encode, ordinary, settings), settings)
    measured = experiment.nothing_yet()
    measure_unchanged(experiment, encode, measured)
    for _ in measure_changed(experiment, encode, measured, experiment.units()):
        pass
    return findings(experiment, measured)


def observe(encode: Encode, ids: Tensor, settings: Settings) -> Observed:
    """The features' activations on rows that fit into memory."""
    ignored = torch.isin(ids, torch.tensor(settings.ignored_ids, dtype=torch.int64))
    batches = ids.split(max(1, settings.tokens_per_pass // ids.shape[1]))
    encoded = torch.cat([encode(batch).float().cpu() for batch in batches])
    encoded.masked_fill_(ignored[..., None], 0)
    return Observed(ids.numpy(), [encoded.permute(2, 0, 1).contiguous().numpy()])
