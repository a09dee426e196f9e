"""The rows of the report as Markdown and CSV, and the cells that the HTML page shares with them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from interventions import strength_of
from paired_statistics import MIN_DISCORDANT, MIN_NOT_ZERO, MIN_QUESTIONS, Estimate
from summary_rows import ALL_WORDS, LENGTHS, Row

from transformer_lens_r1.shared.files import atomic_file

NOTHING = "–"
SMALL_SAMPLES = (
    "in simulations of known effects (benchmarks/README.md) intervals of 10 and 20 questions held the true change of "
    "length in 88 and 91 % of cases, and at 10 questions up to a third of the differences of accuracy had no interval"
)
"""What was measured below MIN_QUESTIONS."""
WHO = ("task", "model", "intervention")
"""The columns that say which run a row is."""


def percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def points(estimate: Estimate | None) -> str:
    """A difference of shares, in percentage points, with its interval."""
    return _with_interval(estimate, lambda value: f"{100 * value:+.1f}", "")


def change(estimate: Estimate | None) -> str:
    """A relative change in per cent, with its interval."""
    return _with_interval(estimate, lambda value: f"{100 * value:+.1f}", " %")


def _with_interval(estimate: Estimate | None, shown: Callable[[float], str], unit: str) -> str:
    if estimate is None:
        return NOTHING
    interval = "" if estimate.low is None else f" [{shown(estimate.low)}, {shown(estimate.high)}]"
    return f"{shown(estimate.value)}{unit}{interval}"


def p_value(p: float | None) -> str:
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _questions(row: Row) -> str:
    return f"{row.run.n_questions}" + (f" × {row.run.n_answers}" if row.run.n_answers > 1 else "")


def _accuracy(row: Row) -> str:
    stderr = "" if row.accuracy_stderr is None else f" ± {100 * row.accuracy_stderr:.1f}"
    return percent(row.accuracy) + stderr


def _length(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row.lengths[name]:,.1f}" if name in row.lengths else NOTHING


def _length_change(name: str) -> Callable[[Row], str]:
    return lambda row: change(row.length_changes.get(name))


def _sides(row: Row) -> str:
    d = row.discordance
    return NOTHING if d is None else f"{d.right_to_wrong} / {d.wrong_to_right}"


def _count(value: int | float | None, form: str = "{}") -> str:
    return NOTHING if value is None else form.format(value)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "task": lambda row: row.run.task,
    "model": lambda row: row.model,
    "intervention": lambda row: row.intervention,
    "questions": _questions,
    "accuracy ± s.e.": _accuracy,
    "Δ accuracy, points [95 %]": lambda row: points(row.accuracy_difference),
    "right→wrong / wrong→right": _sides,
    "p (McNemar)": lambda row: p_value(row.discordance and row.discordance.p_value),
    "p (Holm)": lambda row: p_value(row.p_holm),
    "tokens": _length("completion_tokens"),
    "Δ tokens [95 %]": _length_change("completion_tokens"),
    "reasoning tokens": _length("reasoning_tokens"),
    "Δ reasoning tokens [95 %]": _length_change("reasoning_tokens"),
    "truncated": lambda row: _count(row.truncated),
    "undecided": lambda row: _count(row.undecided),
    "answers changed": lambda row: _count(row.texts_changed),
    "reasoning words per 1,000 tokens": lambda row: _count(row.word_rate, "{:.2f}"),
}
"""Name and cell of each column of the table; one that is empty in every row is left out."""


def shown_columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """The columns that say something."""
    return {name: cell for name, cell in COLUMNS.items() if any(cell(row) != NOTHING for row in rows)}


def numbered_warnings(rows: Sequence[Row]) -> list[str]:
    """All warnings, each once; the table refers to them by their place, from 1."""
    return list(dict.fromkeys(warning for row in rows for warning in row.warnings))


def by_k_names(rows: Sequence[Row]) -> list[str]:
    """cov@1, cov@2, …, maj@1, …"""
    names = {name for row in rows for name in row.by_k}
    return sorted(names, key=lambda name: (name.partition("@")[0], int(name.partition("@")[2])))


def by_k_cell(row: Row, name: str) -> str:
    """A share, and its difference to the plain run's."""
    if name not in row.by_k:
        return NOTHING
    difference = row.by_k_differences.get(name)
    return percent(row.by_k[name]) + (f" ({points(difference)})" if difference else "")


def method(rows: Sequence[Row], *, n_resamples: int, seed: int) -> list[str]:
    """How the numbers were made, in sentences; of what the table does not have, none."""
    errors = (
        "Standard errors are of the mean over questions. Truncated and undecided answers count as they were scored."
    )
    if not any(row.compared for row in rows):
        return [errors]
    sentences = [
        "Differences are steered minus plain over the questions that both runs answered, changes of length relative.",
        f"Intervals hold 95 %: a paired percentile bootstrap over questions ({n_resamples:,} resamples, seed {seed}); "
        "where a question was answered several times, its answers are resampled together.",
        "No interval is given where all questions are alike in a difference, nor for a relative change of what fewer "
        f"than {MIN_NOT_ZERO} questions have in the plain run while others have none, such as a rare word.",
    ]
    if any(row.discordance for row in rows):
        sentences.append(
            "p (McNemar) is exact and two-sided; p (Holm) is corrected for all steered runs of the same task and model."
        )
    sentences += [errors, f"A row of fewer than {MIN_QUESTIONS} questions has a warning: {SMALL_SAMPLES}."]
    if any(row.discordance for row in rows):
        sentences.append(
            f"So has one of fewer than {MIN_DISCORDANT} questions that changed between right and wrong, where the "
            "exact test cannot reach 5 %."
        )
    return sentences


def main_table(rows: Sequence[Row]) -> str:
    """The table of all runs with its warnings, as Markdown."""
    warnings = numbered_warnings(rows)
    columns = shown_columns(rows)
    head = [*columns, "warnings"] if warnings else list(columns)
    lines = []
    for row in rows:
        cells = [cell(row) for cell in columns.values()]
        if warnings:
            cells.append("⚠ " + ", ".join(str(warnings.index(w) + 1) for w in row.warnings) if row.warnings else "")
        lines.append(cells)
    table = _table(head, lines)
    if warnings:
        table += "\nWarnings:\n\n" + "\n".join(f"{i}. {_plain(w)}" for i, w in enumerate(warnings, 1)) + "\n"
    return table


def markdown(rows: Sequence[Row], *, n_resamples: int, seed: int) -> str:
    """The report for people to read as text."""
    parts = ["# Plain and steered evaluation\n", main_table(rows)]
    if names := by_k_names(rows):
        lines = [[*_who(row), *(by_k_cell(row, name) for name in names)] for row in rows if row.by_k]
        parts.append("Coverage and majority of k answers, with the difference to the plain run in points:\n")
        parts.append(_table([*WHO, *names], lines))
    if compared := [row for row in rows if row.word_rates]:
        places, note = occurring_words(compared)
        lines = [
            [*_who(row), *(f"{r.plain:.2f} → {r.steered:.2f}" for r in map(row.word_rates.__getitem__, places))]
            for row in compared
        ]
        parts.append("Reasoning words per 1,000 tokens, plain → steered (words.csv has the intervals):\n")
        parts += [f"{note}\n"] if note else []
        parts += [_table([*WHO, *(compared[0].word_rates[i].word for i in places)], lines)] if places else []
    return "\n".join([*parts, " ".join(method(rows, n_resamples=n_resamples, seed=seed)) + "\n"])


def occurring_words(rows: Sequence[Row]) -> tuple[list[int], str]:
    """Which of the word rates of these rows are to be shown, and a sentence on those that no answer has ("" without).

    Args:
        rows: that have word rates, all of the same words.
    """
    words = [rates[0].word for rates in zip(*(row.word_rates for row in rows), strict=True)]
    places = [i for i in range(len(words)) if any(r.plain or r.steered for r in (row.word_rates[i] for row in rows))]
    absent = [word for i, word in enumerate(words) if i not in places and word != ALL_WORDS]
    if not absent:
        return places, ""
    if not places:
        return places, f"No answer holds any of them: {', '.join(absent)}."
    return places, f"In no answer: {', '.join(absent)}."


def _who(row: Row) -> list[str]:
    return [COLUMNS[name](row) for name in WHO]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [list(map(_plain, line)) for line in (head, *lines)]
    rows.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def _plain(text: str) -> str:
    # What follows "<" decides whether it would be an element.
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.split()).replace("|", "\\|"))


def record(row: Row) -> dict[str, Any]:
    """A row of summary.csv: numbers as they are, shares as fractions."""
    features = row.run.features or ()
    values: dict[str, Any] = {
        "task": row.run.task,
        "model": row.model,
        "intervention": row.intervention,
        "feature_idx": " + ".join(str(feature["feature_idx"]) for feature in features),
        "strength": strength_of(features) if features else None,
        "questions": row.run.n_questions,
        "answers_per_question": row.run.n_answers,
        "date": row.date,
        "results_file": row.results_file,
        "compared_with": row.compared_with,
        "questions_compared": row.compared or None,
        "accuracy": row.accuracy,
        "accuracy_stderr": row.accuracy_stderr,
        "exact_match_string": row.run.metrics.get("exact_match_string"),
        **_fields("accuracy_difference", row.accuracy_difference),
        "right_to_wrong": row.discordance and row.discordance.right_to_wrong,
        "wrong_to_right": row.discordance and row.discordance.wrong_to_right,
        "mcnemar_p": row.discordance and row.discordance.p_value,
        "holm_p": row.p_holm,
    }
    for name in LENGTHS:
        values |= {name: row.lengths.get(name), **_fields(f"{name}_change", row.length_changes.get(name))}
    values |= {"truncated": row.truncated, "undecided": row.undecided, "answers_changed": row.texts_changed}
    values["reasoning_words_per_1000_tokens"] = row.word_rate
    total = row.word_rates[0].change if row.word_rates else None
    values |= _fields("reasoning_words_change", total)
    for name in row.by_k:
        values |= {name: row.by_k[name], **_fields(f"{name}_difference", row.by_k_differences.get(name))}
    values["warnings"] = "; ".join(row.warnings)
    return values


def _fields(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    value, low, high = estimate or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write summary.csv."""
    _write(path, [record(row) for row in rows])


def write_words_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write words.csv: a line for every steered run and reasoning word."""
    lines = [
        {
            "task": row.run.task,
            "model": row.model,
            "intervention": row.intervention,
            "results_file": row.results_file,
            "word": rate.word,
            "plain_per_1000_tokens": rate.plain,
            "steered_per_1000_tokens": rate.steered,
            **_fields("change", rate.change),
        }
        for row in rows
        for rate in row.word_rates
    ]
    _write(path, lines)


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for line in lines for name in line))
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
