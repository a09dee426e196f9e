"""The numbers of the report: one row per run, and for a steered one what it changes against the plain run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from interventions import describe, describe_unrecorded, details_of
from numpy.typing import NDArray
from paired_statistics import (
    Discordance,
    Estimate,
    bootstrap_differences,
    bootstrap_relative_changes,
    holm,
    mcnemar_exact,
    mean_and_stderr,
)
from reasoning_words import PER
from run_files import Question, Run
from run_pairs import Pair, distinct_names, model_name, pair_runs, pair_warnings, run_warnings

LENGTHS = ("completion_tokens", "reasoning_tokens")
BY_K = re.compile(r"(cov|maj)@\d+")
ALL_WORDS = "all words"
CLOCK = re.compile(r"T(\d\d)-(\d\d)-(\d\d)")
"""In the names of files."""


class WordRate(NamedTuple):
    """How often a reasoning word occurs per 1,000 tokens, over the questions that both runs answered."""

    word: str
    plain: float
    steered: float
    change: Estimate | None
    """Relative; None where the plain run never uses the word."""


@dataclass(frozen=True)
class Row:
    """One run. What compares it with a plain run is None where there is nothing to compare."""

    run: Run
    pair: Pair | None
    model: str
    intervention: str
    """With what tells it from other rows, such as a temperature."""
    title: str
    """The intervention where the page names it; "plain" or "plain 2" instead of "none"."""
    results_file: str
    """Relative to the folder of results that was given."""
    date: str
    """When the evaluation ended, in the time of its machine; ISO 8601."""
    accuracy: float | None
    accuracy_stderr: float | None
    lengths: Mapping[str, float]
    """Means of those of LENGTHS that were counted, in tokens."""
    truncated: int | None
    undecided: int | None
    """Answers, like ``truncated``."""
    word_rate: float | None
    """Reasoning words per 1,000 tokens, over all of its questions."""
    by_k: Mapping[str, float]
    """cov@k and maj@k."""
    accuracy_difference: Estimate | None = None
    discordance: Discordance | None = None
    p_holm: float | None = None
    length_changes: Mapping[str, Estimate] = field(default_factory=dict)
    """Relative."""
    by_k_differences: Mapping[str, Estimate] = field(default_factory=dict)
    texts_changed: int | None = None
    """Answers, not questions."""
    compared_with: str | None = None
    """The plain run's results file."""
    partner: str | None = None
    """The plain run's title without its settings: "plain", or "plain 2" where there are several."""
    word_rates: tuple[WordRate, ...] = ()
    """All words together first."""
    warnings: tuple[str, ...] = ()

    @property
    def compared(self) -> int:
        """Questions that the differences are over."""
        return len(self.pair.keys) if self.pair else 0


def summarize(runs: Sequence[Run], *, words: Sequence[str] = (), n_resamples: int = 10_000, seed: int = 0) -> list[Row]:
    """One row per run: the plain runs of each task and model first, then its steered ones.

    Args:
        runs: what `read_runs` gave.
        words: the reasoning words that it counted.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    models = distinct_names(run.model for run in runs)
    saes = distinct_names(str(feature["sae"]) for run in runs for feature in run.features or ())
    runs = sorted(runs, key=_order)
    files = _file_names(runs)
    pairs = pair_runs(runs)
    names = []
    for run in runs:
        others = {_sae_names(other) for other in runs if other.features and other.task == run.task}
        named = describe(run.features, sae_names=saes if len(others) > 1 else None)
        names.append(describe_unrecorded(run.unrecorded) if run.unrecorded else named)
    details = details_of(runs, pairs, names, files)

    pair_of = {id(pair.steered): pair for pair in pairs}
    rows = []
    for run, name, more, file in zip(runs, names, details, files, strict=True):
        row = _row(
            run,
            pair_of.get(id(run)),
            model=model_name(run, models),
            intervention=" · ".join([name, *more]),
            title=" · ".join([name, *more] if run.steered else more or ["plain"]),
            results_file=file,
        )
        rows.append(row)
    plain_rows = {id(row.run): row for row in rows if not row.run.steered}
    draws = {"n_resamples": n_resamples, "seed": seed}
    return _adjust([_compare(row, row.pair, plain_rows, words, **draws) if row.pair else row for row in rows])


def _file_names(runs: Sequence[Run]) -> list[str]:
    """The results file of each run, from its folder of results on; with the folder's name where there are several."""
    roots = distinct_names(str(run.root) for run in runs)
    return [
        (f"{roots[str(run.root)]}/" if len(roots) > 1 else "") + run.file.relative_to(run.root).as_posix()
        for run in runs
    ]


def _order(run: Run) -> tuple:
    features = run.features or ()
    steering = [(f["feature_idx"], str(f["mode"]), f.get("strength") or 0.0, f["value"]) for f in features]
    return run.task, run.model, run.revision, run.steered, steering, run.date


def _sae_names(run: Run) -> tuple[str, ...]:
    return tuple(str(feature["sae"]) for feature in run.features or ())


def _row(run: Run, pair: Pair | None, **names: str) -> Row:
    questions = list(run.questions.values())
    accuracies = [q.metrics[run.accuracy_name] for q in questions if run.accuracy_name in q.metrics]
    if accuracies:
        accuracy, stderr = mean_and_stderr(accuracies)
    else:
        accuracy, stderr = (run.metrics.get(f"{run.accuracy_name}{suffix}") for suffix in ("", "_stderr"))
    return Row(
        run=run,
        pair=pair,
        **names,
        date=CLOCK.sub(r"T\1:\2:\3", run.date),
        accuracy=accuracy,
        accuracy_stderr=stderr,
        lengths={name: run.metrics[name] for name in LENGTHS if name in run.metrics},
        truncated=_answers_with(run, "truncated"),
        undecided=_answers_with(run, "undecided"),
        word_rate=_word_rate(questions),
        by_k={name: value for name, value in run.metrics.items() if BY_K.fullmatch(name)},
        warnings=tuple(run_warnings(run)),
    )


def _answers_with(run: Run, metric: str) -> int | None:
    if metric not in run.metrics:
        return None
    return round(run.metrics[metric] * run.n_questions * run.n_answers)


def _n_tokens(question: Question) -> float:
    return question.metrics.get("completion_tokens", 0.0) * question.n_answers


def _word_rate(questions: Sequence[Question]) -> float | None:
    tokens = sum(map(_n_tokens, questions))
    if not tokens or not questions[0].word_counts:
        return None
    return PER * sum(sum(question.word_counts) for question in questions) / tokens


def _compare(
    row: Row, pair: Pair, plain_rows: Mapping[int, Row], words: Sequence[str], *, n_resamples: int, seed: int
) -> Row:
    questions = pair.questions
    partner = plain_rows[id(pair.plain)] if questions else None
    draws = {"n_resamples": n_resamples, "seed": seed}
    difference = discordance = None
    plain, steered = _both(questions, row.run.accuracy_name)
    if len(plain):
        (difference,) = bootstrap_differences(plain, steered, **draws)
        if pair.single:
            discordance = mcnemar_exact(plain[:, 0], steered[:, 0])
    changes = {}
    for name in LENGTHS:
        plain, steered = _both(questions, name)
        if len(plain) and (change := bootstrap_relative_changes(plain, steered, **draws)[0]):
            changes[name] = change
    differences = {}
    for name in row.by_k:
        plain, steered = _both(questions, name)
        if len(plain):
            (differences[name],) = bootstrap_differences(plain, steered, **draws)
    discordant = discordance and discordance.right_to_wrong + discordance.wrong_to_right
    return replace(
        row,
        accuracy_difference=difference,
        discordance=discordance,
        length_changes=changes,
        by_k_differences=differences,
        compared_with=partner and partner.results_file,
        partner=partner and partner.title.split(" · ")[0],
        texts_changed=_answers_changed(questions) if questions else None,
        word_rates=_word_rates(questions, words, **draws),
        warnings=tuple(dict.fromkeys([*row.warnings, *pair_warnings(pair, discordant)])),
    )


def _answers_changed(questions: Sequence[tuple[Question, Question]]) -> int:
    """Answers whose text is not the one that the plain run gave in the same place."""
    return sum(a != b for pair in questions for a, b in zip(*(side.digests for side in pair), strict=False))


def _both(
    questions: Sequence[tuple[Question, Question]], metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[n, 1] of plain and steered, over the questions for which both know the metric."""
    known = [
        (a.metrics[metric], b.metrics[metric]) for a, b in questions if metric in a.metrics and metric in b.metrics
    ]
    values = np.array(known, dtype=np.float64).reshape(-1, 2)
    return values[:, :1], values[:, 1:]


def _word_rates(
    questions: Sequence[tuple[Question, Question]], words: Sequence[str], *, n_resamples: int, seed: int
) -> tuple[WordRate, ...]:
    counted = [(a, b) for a, b in questions if _n_tokens(a) > 0 and _n_tokens(b) > 0]
    if not counted or not words:
        return ()
    plain, steered = (
        np.array([[sum(q.word_counts), *q.word_counts] for q in side], dtype=np.float64)
        for side in zip(*counted, strict=True)
    )  # [n, 1 + |W|]
    tokens = tuple(np.array([_n_tokens(q) for q in side]) for side in zip(*counted, strict=True))
    changes = bootstrap_relative_changes(plain, steered, n_resamples=n_resamples, seed=seed, per=tokens)
    rates = [PER * side.sum(axis=0) / n.sum() for side, n in zip((plain, steered), tokens, strict=True)]
    return tuple(
        WordRate(word, float(a), float(b), change)
        for word, a, b, change in zip((ALL_WORDS, *words), *rates, changes, strict=True)
    )


def _adjust(rows: Sequence[Row]) -> list[Row]:
    """Holm's correction over all tests of one task and model."""
    adjusted: dict[int, float] = {}
    families: dict[tuple, list[int]] = {}
    for index, row in enumerate(rows):
        if row.discordance:
            families.setdefault((row.run.task, row.run.model, row.run.revision), []).append(index)
    for family in families.values():
        p_values = [rows[index].discordance.p_value for index in family]
        adjusted |= dict(zip(family, holm(p_values), strict=True))
    return [replace(row, p_holm=adjusted.get(index)) for index, row in enumerate(rows)]
