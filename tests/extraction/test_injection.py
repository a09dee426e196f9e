"""Tokens are put where each strategy says, controls go to the same places, and the numbers mean what they should."""

import itertools
import math

import numpy as np
import pytest
from falsification.injection import LENGTH, STRATEGIES, TIMES, Injected, added_tokens, can_inject, inject, replaced
from falsification.statistics import NOT_DEFINED, Estimate, holm, p_more_than_control, recovered_share
from falsification.tokens import Controls, FeatureTokens, Text, find_ngrams, mean_by_ngram, tokens_of_feature
from falsification.verdict import decide

COMMA = 999
TOP = ((10,), (11,), (12,), (13,))
FEATURE = FeatureTokens(
    top=TOP,
    bigrams=((20, 10), (21, 11)),
    trigrams=((30, 20, 10),),
    before={10: (20, 22), 11: (21,), 12: (), 13: (23,)},
    after={10: (40,), 11: (41,), 12: (42,), 13: ()},
    controls=Controls(
        {token: 500 + token for token in (*range(10, 14), *range(20, 24), 30, *range(40, 43))}, silent=True
    ),
)
TEXTS = np.arange(100, 164).reshape(4, 16)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_keeps_the_text_and_adds_its_n_grams(strategy: str) -> None:
    allowed = {
        "inject_bigram": set(FEATURE.bigrams),
        "inject_trigram": set(FEATURE.trigrams),
        "bigram_before": {(20, 10), (22, 10), (21, 11), (12, 12), (23, 13)},
        "trigram": {(20, 10, 40), (22, 10, 40), (21, 11, 41), (12, 12, 42), (23, 13, 13)},
    }.get(strategy, set(TOP))
    n = LENGTH[strategy]
    injected, controls = inject(TEXTS, FEATURE, strategy, first=1, comma=COMMA, seed=(0,))
    for text, with_tokens, with_controls in zip(TEXTS, injected, controls, strict=True):
        assert len(with_tokens.ids) == len(with_controls.ids) == len(text) + added_tokens(strategy)
        kept, put_in = with_tokens.ids[~with_tokens.there], with_tokens.ids[with_tokens.there]
        if strategy == "replace":
            assert np.array_equal(kept, text[~with_tokens.there])
        else:
            assert np.array_equal(kept, text)
        assert with_tokens.ids[0] == text[0]  # the first position does not move
        grams = [tuple(gram) for gram in put_in[put_in != COMMA].reshape(-1, n).tolist()]
        assert len(grams) == TIMES[n] and set(grams) <= allowed
        assert (put_in == COMMA).sum() == (TIMES[1] - 1 if strategy == "comma_list" else 0)
        # The control has other tokens at the same places.
        assert np.array_equal(with_controls.there, with_tokens.there)
        expected = [token if token == COMMA else 500 + token for token in put_in.tolist()]
        assert with_controls.ids[with_controls.there].tolist() == expected
        assert np.array_equal(with_controls.ids[~with_controls.there], kept)


def test_draws_differ_between_texts_and_not_between_runs() -> None:
    first, again = (inject(TEXTS, FEATURE, "intersperse", first=0, comma=COMMA, seed=(7, 1))[0] for _ in range(2))
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))
    assert len({tuple(np.flatnonzero(text.there)) for text in first}) > 1
    other = inject(TEXTS, FEATURE, "intersperse", first=0, comma=COMMA, seed=(7, 2))[0]
    assert any(not np.array_equal(a.ids, b.ids) for a, b in zip(first, other, strict=True))


def test_what_has_no_tokens_or_no_controls_is_not_injected() -> None:
    without = FeatureTokens((), (), (), {}, {}, Controls({}, silent=True))
    assert not any(can_inject(without, name) for name in STRATEGIES)
    no_bigrams = FeatureTokens(TOP, (), (), FEATURE.before, FEATURE.after, FEATURE.controls)
    assert [name for name in STRATEGIES if not can_inject(no_bigrams, name)] == ["inject_bigram", "inject_trigram"]


def test_removal_replaces_top_tokens_and_nothing_else() -> None:
    texts = np.array([[1, 10, 2, 11], [1, 2, 3, 20]])
    changed = replaced(texts, FEATURE)
    assert [text.ids.tolist() for text in changed] == [[1, 510, 2, 511], [1, 2, 3, 20]]
    assert [text.there.tolist() for text in changed] == [[False, True, False, True], [False] * 4]
    assert isinstance(changed[0], Injected)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_grams_are_those_of_a_loop(n: int) -> None:
    random = np.random.default_rng(n)
    ids, counted = random.integers(0, 4, (6, 9)), random.random((6, 9)) < 0.9
    activations = random.random((6, 9))
    found: dict[tuple[int, ...], list[float]] = {}
    for row, end in itertools.product(range(6), range(n - 1, 9)):
        if counted[row, end - n + 1 : end + 1].all():
            found.setdefault(tuple(ids[row, end - n + 1 : end + 1].tolist()), []).append(activations[row, end])
    ngrams = find_ngrams(Text(ids, counted), n)
    means = mean_by_ngram(ngrams, activations)
    by_gram = {tuple(g): (c, m) for g, c, m in zip(ngrams.grams.tolist(), ngrams.counts, means, strict=True)}
    assert by_gram == {gram: (len(values), pytest.approx(np.mean(values))) for gram, values in found.items()}


def test_controls_are_silent_and_as_frequent() -> None:
    random = np.random.default_rng(0)
    ids = np.minimum(random.geometric(0.05, (40, 64)), 80)
    activations = np.where(ids == 3, 2.0, np.where(ids == 9, 1.0, 0.0))
    text = Text(ids, np.ones_like(ids, dtype=bool))
    ngrams = [find_ngrams(text, n) for n in (1, 2, 3)]
    tokens = tokens_of_feature(text, Text(ids[:20], text.counted[:20]), ngrams, activations)
    assert tokens.top == ((3,), (9,)) and tokens.controls.silent
    count = dict(zip(ngrams[0].grams[:, 0].tolist(), ngrams[0].counts.tolist(), strict=True))
    assert len(set(tokens.controls.of_token.values())) == len(tokens.controls.of_token)
    for token, control in tokens.controls.of_token.items():
        assert control not in tokens.controls.of_token and not activations[ids == control].any()
        assert 1 / 3 < count[control] / count[token] < 3
    before = [ids[row, column - 1] for row, column in np.argwhere(ids[:20] == 3) if column > 0]
    assert tokens.before[3][0] == max(sorted(set(before)), key=before.count)


def test_the_recovered_share_is_the_one_that_was_planted() -> None:
    random = np.random.default_rng(1)
    ordinary, noise = random.random(300), random.normal(0, 0.1, 300)
    control, injected = ordinary + noise, ordinary + noise + 1.5
    reasoning = 3 + random.random(250)
    share = recovered_share(injected, control, ordinary, reasoning, 0)
    assert share.value == pytest.approx(1.5 / (reasoning.mean() - ordinary.mean()))
    assert share.low < share.value < share.high and share.high - share.low < 0.05
    nothing = recovered_share(injected, control, ordinary, ordinary[:250], 0)
    assert all(math.isnan(number) for number in nothing)
    assert p_more_than_control(injected, control) < 1e-10
    assert p_more_than_control(control, control) == 1 and p_more_than_control(control, injected) > 0.99


def test_intervals_of_the_recovered_share_hold_the_true_value() -> None:
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        ordinary, reasoning = random.exponential(1, 40), 2 + random.exponential(1, 40)
        injected = ordinary + 1 + random.normal(0, 0.5, 40)
        share = recovered_share(injected, ordinary, ordinary, reasoning, seed)
        held += share.low <= 0.5 <= share.high
    assert 180 <= held <= 198


def test_holm_is_that_of_its_definition() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    assert holm(p).tolist() == pytest.approx([0.03, math.nan, 0.06, 0.06, 0.02], nan_ok=True)


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1)


@pytest.mark.parametrize(
    ("recovered", "p", "r2", "auroc", "verdict"),
    [
        (0.9, 0.001, 0.1, 0.5, ("token", "replace")),
        (0.9, 0.001, 0.1, 0.9, ("mixed", "replace")),
        (0.9, 0.2, 0.1, 0.9, ("unclear", "")),
        (0.1, 1.0, 0.1, 0.9, ("context", "replace")),
        (0.1, 1.0, 0.8, 0.5, ("token", "R² of the token")),
        (0.45, 0.001, 0.1, 0.9, ("unclear", "")),  # its interval reaches over the threshold
        (math.nan, 0.001, 0.1, 0.9, ("unclear", "")),
        (math.nan, 0.001, 0.8, 0.9, ("mixed", "R² of the token")),
    ],
)
def test_the_verdict_follows_from_the_numbers(
    recovered: float, p: float, r2: float, auroc: float, verdict: tuple[str, str]
) -> None:
    rho = NOT_DEFINED if math.isnan(recovered) else estimate(recovered)
    both = {n: estimate(r2) for n in (1, 2)}
    assert decide({"replace": rho}, {"replace": p}, both, {n: estimate(auroc) for n in (1, 2)}) == verdict


def test_of_several_strategies_the_one_with_the_shortest_n_grams_decides() -> None:
    recovered = {"trigram": estimate(0.99), "inject_bigram": estimate(0.9), "prepend": estimate(0.6)}
    p, low = dict.fromkeys(recovered, 0.001), {n: estimate(0.1) for n in (1, 2)}
    assert decide(recovered, p, low, {1: estimate(0.5), 2: estimate(0.9)}) == ("token", "prepend")
    del recovered["prepend"]
    assert decide(recovered, p, low, {1: estimate(0.5), 2: estimate(0.9)}) == ("mixed", "inject_bigram")
