"""The procedure of Ma et al. 2026, and two of our own quantities, against plain loops written from the definition."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from falsification.experiment import Experiment, Finding, observe, run_experiment
from falsification.injection import STRATEGIES
from falsification.statistics import explained_by_tokens, ma_et_al, same_token_in_two_texts
from falsification.tokens import Text, find_ngrams
from scipy.stats import ttest_ind

CLASSES = [("token-driven", 0.8, 0.01), ("partially", 0.5, 0.01), ("weakly", 0.2, 0.05)]
SEED = 1


class Small(NamedTuple):
    """An experiment on 40 texts each, and what it found."""

    encode: Callable[[torch.Tensor], torch.Tensor]
    experiment: Experiment
    findings: list[Finding]
    ignored: tuple[int, ...]


@pytest.fixture(scope="module")
def small(load_script_for_module: Callable[[str], ModuleType]) -> Small:
    planted = load_script_for_module("benchmarks/planted_features.py")
    repetition = planted.draw_repetition(SEED, n_rows=40)
    settings = planted.settings(repetition, SEED)
    texts = repetition.reasoning, repetition.ordinary
    experiment = Experiment(*(observe(repetition.encode, text, settings) for text in texts), settings)
    findings = run_experiment(repetition.encode, *texts, settings)
    return Small(repetition.encode, experiment, findings, settings.ignored_ids)


def top_ngrams(small: Small, feature: int, n: int) -> list[tuple[int, ...]]:
    """The 10 of the highest mean activation at their last token, seen at least 5 times in both texts together."""
    found = defaultdict(list)
    for text in (small.experiment.reasoning, small.experiment.ordinary):
        for row, activations in zip(text.ids.tolist(), text.of(feature).tolist(), strict=True):
            for end in range(n, len(row) + 1):
                gram = tuple(row[end - n : end])
                if not set(gram) & set(small.ignored):
                    found[gram].append(activations[end - 1])
    means = {gram: sum(values) / len(values) for gram, values in found.items() if len(values) >= 5}
    return sorted((gram for gram in means if means[gram] > 0), key=lambda gram: (-means[gram], gram))[:10]


def maxima(small: Small, texts: Sequence[np.ndarray], feature: int) -> list[float]:
    """The maximal activation in each text, from a pass over that text alone."""
    found = []
    for ids in texts:
        activations = small.encode(torch.from_numpy(ids)[None])[0, :, feature].tolist()
        found.append(max(a for token, a in zip(ids.tolist(), activations, strict=True) if token not in small.ignored))
    return found


def cohens_d(before: list[float], after: list[float]) -> float:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def variance(values: list[float]) -> float:
        return sum((value - mean(values)) ** 2 for value in values) / len(values)

    spread = math.sqrt((variance(before) + variance(after)) / 2)
    return (mean(after) - mean(before)) / spread if spread > 0 else 0.0


def class_of(d: float, p: float) -> str:
    return next((name for name, least, level in CLASSES if d >= least and p < level), "context-dependent")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_top_tokens_bigrams_and_trigrams_are_those_of_a_loop_over_positions(small: Small, n: int) -> None:
    for feature, tokens in enumerate(small.experiment.tokens):
        found = list((tokens.top, tokens.bigrams, tokens.trigrams)[n - 1])
        assert sorted(found) == sorted(top_ngrams(small, feature, n))
    assert any(small.experiment.tokens[feature].bigrams for feature in range(len(small.findings)))


def test_what_is_injected_are_three_tokens_two_bigrams_or_one_trigram_of_the_feature(small: Small) -> None:
    pieces = {"inject_bigram": 2, "bigram_before": 2, "inject_trigram": 3, "trigram": 3}
    texts = small.experiment.ordinary_texts
    tried = [unit for unit in small.experiment.units() if unit.strategy < len(STRATEGIES)]
    assert {STRATEGIES[unit.strategy] for unit in tried} == set(STRATEGIES)
    for unit in tried:
        strategy, tokens = STRATEGIES[unit.strategy], small.experiment.tokens[unit.feature]
        top = [token for (token,) in tokens.top]
        for before, after in zip(texts, small.experiment.variants(unit)[0], strict=True):
            put_in = after.ids[after.there].tolist()
            kept = after.ids[~after.there].tolist()
            if strategy == "replace":
                assert kept == before[~after.there].tolist() and len(after.ids) == len(before)
            else:
                assert kept == before.tolist()
            if strategy == "comma_list":
                assert put_in[1::2] == [small.experiment.settings.comma] * 2
                put_in = put_in[::2]
            n = pieces.get(strategy, 1)
            assert len(put_in) == {1: 3, 2: 4, 3: 3}[n]
            if strategy in ("prepend", "intersperse", "replace", "comma_list"):
                assert set(put_in) <= set(top)
            elif strategy in ("bigram_before", "trigram"):
                assert set(put_in[1::n]) <= set(top)
            # Where one n-gram was put into the other, what is there is no longer one after the other.
            elif strategy == "inject_trigram":
                assert tuple(put_in) in tokens.trigrams
            else:
                assert set(put_in) <= {token for gram in tokens.bigrams for token in gram}


def test_class_d_and_p_equal_a_plain_loop_on_the_same_injected_texts(small: Small) -> None:
    ordinary_texts = list(small.experiment.ordinary_texts)
    classes = set()
    for feature, finding in enumerate(small.findings):
        ordinary = maxima(small, ordinary_texts, feature)
        injected = {
            STRATEGIES[unit.strategy]: maxima(small, [text.ids for text in small.experiment.variants(unit)[0]], feature)
            for unit in small.experiment.units()
            if unit.feature == feature and unit.strategy < len(STRATEGIES)
        }
        effects = {strategy: cohens_d(ordinary, values) for strategy, values in injected.items()}
        best = max(effects, key=lambda strategy: effects[strategy])
        p = float(ttest_ind(injected[best], ordinary).pvalue) if effects[best] else 1.0
        assert finding.ma is not None
        assert finding.ma.d == pytest.approx(effects[best], rel=1e-4, abs=1e-6)
        # Two strategies may be equally good up to rounding: then it is the p of the one that was taken.
        assert effects[finding.ma.strategy] == pytest.approx(effects[best], rel=1e-4, abs=1e-6)
        if finding.ma.strategy == best:
            assert finding.ma.p == pytest.approx(p, rel=1e-3)
        assert finding.ma.kind == class_of(effects[best], p)
        classes.add(finding.ma.kind)
    assert {"token-driven", "context-dependent"} <= classes


def test_every_class_follows_from_d_and_p_alone() -> None:
    random = np.random.default_rng(0)
    classes = set()
    for shift in np.linspace(-0.2, 1.2, 200):
        n = int(random.choice([20, 100, 500]))
        ordinary = random.standard_normal(n)
        injected = {name: random.standard_normal(n) + shift * part for name, part in (("prepend", 1), ("replace", 0.5))}
        effects = {name: cohens_d(ordinary.tolist(), values.tolist()) for name, values in injected.items()}
        best = max(effects, key=lambda name: effects[name])
        p = float(ttest_ind(injected[best], ordinary).pvalue)
        found = ma_et_al(ordinary, injected)
        assert (found.kind, found.strategy) == (class_of(effects[best], p), best)
        assert (found.d, found.p) == pytest.approx((effects[best], p), rel=1e-9)
        classes.add(found.kind)
    assert classes == {"context-dependent", *(name for name, _, _ in CLASSES)}


@pytest.fixture(scope="module")
def random_text() -> tuple[Text, np.ndarray]:
    """Rows of 30 tokens of Zipf's kind, one in twenty ignored, and activations that follow token and pair in part."""
    random = np.random.default_rng(3)
    ids = random.choice(25, size=(41, 30), p=(p := 1 / np.arange(1, 26)) / p.sum())
    counted = random.random(ids.shape) > 0.05
    pairs = random.random((25, 25))[np.roll(ids, 1, axis=1), ids]
    noise = random.random(ids.shape).round(1)  # ties
    activations = np.maximum(random.random(25)[ids] + pairs + noise - 1, 0) * counted
    return Text(ids, counted), activations


def test_r2_equals_a_plain_loop_over_halves_and_positions(random_text: tuple[Text, np.ndarray]) -> None:
    (ids, counted), activations = random_text
    places = [(row, pos) for row in range(len(ids)) for pos in range(ids.shape[1]) if counted[row, pos]]

    def pair_at(row: int, pos: int) -> tuple[int, int] | None:
        return (ids[row, pos - 1], ids[row, pos]) if pos and counted[row, pos - 1] else None

    squares = {"token": 0.0, "pair": 0.0, "none": 0.0}
    for half in (0, 1):
        by_token, by_pair = defaultdict(list), defaultdict(list)
        fitted = [activations[place] for place in places if place[0] % 2 != half]
        for row, pos in places:
            if row % 2 != half:
                by_token[ids[row, pos]].append(activations[row, pos])
                if (pair := pair_at(row, pos)) is not None:
                    by_pair[pair].append(activations[row, pos])
        overall = sum(fitted) / len(fitted)
        for row, pos in places:
            if row % 2 == half:
                of_token, of_pair = by_token[ids[row, pos]], by_pair.get(pair_at(row, pos), [])
                token = sum(of_token) / len(of_token) if len(of_token) >= 5 else overall
                pair = sum(of_pair) / len(of_pair) if len(of_pair) >= 5 else token
                for name, estimate in (("token", token), ("pair", pair), ("none", overall)):
                    squares[name] += (activations[row, pos] - estimate) ** 2
    text = Text(ids, counted)
    found = explained_by_tokens(activations, counted, find_ngrams(text, 1), find_ngrams(text, 2), 0)
    for n, name in ((1, "token"), (2, "pair")):
        assert found[n].value == pytest.approx(1 - squares[name] / squares["none"], rel=1e-9)
        assert found[n].low < found[n].value < found[n].high
    assert 0.05 < found[1].value < found[2].value


@pytest.mark.parametrize("n", [1, 2])
def test_auroc_equals_a_plain_loop_over_pairs_of_occurrences(random_text: tuple[Text, np.ndarray], n: int) -> None:
    text, activations = random_text
    is_reasoning = np.arange(len(text.ids)) < 17
    activations = activations + 0.2 * is_reasoning[:, None] * text.counted
    ngrams = find_ngrams(text, n)
    chosen = [tuple(gram) for gram in ngrams.grams[ngrams.counts >= 5].tolist()]
    weighted, occurrences, left_out = 0.0, 0, 0
    for gram in chosen:
        sides: tuple[list[float], list[float]] = ([], [])
        for row in range(len(text.ids)):
            for end in range(n, text.ids.shape[1] + 1):
                inside = slice(end - n, end)
                if text.counted[row, inside].all() and tuple(text.ids[row, inside]) == gram:
                    sides[0 if is_reasoning[row] else 1].append(activations[row, end - 1])
        if min(map(len, sides)) < 5:
            left_out += 1
            continue
        wins = sum((r > o) + 0.5 * (r == o) for r in sides[0] for o in sides[1])
        count = len(sides[0]) + len(sides[1])
        weighted += count * wins / (len(sides[0]) * len(sides[1]))
        occurrences += count
    found = same_token_in_two_texts(activations, is_reasoning, ngrams, chosen, 0)
    assert found.value == pytest.approx(weighted / occurrences, rel=1e-9)
    assert 0.55 < found.low < found.value < found.high
    assert left_out or n == 1
