"""The rows of the report as Markdown and CSV, and the cells that the HTML page shares with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from report.controls import CONTROLS_METHOD, EFFECTS, WORD_RATE, Placed
from report.paired_statistics import MIN_DISCORDANT, MIN_NOT_ZERO, MIN_QUESTIONS
from report.rows import BY_K, RATES, Row

Record = dict[str, Any]
NOTHING = "–"
WHO = ["task", "model", "intervention"]
"""The columns that say which run a row is."""


def with_interval(record: Record, name: str, *, unit: str = "") -> str:
    """A difference in percentage points, or a relative change in per cent, with its interval."""
    value, low, high = (record.get(column) for column in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return NOTHING
    return f"{100 * value:+.1f}{unit}" + ("" if low is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]")


def _number(record: Record, name: str, form: str = "{}") -> str:
    return NOTHING if record.get(name) is None else form.format(record[name])


def _accuracy(record: Record) -> str:
    share, stderr = record["accuracy"], record["accuracy_stderr"]
    return _share(share) + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f} %"


def _p_value(record: Record, name: str) -> str:
    p = record[name]
    return NOTHING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _questions(record: Record) -> str:
    answers = record["answers_per_question"]
    return f"{record['questions']}" + (f" × {answers}" if answers > 1 else "")


def _sides(record: Record) -> str:
    return NOTHING if record["mcnemar_p"] is None else f"{record['right_to_wrong']} / {record['wrong_to_right']}"


COLUMNS: dict[str, Callable[[Record], str]] = {
    **{name: partial(_number, name=name) for name in WHO},
    "questions": _questions,
    "accuracy ± s.e.": _accuracy,
    "Δ accuracy, points [95 %]": partial(with_interval, name="accuracy_difference"),
    "right→wrong / wrong→right": _sides,
    "p (McNemar)": partial(_p_value, name="mcnemar_p"),
    "p (Holm)": partial(_p_value, name="holm_p"),
    "tokens": partial(_number, name="completion_tokens", form="{:,.1f}"),
    "Δ tokens [95 %]": partial(with_interval, name="completion_tokens_change", unit=" %"),
    "reasoning tokens": partial(_number, name="reasoning_tokens", form="{:,.1f}"),
    "Δ reasoning tokens [95 %]": partial(with_interval, name="reasoning_tokens_change", unit=" %"),
    "truncated": partial(_number, name="truncated"),
    "undecided": partial(_number, name="undecided"),
    "answers changed": partial(_number, name="answers_changed"),
    "reasoning words per 1,000 tokens": partial(_number, name="reasoning_words_per_1000_tokens", form="{:.2f}"),
}
"""Name and cell of each column of the table; one that is empty in every row is left out."""


def main_cells(rows: Sequence[Row]) -> pd.DataFrame:
    """The text of every cell of the table of all runs."""
    cells = pd.DataFrame([{name: cell(row.record) for name, cell in COLUMNS.items()} for row in rows])
    return cells.loc[:, (cells != NOTHING).any()]


def by_k_cells(rows: Sequence[Row]) -> pd.DataFrame:
    """Coverage and majority of k answers with their differences: cov@1, cov@2, …, maj@1, …; empty without any."""
    names = {name for row in rows for name in row.record if BY_K.fullmatch(name)}
    names = sorted(names, key=lambda name: (name.partition("@")[0], int(name.partition("@")[2])))
    records = {place: row.record for place, row in enumerate(rows) if names and names[0] in row.record}

    def cell(record: Record, name: str) -> str:
        difference = with_interval(record, f"{name}_difference")
        return _share(record.get(name)) + (f" ({difference})" if difference != NOTHING else "")

    lines = [{name: record[name] for name in WHO} | {n: cell(record, n) for n in names} for record in records.values()]
    return pd.DataFrame(lines, index=list(records))


def word_cells(rows: Sequence[Row], *, intervals: bool) -> pd.DataFrame:
    """Words that occur, per 1,000 tokens, baseline → steered, of each compared run; empty without any."""
    occurring = {rate["word"] for row in rows for rate in row.words if any(rate[name] for name in RATES)}

    def cell(rate: Record) -> str:
        text = " → ".join(f"{rate[name]:.2f}" for name in RATES)
        return text + (f"\n{with_interval(rate, 'change', unit=' %')}" if intervals else "")

    lines = {
        place: {name: row.record[name] for name in WHO}
        | {rate["word"]: cell(rate) for rate in row.words if rate["word"] in occurring}
        for place, row in enumerate(rows)
        if row.words
    }
    return pd.DataFrame(list(lines.values()), index=list(lines))


def control_cells(placed: Sequence[Placed]) -> pd.DataFrame:
    """The effects of each feature beside those of its controls; empty without any."""
    biases = sorted({bias for one in placed for bias in one.words})

    def cells(one: Placed) -> Record:
        def shown(value: float | None) -> str:
            return NOTHING if value is None else f"{value:+.2f}" if one.effect == WORD_RATE else f"{100 * value:+.1f}"

        record = one.record()
        spread = f" [{shown(record['matched_min'])}, {shown(record['matched_max'])}]" if one.matched else ""
        return {
            **{name: record[name] for name in WHO},
            "effect": EFFECTS[one.effect],
            "steered [95 %]": with_interval(one.row.record, one.effect)
            if one.effect != WORD_RATE
            else shown(one.value),
            "matched: median [range]": shown(record["matched_median"]) + spread,
            "at least as large": f"{one.as_large} of {len(one.matched)}" if one.matched else NOTHING,
            "p (matched)": _p_value(record, "matched_p"),
            "ablated": shown(one.ablated),
            **{f"words {bias:+g}": shown(one.words.get(bias)) for bias in biases},
        }

    return pd.DataFrame([cells(one) for one in placed], index=[one.place for one in placed])


def numbered_warnings(rows: Sequence[Row]) -> dict[str, int]:
    """All warnings, each once, with the number by which the table refers to them, from 1."""
    return {text: i for i, text in enumerate(dict.fromkeys(text for row in rows for text in row.warnings), 1)}


def method(*, n_resamples: int, seed: int) -> str:
    """How the numbers were made, in sentences."""
    return (
        "Differences are steered minus baseline over the questions that both answered, changes of length relative. "
        f"Intervals hold 95 %: a paired percentile bootstrap over questions ({n_resamples:,} resamples, seed {seed}); "
        "where a question was answered several times, its answers are resampled together. No interval is given where "
        "all questions are alike in a difference, nor for a relative change of what fewer than "
        f"{MIN_NOT_ZERO} questions have in the baseline while others have none, such as a rare word. With one answer "
        "to each question, p (McNemar) is exact and two-sided; p (Holm) is corrected for all steered runs of the same "
        "task and model but controls, which make no claim of their own. Standard errors are of the mean over "
        "questions. Truncated and undecided answers count as they were scored. A row of fewer than "
        f"{MIN_QUESTIONS} questions has a warning: in simulations of known effects "
        "(benchmarks/README.md) intervals of 10 and 20 questions held the true change of length in 88 and 91 % of "
        "cases, and at 10 questions up to a third of the differences of accuracy had no interval. So has a row of "
        f"fewer than {MIN_DISCORDANT} questions that changed between right and wrong: the exact test cannot reach 5 %."
    )


def main_table(rows: Sequence[Row]) -> str:
    """The table of all runs with its warnings, as Markdown."""
    cells, warnings = main_cells(rows), numbered_warnings(rows)
    if not warnings:
        return _table(cells)
    numbers = [", ".join(str(warnings[warning]) for warning in row.warnings) for row in rows]
    cells["warnings"] = [f"⚠ {shown}" if shown else "" for shown in numbers]
    lines = [f"{number}. {_escaped(warning)}" for warning, number in warnings.items()]
    return _table(cells) + "\nWarnings:\n\n" + "\n".join(lines) + "\n"


def markdown(rows: Sequence[Row], placed: Sequence[Placed], *, n_resamples: int, seed: int) -> str:
    """The report for people to read as text."""
    parts = ["# Baseline and steered evaluation\n", main_table(rows)]
    for title, cells in (
        (f"Features among their controls. {CONTROLS_METHOD}", control_cells(placed)),
        ("Coverage and majority of k answers, with the difference to the baseline in points:", by_k_cells(rows)),
        (
            "Reasoning words per 1,000 tokens, baseline → steered (words.csv has the intervals):",
            word_cells(rows, intervals=False),
        ),
    ):
        parts += [f"{title}\n", _table(cells)] if len(cells) else []
    return "\n".join([*parts, method(n_resamples=n_resamples, seed=seed) + "\n"])


def _table(cells: pd.DataFrame) -> str:
    lines = [list(cells), ["---"] * len(cells.columns), *cells.to_numpy().tolist()]
    return "".join("| " + " | ".join(map(_escaped, line)) + " |\n" for line in lines)


def _escaped(text: str) -> str:
    # What follows "<" decides whether it would be an element.
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.split()).replace("|", "\\|"))


def write_tables(folder: Path, rows: Sequence[Row], placed: Sequence[Placed], *, n_resamples: int, seed: int) -> None:
    """Write summary.md, summary.csv, words.csv (a line for every steered run and reasoning word) and controls.csv."""
    (folder / "summary.md").write_text(markdown(rows, placed, n_resamples=n_resamples, seed=seed), encoding="utf-8")
    who = [*WHO, "results_file"]
    words = [{name: row.record[name] for name in who} | rate for row in rows for rate in row.words]
    tables = {"summary.csv": [row.record for row in rows], "words.csv": words}
    if placed:
        tables["controls.csv"] = [one.record() for one in placed]
    for name, lines in tables.items():
        # As objects, so that whole numbers stay whole in columns with empty cells.
        pd.DataFrame(lines, dtype=object).to_csv(folder / name, index=False, lineterminator="\r\n")
