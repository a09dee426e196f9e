"""The report's statistics against scipy, and the coverage of its intervals on planted effects."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import scipy.stats


@pytest.fixture
def statistics(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("evaluation/paired_statistics.py")


@pytest.fixture
def simulation(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("benchmarks/interval_coverage.py")


def test_mean_and_standard_error_equal_scipy(statistics: ModuleType) -> None:
    values = np.random.default_rng(0).integers(2, size=57)
    mean, stderr = statistics.mean_and_stderr(values)
    assert mean == pytest.approx(values.mean()) and stderr == pytest.approx(scipy.stats.sem(values), rel=1e-12)
    assert statistics.mean_and_stderr([1.0]) == (1.0, None)


@pytest.mark.parametrize(("down", "up"), [(0, 0), (0, 5), (0, 6), (3, 9), (11, 11), (40, 12)])
def test_mcnemar_equals_the_binomial_test(down: int, up: int, statistics: ModuleType) -> None:
    plain = np.repeat([1, 1, 0, 0], [20, down, up, 10])
    steered = np.repeat([1, 0, 1, 0], [20, down, up, 10])
    found = statistics.mcnemar_exact(plain, steered)
    assert (found.right_to_wrong, found.wrong_to_right) == (down, up)
    assert found.p_value == pytest.approx(scipy.stats.binomtest(down, down + up).pvalue if down + up else 1)


def test_the_fewest_changed_questions_that_can_reach_five_per_cent(statistics: ModuleType) -> None:
    least = next(n for n in range(1, 20) if scipy.stats.binomtest(n, n).pvalue < 0.05)
    assert least == statistics.MIN_DISCORDANT


def test_holm_equals_its_definition(statistics: ModuleType) -> None:
    p = [0.04, 0.001, 0.3, 0.012]
    # In the order of size: 4 · 0.001, 3 · 0.012, 2 · 0.04, 1 · 0.3, never falling.
    assert statistics.holm(p) == pytest.approx([0.08, 0.004, 0.3, 0.036])
    assert statistics.holm([]) == []


def test_difference_intervals_equal_scipys_paired_bootstrap(statistics: ModuleType) -> None:
    generator = np.random.default_rng(1)
    plain = np.column_stack([generator.integers(2, size=80), generator.gamma(2, 300, 80)])
    steered = np.column_stack([generator.integers(2, size=80), 1.2 * generator.gamma(2, 300, 80)])
    found = statistics.bootstrap_differences(plain, steered, n_resamples=50_000, seed=3)
    for column, estimate in enumerate(found):
        a, b = plain[:, column], steered[:, column]
        assert estimate.value == pytest.approx((b - a).mean())
        expected = scipy.stats.bootstrap(
            (a, b), lambda x, y, axis: (y - x).mean(axis=axis), paired=True, vectorized=True, method="percentile",
            n_resamples=50_000, batch=2000, rng=np.random.default_rng(4),
        ).confidence_interval  # fmt: skip
        # Each end's Monte Carlo error is below 1 % of the width at 50,000 resamples.
        width = expected.high - expected.low
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.02 * width)


def test_relative_change_intervals_equal_scipys_paired_bootstrap(statistics: ModuleType) -> None:
    generator = np.random.default_rng(2)
    tokens = generator.integers(200, 900, size=(2, 80))
    counts = generator.poisson(tokens * [[0.01], [0.016]])
    samples = (counts[0], counts[1], tokens[0], tokens[1])

    def length(_a, _b, t, u, axis):
        return u.sum(axis=axis) / t.sum(axis=axis) - 1

    def rate(a, b, t, u, axis):
        return (b.sum(axis=axis) / u.sum(axis=axis)) / (a.sum(axis=axis) / t.sum(axis=axis)) - 1

    draws = {"n_resamples": 50_000, "seed": 3}
    (found_length,) = statistics.bootstrap_relative_changes(tokens[0][:, None], tokens[1][:, None], **draws)
    (found_rate,) = statistics.bootstrap_relative_changes(
        counts[0][:, None], counts[1][:, None], per=tuple(tokens), **draws
    )
    for estimate, statistic in ((found_length, length), (found_rate, rate)):
        assert estimate.value == pytest.approx(statistic(*samples, axis=0))
        expected = scipy.stats.bootstrap(
            samples, statistic, paired=True, vectorized=True, method="percentile", n_resamples=50_000, batch=2000,
            rng=np.random.default_rng(4),
        ).confidence_interval  # fmt: skip
        width = expected.high - expected.low
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.02 * width)


def test_resamples_are_whole_questions_and_reproducible(statistics: ModuleType) -> None:
    rows = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    means = statistics.resampled_means(rows, n_resamples=2000, seed=0)
    assert np.allclose(means[:, 1], 10 * means[:, 0], rtol=1e-12, atol=0)
    assert means.min() == 1 and means[:, 0].max() == 4
    assert np.array_equal(means, statistics.resampled_means(rows, n_resamples=2000, seed=0))
    assert not np.array_equal(means, statistics.resampled_means(rows, n_resamples=2000, seed=1))
    # Each of the 10 multisets of three questions comes as often as the multinomial distribution says.
    assert (means[:, 0] == 1).mean() == pytest.approx(1 / 27, abs=4 * (1 / 27 / 2000) ** 0.5)


def test_there_is_no_interval_where_questions_are_alike(statistics: ModuleType) -> None:
    same, shorter = np.ones((40, 1)), np.full((40, 1), 0.5)
    for steered in (same, shorter):
        (difference,) = statistics.bootstrap_differences(same, steered, n_resamples=100, seed=0)
        (change,) = statistics.bootstrap_relative_changes(same, steered, n_resamples=100, seed=0)
        assert difference == change == (steered[0, 0] - 1, None, None)
    assert statistics.bootstrap_relative_changes(0 * same, same, n_resamples=100, seed=0) == [None]


def test_few_questions_with_a_rare_word_give_no_interval_however_many_resamples_there_are(
    statistics: ModuleType,
) -> None:
    tokens = (np.full(500, 100.0), np.full(500, 100.0))
    for users in (statistics.MIN_NOT_ZERO - 1, statistics.MIN_NOT_ZERO):
        plain, steered = (np.arange(500) < users)[:, None], (np.arange(500) % 3 == 0)[:, None]
        for n_resamples in (200, 50_000):
            (found,) = statistics.bootstrap_relative_changes(
                plain, steered, n_resamples=n_resamples, seed=0, per=tokens
            )
            assert found.value == pytest.approx(167 / users - 1)
            assert (found.low is not None) == (users == statistics.MIN_NOT_ZERO)
    # Where every question has some, few are enough.
    (found,) = statistics.bootstrap_relative_changes(np.ones((5, 1)), np.arange(5.0)[:, None], n_resamples=200, seed=0)
    assert found.low < found.value < found.high


def test_a_change_that_is_the_same_up_to_rounding_has_no_interval(statistics: ModuleType) -> None:
    plain = np.arange(100.0, 140)[:, None]
    assert statistics.bootstrap_relative_changes(plain, 1.2 * plain, n_resamples=200, seed=0)[0].low is None
    assert statistics.bootstrap_differences(plain / 7, plain / 7 + 0.1, n_resamples=200, seed=0)[0].low is None


@pytest.mark.parametrize("kind", ["one answer", "several answers", "length"])
def test_intervals_hold_the_planted_value_in_95_of_100_cases(kind: str, simulation: ModuleType) -> None:
    n, simulations = 198, 1000
    draw, estimate, truth = {
        "one answer": (lambda g, m: simulation.one_answer(g, m, n=n, down=0.05, up=0.15),
                       simulation.bootstrap_differences, 0.1),
        "several answers": (lambda g, m: simulation.several_answers(g, m, n=n, repeats=8, shift=0.8),
                            simulation._clustered, simulation.true_shift(0.8)),
        "length": (lambda g, m: simulation.lengths(g, m, n=n, factor=1.2), simulation.bootstrap_relative_changes, 0.2),
    }[kind]  # fmt: skip
    given, covered = simulation.coverage(draw, estimate, truth, simulations=simulations, n_resamples=1000, seed=5)
    assert given == 1
    # 95 % is within the binomial spread of the simulation, and 92 % or 98 % are not.
    assert scipy.stats.binomtest(round(covered * simulations), simulations, 0.95).pvalue > 0.001
    if kind == "several answers":
        _, naive = simulation.coverage(
            draw, simulation._unclustered, truth, simulations=simulations, n_resamples=1000, seed=5
        )
        assert naive < 0.92


def test_the_planted_change_of_accuracy_is_the_one_simulated(simulation: ModuleType) -> None:
    plain, steered = simulation.several_answers(np.random.default_rng(0), 1, n=400_000, repeats=2, shift=0.8)
    differences = (steered - plain).mean(axis=(1, 2))
    assert differences.mean() == pytest.approx(simulation.true_shift(0.8), abs=4 * differences.std() / 400_000**0.5)
