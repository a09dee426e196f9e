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
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from falsification.injection import can_inject
from falsification.material import ALL, CONTROL, SUM_UNTOUCHED, TOKENS, UNTOUCHED, Experiment, PerText, Settings
from falsification.measure import Encode, measure_changed, measure_unchanged, observe
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
from falsification.tokens import FeatureTokens
from falsification.verdict import decide


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
    largest: float
    """The largest activation on both texts."""
    verdict: str
    by: str
    notes: tuple[str, ...] = field(default=())
    """What could not be computed, in words."""


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
    activations = experiment.activations(feature).astype(np.float64)
    ordinary = measured.ordinary[feature].astype(np.float64)
    reasoning = measured.reasoning[feature].astype(np.float64)  # [texts, length]
    tried = {name: injected[s] for s, name in enumerate(settings.strategies) if can_inject(tokens, name)}

    def recovered(positions: int) -> dict[str, Estimate]:
        return {
            name: recovered_share(
                values[TOKENS, positions], values[CONTROL, positions], ordinary, reasoning.max(axis=1), settings.seed
            )
            for name, values in tried.items()
        }

    p_adjusted = {name: float(adjusted[settings.strategies.index(name)]) for name in tried}
    r2 = explained_by_tokens(activations, experiment.both.counted, *experiment.ngrams[:2], settings.seed)
    is_reasoning = np.arange(len(activations)) < len(experiment.reasoning.ids)
    auroc = {
        n: same_token_in_two_texts(activations, is_reasoning, experiment.ngrams[n - 1], chosen, settings.seed)
        for n, chosen in ((1, tokens.top), (2, tokens.bigrams))
    }
    enough = recovered(ALL)
    verdict, by = decide(enough, p_adjusted, r2, auroc)
    on_tokens, stays = _needed(experiment, measured, reasoning, feature)
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
        largest=float(activations.max()),
        verdict=verdict,
        by=by,
        notes=tuple(_notes(experiment, feature, enough, auroc, stays, ordinary, reasoning, activations)),
    )


def _needed(experiment: Experiment, measured: PerText, reasoning: np.ndarray, feature: int) -> tuple[float, Estimate]:
    """The share of a feature's activation that lies on its top tokens, and what stays elsewhere without them."""
    tokens, total = experiment.tokens[feature], reasoning.sum()
    at_tokens = np.isin(experiment.reasoning_texts, [token for (token,) in tokens.top])
    elsewhere = np.where(at_tokens, 0, reasoning).sum(axis=1)
    after = measured.changed[feature, experiment.removal, TOKENS, SUM_UNTOUCHED, : len(reasoning)].astype(np.float64)
    return (
        float(1 - elsewhere.sum() / total) if total > 0 else math.nan,
        ratio_over_texts(after, elsewhere, experiment.settings.seed) if tokens.can_be_replaced else NOT_DEFINED,
    )


def _notes(
    experiment: Experiment,
    feature: int,
    recovered: dict[str, Estimate],
    auroc: dict[int, Estimate],
    stays: Estimate,
    ordinary: np.ndarray,
    reasoning: np.ndarray,
    activations: np.ndarray,
) -> Iterator[str]:
    """What could not be computed for a feature, and why."""
    tokens = experiment.tokens[feature]
    if not activations.any():
        yield "never active on either text"
        return
    if not activations[len(experiment.reasoning.ids) :].any():
        yield "never active on the ordinary text"
    if not tokens.top:
        yield "no token on which it is active was seen often enough: nothing was injected"
    elif not tokens.controls.of_token:
        yield "too few other tokens for controls: nothing was injected"
    elif not tokens.controls.silent:
        yield "too few tokens on which it is silent: controls are its quieter ones"
    left_out = [name for name in experiment.settings.strategies if name not in recovered]
    if recovered and left_out:
        yield f"no n-grams seen often enough for {', '.join(left_out)}"
    if recovered and all(math.isnan(rho.value) for rho in recovered.values()):
        yield (
            "recovered share not defined: reasoning texts are not clearly more active than ordinary ones "
            f"({reasoning.max(axis=1).mean():.3g} and {ordinary.mean():.3g})"
        )
    for n, what in ((1, "token"), (2, "bigram")):
        if math.isnan(auroc[n].value):
            yield f"AUROC of {what}s not defined: no top {what} was seen often enough in both texts"
    if not reasoning.any():
        yield "never active on the reasoning texts that tokens were taken out of"
    elif math.isnan(stays.value):
        yield "nothing stays to be compared: on the reasoning texts it is active on its top tokens alone"


def run_experiment(encode: Encode, reasoning: Tensor, ordinary: Tensor, settings: Settings) -> list[Finding]:
    """The whole test, on texts that fit into memory.

    Args:
        encode: of the tested features alone.
        reasoning: ids int64 [rows, context].
        ordinary: likewise.
        settings: how the test is made.
    """
    experiment = Experiment(observe(encode, reasoning, settings), observe(encode, ordinary, settings), settings)
    measured = measure_unchanged(experiment, encode)
    for _ in measure_changed(experiment, encode, measured, experiment.units()):
        pass
    return findings(experiment, measured)
