"""The report's statistics against independent calculations, and the coverage of its intervals on planted effects."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import scipy.stats
from report import paired_statistics as statistics


@pytest.fixture
def simulation(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("benchmarks/interval_coverage.py")


@pytest.mark.parametrize(("down", "up"), [(0, 0), (0, 6), (3, 9), (40, 12)])
def test_mcnemar_equals_the_binomial_test(down: int, up: int) -> None:
    plain = np.repeat([1, 1, 0, 0], [20, down, up, 10])
    steered = np.repeat([1, 0, 1, 0], [20, down, up, 10])
    *changed, p_value = statistics.mcnemar_exact(plain, steered)
    assert changed == [down, up]
    assert p_value == pytest.approx(scipy.stats.binomtest(down, down + up).pvalue if down + up else 1)


def test_the_fewest_changed_questions_that_can_reach_five_per_cent() -> None:
    least = next(n for n in range(1, 20) if scipy.stats.binomtest(n, n).pvalue < 0.05)
    assert least == statistics.MIN_DISCORDANT


def test_holm_equals_its_definition() -> None:
    # In the order of size: 4 · 0.001, 3 · 0.012, 2 · 0.04, 1 · 0.3, never falling.
    assert statistics.holm([0.04, 0.001, 0.3, 0.012]) == pytest.approx([0.08, 0.004, 0.3, 0.036])
    assert statistics.holm([]) == []


def test_intervals_equal_a_loop_over_resamples_of_whole_questions() -> None:
    n, n_resamples, seed = 80, 2000, 3
    generator = np.random.default_rng(1)
    tokens = generator.integers(200, 900, size=(2, n))
    counts = generator.poisson(tokens * [[0.01], [0.016]])
    values = generator.gamma(2, 300, size=(2, n, 3)) * [[[1.0]], [[1.2]]]
    draws = {"n_resamples": n_resamples, "seed": seed}
    found = [
        *statistics.bootstrap_differences(values[0], values[1], **draws),
        *statistics.bootstrap_relative_changes(values[0], values[1], **draws),
        *statistics.bootstrap_relative_changes(
            counts[0][:, None], counts[1][:, None], per=(tokens[0], tokens[1]), **draws
        ),
    ]

    def expected(questions: list[int]) -> list[float]:
        plain, steered = (side[questions].sum(axis=0) for side in values)
        rates = [c[questions].sum() / t[questions].sum() for c, t in zip(counts, tokens, strict=True)]
        return [*((steered - plain) / n), *(steered / plain - 1), rates[1] / rates[0] - 1]

    resamples = np.random.default_rng(seed)
    resampled = [expected(resamples.integers(n, size=n).tolist()) for _ in range(n_resamples)]
    ends = np.quantile(resampled, [0.025, 0.975], axis=0)
    assert found == [
        pytest.approx(estimate, rel=1e-9) for estimate in zip(expected(list(range(n))), *ends, strict=True)
    ]


def test_there_is_no_interval_where_questions_are_alike() -> None:
    same, shorter = np.ones((40, 1)), np.full((40, 1), 0.5)
    for steered in (same, shorter):
        (difference,) = statistics.bootstrap_differences(same, steered, n_resamples=100, seed=0)
        (change,) = statistics.bootstrap_relative_changes(same, steered, n_resamples=100, seed=0)
        assert difference == change == (steered[0, 0] - 1, None, None)
    assert statistics.bootstrap_relative_changes(0 * same, same, n_resamples=100, seed=0) == [None]
    assert statistics.bootstrap_differences([[1.0]], [[3.0]], n_resamples=100, seed=0) == [(2.0, None, None)]
    # Alike up to rounding.
    plain = np.arange(100.0, 140)[:, None]
    assert statistics.bootstrap_relative_changes(plain, 1.2 * plain, n_resamples=200, seed=0)[0].low is None
    assert statistics.bootstrap_differences(plain / 7, plain / 7 + 0.1, n_resamples=200, seed=0)[0].low is None


def test_few_questions_with_a_rare_word_give_no_interval_however_many_resamples_there_are() -> None:
    tokens = (np.full(500, 100.0), np.full(500, 100.0))
    for users in (statistics.MIN_NOT_ZERO - 1, statistics.MIN_NOT_ZERO):
        plain, steered = (np.arange(500) < users)[:, None], (np.arange(500) % 3 == 0)[:, None]
        for n_resamples in (200, 20_000):
            (found,) = statistics.bootstrap_relative_changes(
                plain, steered, n_resamples=n_resamples, seed=0, per=tokens
            )
            assert found.value == pytest.approx(167 / users - 1)
            assert (found.low is not None) == (users == statistics.MIN_NOT_ZERO)
    # If every question has some, few are enough.
    (found,) = statistics.bootstrap_relative_changes(np.ones((5, 1)), np.arange(5.0)[:, None], n_resamples=200, seed=0)
    assert found.low < found.value < found.high


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
