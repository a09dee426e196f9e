"""The numbers of the report: one row per run, and for a steered one what it changes against its baseline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from report.labels import describe, distinct_names, setting_text, strength_of
from report.paired_statistics import (
    Estimate,
    bootstrap_differences,
    bootstrap_relative_changes,
    holm,
    mcnemar_exact,
)
from report.pairs import Pair, differing_settings, model_name, pair_runs, pair_warnings, run_warnings
from report.reasoning_words import PER
from report.runs import Run

LENGTHS = ("completion_tokens", "reasoning_tokens")
BY_K = re.compile(r"(cov|maj)@\d+")
RATES = ("plain_per_1000_tokens", "steered_per_1000_tokens")
ALL_WORDS = "all words"
CLOCK = re.compile(r"T(\d\d)-(\d\d)-(\d\d)")
"""In the names of files."""
MAX_DETAILS = 3
"""Settings that a label names at most; the date tells apart what they do not."""


@dataclass(frozen=True)
class Row:
    """One run."""

    run: Run
    pair: Pair | None
    partner: str | None
    """Its baseline: "baseline", or "baseline 2" if there are several."""
    record: dict[str, Any]
    """The line of summary.csv: numbers as they are, shares as fractions; None for what is unknown or not compared."""
    words: list[dict[str, Any]]
    """The lines of words.csv about this run, all words together first; empty if it is not compared."""
    warnings: tuple[str, ...]

    @property
    def title(self) -> str:
        """The intervention where "none" would not say what the row is."""
        intervention = self.record["intervention"]
        return "baseline" if intervention == "none" else intervention.removeprefix("none · ")

    @property
    def compared(self) -> int:
        """Questions that the differences are over."""
        return len(self.pair.keys) if self.pair else 0

    def estimate(self, name: str) -> Estimate | None:
        """A difference or change of the record with its interval, such as "accuracy_difference"."""
        found = [self.record.get(column) for column in _columns(name)]
        return None if found[0] is None else Estimate(*found)


def summarize(runs: Sequence[Run], *, words: Sequence[str] = (), n_resamples: int = 10_000, seed: int = 0) -> list[Row]:
    """One row per run: the baselines of each task and model first, then its steered runs.

    Args:
        runs: what `read_runs` gave.
        words: the reasoning words that it counted.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    runs = sorted(runs, key=_order)
    pairs = pair_runs(runs)
    models = distinct_names(run.model for run in runs)
    saes = distinct_names(str(feature["sae"]) for run in runs for feature in run.features or ())
    sae_names = saes if len(saes) > 1 else None
    names = {
        run: describe(run.features, control_of=run.control_of, word_bias=run.word_bias, sae_names=sae_names)
        for run in runs
    }
    details, baselines = _details(names, pairs)
    rows = []
    for run in runs:
        pair = pairs.get(run)
        partner = pair.baseline if pair and len(pair.keys) else None
        record = {
            "task": run.task,
            "model": model_name(run, models),
            "intervention": " · ".join([names[run], *details[run]]),
            "feature_idx": " + ".join(str(feature["feature_idx"]) for feature in run.features or ()),
            "strength": strength_of(run.features) if run.features else None,
            "questions": run.n_questions,
            "answers_per_question": run.n_answers,
            "date": CLOCK.sub(r"T\1:\2:\3", run.date),
            "results_file": run.name,
            "compared_with": partner and partner.name,
        }
        numbers, rates = _numbers(run, pair if partner else None, words, n_resamples=n_resamples, seed=seed)
        tested = numbers["mcnemar_p"] is not None
        discordant = numbers["right_to_wrong"] + numbers["wrong_to_right"] if tested else None
        warnings = [*run_warnings(run), *(pair_warnings(pair, discordant) if pair else ())]
        rows.append(
            Row(
                run=run,
                pair=pair,
                partner=partner and baselines.get(partner, "baseline"),
                record=record | numbers | {"warnings": "; ".join(warnings)},
                words=rates,
                warnings=tuple(warnings),
            )
        )
    _adjust(rows)
    return rows


def _order(run: Run) -> tuple:
    features = run.features or ()
    steering = [(f["feature_idx"], str(f["mode"]), f.get("strength") or 0.0, f["value"]) for f in features]
    # Controls stand after the features that they are controls of; an ablated feature is the least of its strengths.
    control = tuple(run.control_of.values()) if run.control_of else ()
    words = run.word_bias["bias"] if run.word_bias else float("-inf")
    return run.task, run.model, run.revision, run.steered, words, control, steering, run.date


def _details(names: dict[Run, str], pairs: dict[Run, Pair]) -> tuple[dict[Run, list[str]], dict[Run, str]]:
    """What each label needs beside the intervention, so that no two runs of one task and model are called the same.

    Runs of the same intervention get the settings that differ, and if these are the same too, or too many, the date.
    If there are several baselines they are numbered, and a steered run says which of them it is compared with.

    Args:
        names: the intervention of each run, in the order of the report.
        pairs: of the steered runs.

    Returns:
        Details of every run, and "baseline 2" for each of several baselines.
    """
    groups: dict[tuple, list[Run]] = {}
    for run, name in names.items():
        groups.setdefault((run.task, run.model, run.revision, name), []).append(run)
    details: dict[Run, list[str]] = {run: [] for run in names}
    baselines: dict[Run, str] = {}
    for group in groups.values():
        if len(group) == 1:
            continue
        differing = [*differing_settings(group, "requirements"), *differing_settings(group)][:MAX_DETAILS]
        settings = [[setting_text(name, (r.requirements | r.settings).get(name)) for name in differing] for r in group]
        for number, (run, shown) in enumerate(zip(group, settings, strict=True), 1):
            details[run] = [*shown, run.date] if settings.count(shown) > 1 else shown
            if not run.steered:
                baselines[run] = f"baseline {number}"
                details[run] = [baselines[run], *details[run]]
    for run, pair in pairs.items():
        if len(pair.keys) and pair.baseline in baselines:
            details[run] = [*details[run], f"against {baselines[pair.baseline]}"]
    return details, baselines


def _numbers(
    run: Run, pair: Pair | None, words: Sequence[str], *, n_resamples: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The numbers of a line of summary.csv, in its order, and the rates of the reasoning words.

    Args:
        run: that the line is about.
        pair: None if it is not compared.
        words: reasoning words.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    draws = {"n_resamples": n_resamples, "seed": seed}
    rates = _word_rates(pair, words, **draws) if pair else []
    accuracy, stderr = (run.metrics.get(f"{run.accuracy_name}{suffix}") for suffix in ("", "_stderr"))
    if run.accuracy_name in run.questions:
        known = run.questions[run.accuracy_name].dropna()
        accuracy, stderr = float(known.mean()), float(known.sem()) if len(known) > 1 else None

    def difference(name: str, metric: str, estimate: Any = bootstrap_differences) -> dict[str, Any]:
        baseline, steered = pair.values(metric) if pair else ((), ())
        return _fields(name, estimate(baseline, steered, **draws)[0] if len(baseline) else None)

    values: dict[str, Any] = {
        "questions_compared": len(pair.keys) if pair else None,
        "accuracy": accuracy,
        "accuracy_stderr": stderr,
        "exact_match_string": run.metrics.get("exact_match_string"),
        "exact_match_published": run.metrics.get("exact_match_published"),
        **difference("accuracy_difference", run.accuracy_name),
        **dict.fromkeys(("right_to_wrong", "wrong_to_right", "mcnemar_p", "holm_p")),
    }
    if pair and all(side["n_answers"].eq(1).all() for side in pair.sides()):
        baseline, steered = pair.values(run.accuracy_name)
        if len(baseline):
            values |= zip(
                ("right_to_wrong", "wrong_to_right", "mcnemar_p"), mcnemar_exact(baseline, steered), strict=True
            )
    for name in LENGTHS:
        values[name] = run.metrics.get(name)
        values |= difference(f"{name}_change", name, bootstrap_relative_changes)
    for name in ("truncated", "undecided"):
        known = name in run.metrics
        values[name] = round(run.metrics[name] * run.n_questions * run.n_answers) if known else None
    values["answers_changed"] = _answers_changed(pair) if pair else None
    tokens = _n_tokens(run.questions).sum() if len(run.questions) else 0
    counted = words and tokens > 0
    values["reasoning_words_per_1000_tokens"] = (
        float(PER * sum(map(sum, run.questions["words"])) / tokens) if counted else None
    )
    values |= {f"reasoning_words_{name}": rates[0][name] if rates else None for name in _columns("change")}
    for name in filter(BY_K.fullmatch, run.metrics):
        values |= {name: run.metrics[name], **difference(f"{name}_difference", name)}
    return values, rates


def _columns(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _fields(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    return dict(zip(_columns(name), estimate or (None, None, None), strict=True))


def _answers_changed(pair: Pair) -> int:
    """Answers whose text is not the one that the baseline gave in the same place."""
    digests = zip(*(side["digests"] for side in pair.sides()), strict=True)
    return sum(a != b for baseline, steered in digests for a, b in zip(baseline, steered, strict=False))


def _n_tokens(questions: pd.DataFrame) -> pd.Series:
    return questions.get("completion_tokens", 0.0) * questions["n_answers"]


def _word_rates(pair: Pair, words: Sequence[str], *, n_resamples: int, seed: int) -> list[dict[str, Any]]:
    """Rates per 1,000 tokens of all words together and of each, over the questions that both runs answered."""
    both = pair.sides()
    counted = np.logical_and(*(_n_tokens(side).to_numpy() > 0 for side in both))
    if not words or not counted.any():
        return []
    tokens = [_n_tokens(side).to_numpy()[counted] for side in both]
    counts = [np.array(side["words"].tolist(), dtype=np.float64)[counted] for side in both]  # [n, |W|]
    counts = [np.column_stack([side.sum(axis=1), side]) for side in counts]
    found = bootstrap_relative_changes(*counts, n_resamples=n_resamples, seed=seed, per=(tokens[0], tokens[1]))
    baseline, steered = (PER * side.sum(axis=0) / n.sum() for side, n in zip(counts, tokens, strict=True))
    return [
        {"word": word, RATES[0]: float(a), RATES[1]: float(b), **_fields("change", change)}
        for word, a, b, change in zip((ALL_WORDS, *words), baseline, steered, found, strict=True)
    ]


def _adjust(rows: Sequence[Row]) -> None:
    """Holm's correction over all tests of one task and model but those of controls.

    A control makes no claim of its own: a claim must not be the weaker for having more of them.
    """
    families: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.record["mcnemar_p"] is not None and not row.run.control:
            families.setdefault((row.run.task, row.run.model, row.run.revision), []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row.record["mcnemar_p"] for row in family]), strict=True):
            row.record["holm_p"] = p
