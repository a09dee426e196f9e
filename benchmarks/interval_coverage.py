"""How often the report's 95 % intervals hold the true value, on planted effects.

    python benchmarks/interval_coverage.py

Simulates evaluations whose effect is known, a few thousand of each kind, and counts how often the interval that
evaluation/summarize.py would print holds it. A line of the table is one kind:

- accuracy, one answer: a question goes from right to wrong with one probability and from wrong to right with another.
- accuracy, several answers: each question has a difficulty of its own and reacts to steering in its own way; the
  answers to one question are independent given these. Beside it the coverage of what would be wrong: an interval that
  takes every answer for a question of its own.
- length: log-normal lengths, correlated within a question, relative change of the mean.
- rate of a word per token: how often questions use a word varies as its logarithm is normal; relative change of the
  rate. The word is rare enough to be in so many of the baseline run's answers on average. Beside it what would be
  without the rule that an interval needs MIN_NOT_ZERO such answers.

"given" is the share of the simulations in which there is an interval (there is none where no question changed), and
"covered" the share of those intervals that hold the true value, with the standard error of the simulation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from transformer_lens_r1.shared.arguments import ArgumentParser, non_negative_int, positive_int
from transformer_lens_r1.shared.errors import run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "evaluation"))
from report import paired_statistics  # noqa: E402
from report.paired_statistics import Estimate, bootstrap_differences, bootstrap_relative_changes  # noqa: E402

SIZES = (10, 20, 30, 60, 198, 500)
CHANGES = ((0.05, 0.05), (0.05, 0.15), (0.1, 0.3))
"""Probabilities of right → wrong and of wrong → right."""
REPEATS = (4, 32)
SHIFTS = (0.0, 0.8)
"""Mean effect of steering on a question's log-odds."""
LENGTHENINGS = (1.0, 1.2)
WITH_WORD = (5, 8, 10, 15, 20)
"""Expected answers of the baseline run that have the word."""
WORD_CHANGES = (1.0, 1.5)
AT_ONCE = 100
"""Simulations that share their resamples."""
Samples = tuple[np.ndarray, ...]


def one_answer(generator: np.random.Generator, m: int, *, n: int, down: float, up: float) -> Samples:
    """[n, m] right or wrong, baseline and steered: m evaluations of n questions."""
    drawn = generator.random((n, m))
    baseline = np.where(drawn < down, 1.0, np.where(drawn < down + up, 0.0, generator.integers(2, size=(n, m))))
    steered = np.where(drawn < down, 0.0, np.where(drawn < down + up, 1.0, baseline))
    return baseline, steered


def several_answers(generator: np.random.Generator, m: int, *, n: int, repeats: int, shift: float) -> Samples:
    """[n, m, repeats] right or wrong."""
    difficulty = generator.normal(0, 2, (n, m, 1))
    effect = generator.normal(shift, 1, (n, m, 1))
    odds = np.exp(np.stack([difficulty, difficulty + effect]))
    answers = generator.random((2, n, m, repeats)) < odds / (1 + odds)
    baseline, steered = answers.astype(np.float64)
    return baseline, steered


def lengths(generator: np.random.Generator, m: int, *, n: int, factor: float) -> Samples:
    """[n, m] tokens."""
    baseline, steered = _tokens(generator, (n, m))
    return baseline, factor * steered


def _tokens(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal lengths, baseline and steered, correlated within a question."""
    question = generator.normal(7, 0.7, shape)
    baseline, steered = (np.exp(question + generator.normal(0, 0.4, shape)) for _ in range(2))
    return baseline, steered


def words(generator: np.random.Generator, m: int, *, n: int, rate: float, factor: float) -> Samples:
    """[n, m] occurrences, baseline and steered, and [n] tokens of each, which all evaluations share."""
    tokens = _tokens(generator, (n,))
    liking = rate * np.exp(generator.normal(-0.5, 1, (n, m)))
    baseline, steered = (
        generator.poisson(liking * by * count[:, None]).astype(np.float64)
        for by, count in zip((1, factor), tokens, strict=True)
    )
    return baseline, steered, *tokens


@cache
def word_rate(share: float) -> float:
    """The rate per token at which a share of the answers has the word, by a search on drawn questions."""
    generator = np.random.default_rng(0)
    expected = _tokens(generator, (200_000,))[0] * np.exp(generator.normal(-0.5, 1, 200_000))
    low, high = 1e-9, 1.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if (1 - np.exp(-middle * expected)).mean() < share else (low, middle)
    return low


def true_shift(shift: float) -> float:
    """The expected change of accuracy in `several_answers`, by integration."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    weights = weights / weights.sum()

    def accuracy(mean: float, deviation: float) -> float:
        return float(weights @ (1 / (1 + np.exp(-(mean + deviation * nodes)))))

    return accuracy(shift, 5**0.5) - accuracy(0, 2)


def coverage(
    draw: Callable[[np.random.Generator, int], Samples],
    estimate: Callable[..., Sequence[Estimate | None]],
    truth: float,
    *,
    simulations: int,
    n_resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Share of the simulations that have an interval, and share of those intervals that hold the truth."""
    generator = np.random.default_rng(seed)
    given = covered = 0
    for start in range(0, simulations, AT_ONCE):
        samples = draw(generator, min(AT_ONCE, simulations - start))
        for found in estimate(*samples, n_resamples=n_resamples, seed=seed + start):
            if found is not None and found.low is not None:
                given += 1
                # Differences of counts are multiples of 1/n: rounding must not decide. An end that is not a number lies
                # between resamples without any of the baseline quantity, where the interval has no end.
                covered += found.low - 1e-9 <= truth and not truth > found.high + 1e-9
    return given / simulations, covered / max(given, 1)


def _clustered(baseline: np.ndarray, steered: np.ndarray, **draws: int) -> Sequence[Estimate]:
    return bootstrap_differences(baseline.mean(axis=2), steered.mean(axis=2), **draws)


def _unclustered(baseline: np.ndarray, steered: np.ndarray, **draws: int) -> Sequence[Estimate]:
    flat = [answers.transpose(0, 2, 1).reshape(-1, answers.shape[1]) for answers in (baseline, steered)]
    return bootstrap_differences(*flat, **draws)


def _rates(
    baseline: np.ndarray, steered: np.ndarray, *tokens: np.ndarray, rule: bool, **draws: int
) -> Sequence[Estimate | None]:
    before = paired_statistics.MIN_NOT_ZERO
    if not rule:
        paired_statistics.MIN_NOT_ZERO = 1
    try:
        with np.errstate(invalid="ignore"):
            return bootstrap_relative_changes(baseline, steered, per=(tokens[0], tokens[1]), **draws)
    finally:
        paired_statistics.MIN_NOT_ZERO = before


def kinds() -> Iterator[tuple[str, int, Callable, Callable, float]]:
    """What is simulated: name, questions, data, estimate, truth."""
    for n in SIZES:
        for down, up in CHANGES:
            name = f"accuracy, one answer, {down:.0%} right → wrong, {up:.0%} wrong → right"
            draw = partial(one_answer, n=n, down=down, up=up)
            yield name, n, draw, bootstrap_differences, up - down
    for n in (30, 198):
        for repeats in REPEATS:
            for shift in SHIFTS:
                draw = partial(several_answers, n=n, repeats=repeats, shift=shift)
                name = f"accuracy, {repeats} answers, {100 * true_shift(shift):+.1f} points"
                yield name, n, draw, _clustered, true_shift(shift)
                yield f"  … taken for {repeats} questions each", n, draw, _unclustered, true_shift(shift)
    for n in SIZES:
        for factor in LENGTHENINGS:
            draw = partial(lengths, n=n, factor=factor)
            yield f"length, {factor - 1:+.0%}", n, draw, bootstrap_relative_changes, factor - 1
    for n in (30, 198):
        for with_word in WITH_WORD:
            for factor in WORD_CHANGES:
                draw = partial(words, n=n, rate=word_rate(with_word / n), factor=factor)
                name = f"rate of a word in {with_word} answers, {factor - 1:+.0%}"
                yield name, n, draw, partial(_rates, rule=True), factor - 1
                yield "  … without the rule", n, draw, partial(_rates, rule=False), factor - 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--simulations", type=positive_int, default=2000, help="evaluations of each kind")
    parser.add_argument("--n_resamples", type=positive_int, default=2000, help="resamples of the bootstrap")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the simulation and the bootstrap")
    args = parser.parse_args(argv)
    print(f"{'what':64} questions  given  covered")
    for name, n, draw, estimate, truth in kinds():
        given, covered = coverage(draw, estimate, truth, **vars(args))
        error = (covered * (1 - covered) / max(1, given * args.simulations)) ** 0.5
        print(f"{name:64} {n:9} {given:6.3f}  {covered:.3f} ± {error:.3f}", flush=True)


if __name__ == "__main__":
    run(main)
