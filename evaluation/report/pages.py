"""The report as HTML pages that open without a network: one of all runs, and one of single questions for each pair.

The texts of a page of questions lie in it compressed (gzip, base64), one block per question; the browser unpacks what
is looked at. 500 answers of 32,000 tokens on each side make a page of tens of megabytes that opens at once.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from report.controls import CONTROLS_METHOD, Placed
from report.figures import Picture
from report.labels import plural
from report.reasoning_words import WordCounter
from report.rows import Row
from report.runs import answer_texts
from report.tables import WHO, by_k_cells, control_cells, main_cells, method, numbered_warnings, word_cells

ASSETS = Path(__file__).resolve().parent / "assets"
TITLE = "Baseline and steered evaluation"
TITLE_END = "and steered evaluation</title>"
"""By which an earlier report is known: it stands in the first lines of every page."""
QUESTION_FIELDS = ("problem", "Question", "question", "query", "text")
METRICS = {"tokens": "completion_tokens", "reasoning": "reasoning_tokens"} | {n: n for n in ("truncated", "undecided")}
"""What the page of questions calls the metrics."""
# Whatever a model, a task or a setting is called, none of it becomes an element or a script.
PAGES = jinja2.Environment(loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined)
PAGES.globals["asset"] = lambda name: Markup((ASSETS / name).read_text(encoding="utf-8"))


def write_report_page(
    path: Path,
    rows: Sequence[Row],
    placed: Sequence[Placed],
    *,
    pictures: Sequence[Picture],
    question_pages: Mapping[int, str],
    n_resamples: int,
    seed: int,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        rows: what `summarize` gave.
        placed: what `place_features` made of them.
        pictures: shown in the page itself.
        question_pages: for the places of rows that have one, the address of the page of their questions.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    steered = sum(row.run.steered for row in rows)
    warnings = numbered_warnings(rows)

    def table(cells: pd.DataFrame) -> dict[str, Any]:
        """Its columns, and its lines under a heading for each task and model, and effect if it has several."""
        effects = cells.get("effect", [""] * len(cells))
        cells = cells.drop(columns=[*WHO, "effect"], errors="ignore")
        lines = [
            {
                "row": rows[place],
                "effect": effect,
                "cells": list(line),
                "warnings": [warnings[warning] for warning in rows[place].warnings],
                "questions": question_pages.get(place),
            }
            for place, effect, line in zip(cells.index, effects, cells.to_numpy().tolist(), strict=True)
        ]
        groups = groupby(lines, key=lambda line: (line["row"].run.task, line["row"].record["model"], line["effect"]))
        return {
            "columns": list(cells),
            "groups": [(" · ".join(filter(None, who)), list(group)) for who, group in groups],
        }

    page = PAGES.get_template("report.html").render(
        title=TITLE,
        about=f"{plural(len(rows) - steered, 'baseline')} and {plural(steered, 'steered run')} of "
        f"{plural(len({row.run.task for row in rows}), 'task')}",
        main=table(main_cells(rows)),
        controls=table(control_cells(placed)),
        controls_method=CONTROLS_METHOD,
        by_k=table(by_k_cells(rows)),
        words=table(word_cells(rows, intervals=True)),
        warnings=list(warnings),
        pictures=pictures,
        method=method(n_resamples=n_resamples, seed=seed),
    )
    path.write_text(page, encoding="utf-8")


def write_question_page(path: Path, row: Row, words: WordCounter, *, report: str, answers_shown: int) -> None:
    """Write the page of a steered run that has a baseline.

    Args:
        path: of the page.
        row: its pair must have questions.
        words: whose counts the questions hold.
        report: address of the page of all runs, relative to this one.
        answers_shown: of a question that was answered several times, how many answers the page holds.
    """
    pair = row.pair
    assert pair is not None and pair.baseline is not None
    numbers = [side.to_dict("records") for side in pair.sides()]
    samples = (run.samples(pair.keys) for run in (pair.baseline, row.run))
    accuracy = row.run.accuracy_name
    overview: list[dict[str, Any]] = []

    def texts() -> Iterator[str]:
        """A block for each question; the overview, which stands after them, grows with them."""
        for baseline, steered, *recorded in zip(*samples, *numbers, strict=True):
            overview.append(_overview(baseline, steered, recorded, accuracy))
            answers = [list(_answers(side, accuracy)) for side in (baseline, steered)]
            shown = min(answers_shown, *map(len, answers))
            content = {
                "question": _prompt(baseline) or _question_text(baseline),
                "target": str(baseline.get("target", "")),
                "plain": answers[0][:shown],
                "steered": answers[1][:shown],
            }
            packed = gzip.compress(json.dumps(content).encode("ascii"), compresslevel=6, mtime=0)
            yield base64.b64encode(packed).decode("ascii")

    parts = PAGES.get_template("questions.html").stream(
        title=f"{row.run.task}: baseline and {row.record['intervention']}",
        about=f"{row.record['model']} · {plural(len(pair.keys), 'question')} that both runs answered. Reasoning words "
        "are marked; the keys j and k go on and back.",
        report=report,
        texts=texts(),
        data={"words": words.words, "forms": words.forms, "questions": overview},
    )
    with path.open("w", encoding="utf-8") as page:
        page.writelines(parts)


def _overview(
    baseline: Mapping[str, Any], steered: Mapping[str, Any], recorded: Sequence[Mapping[str, Any]], accuracy: str
) -> dict[str, Any]:
    first = [next(answer_texts(row), "") for row in (baseline, steered)]
    return {
        "id": baseline["doc_id"],
        "question": _question_text(baseline),
        "target": str(baseline.get("target", "")),
        "answers": min(numbers["n_answers"] for numbers in recorded),
        "same": recorded[0]["digests"] == recorded[1]["digests"],
        "differs": len(os.path.commonprefix(first)),
        **{
            side: {
                **_metrics(row, accuracy),
                "allTokens": row.get("completion_tokens", 0.0) * numbers["n_answers"],
                "words": numbers["words"],
            }
            for side, row, numbers in zip(("plain", "steered"), (baseline, steered), recorded, strict=True)
        },
    }


def _metrics(numbers: Mapping[str, Any], accuracy: str) -> dict[str, Any]:
    return {"accuracy": numbers.get(accuracy)} | {name: numbers.get(metric) for name, metric in METRICS.items()}


def _question_text(row: Mapping[str, Any]) -> str:
    doc = row.get("doc") if isinstance(row.get("doc"), Mapping) else {}
    texts = [doc[name] for name in (*QUESTION_FIELDS, *doc) if isinstance(doc.get(name), str)]
    return next(filter(None, texts), _prompt(row))


def _prompt(row: Mapping[str, Any]) -> str:
    # lm-eval logs the arguments of a question's requests as {"gen_args_0": {"arg_0": prompt, …}, …}.
    for request in (row.get("arguments") or {}).values():
        return str(request.get("arg_0", ""))
    return ""


def _answers(row: Mapping[str, Any], accuracy: str) -> Iterator[dict[str, Any]]:
    texts = list(answer_texts(row))
    repeats = row.get("repeats")
    numbers = repeats if isinstance(repeats, list) and len(repeats) == len(texts) else [row] * len(texts)
    for text, metrics in zip(texts, numbers, strict=True):
        yield {"text": text, **_metrics(metrics, accuracy)}
