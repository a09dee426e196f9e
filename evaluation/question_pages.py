"""Single questions of a plain and a steered run side by side: a page that holds all of its texts.

Texts lie in the page compressed (gzip, base64), one block per question; the browser unpacks what is looked at. 500
answers of 32,000 tokens on each side make a page of tens of megabytes that opens at once.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, TextIO

from reasoning_words import WordCounter
from run_files import Question, Run, answer_texts
from run_pairs import plural
from summary_rows import Row

from transformer_lens_r1.shared.files import atomic_file

ASSETS = Path(__file__).resolve().parent / "assets"
QUESTION_FIELDS = ("problem", "Question", "question", "query", "text")
TEXTS_MARK = "$texts"


def asset(name: str) -> str:
    """A file of the pages."""
    return (ASSETS / name).read_text(encoding="utf-8")


def json_island(value: Any) -> str:
    """JSON that can stand in a script element: no text in it can end the element."""
    return json.dumps(value).replace("<", "\\u003c")


def write_question_page(path: Path, row: Row, words: WordCounter, *, report: str, answers_shown: int) -> None:
    """Write the page of a steered run that has a plain one.

    Args:
        path: of the page.
        row: its pair must have questions.
        words: whose counts the questions hold.
        report: address of the page of all runs, relative to this one.
        answers_shown: of a question that was answered several times, how many answers the page holds.
    """
    pair = row.pair
    assert pair is not None and pair.plain is not None
    title = f"{row.run.task}: plain and {row.intervention}"
    about = (
        f"{row.model} · {plural(len(pair.keys), 'question')} that both runs answered. Reasoning words are marked; "
        "the keys j and k go on and back."
    )
    # The overview comes before the texts in the page, but is only known after them.
    with tempfile.TemporaryFile("w+", encoding="ascii") as texts:
        overview = _write_texts(texts, pair.plain, row.run, pair.questions, answers_shown)
        data = {"words": words.words, "forms": words.forms, "questions": overview}
        values = {
            "title": html.escape(title),
            "about": html.escape(about),
            "report": html.escape(report),
            "style": asset("report.css"),
            "data": json_island(data),
            "script": asset("questions.js"),
        }
        head, tail = (Template(part).substitute(values) for part in asset("questions.html").split(TEXTS_MARK))
        texts.seek(0)
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as page:
            page.write(head)
            shutil.copyfileobj(texts, page)
            page.write(tail)


def _write_texts(
    file: TextIO, plain: Run, steered: Run, questions: Sequence[tuple[Question, Question]], answers_shown: int
) -> list[dict[str, Any]]:
    """Writes a block of texts for each question. Returns the overview of all questions."""
    overview = []
    for index, (a, b) in enumerate(questions):
        rows = plain.row(a), steered.row(b)
        overview.append(_overview(rows, (a, b), plain.accuracy_name))
        content = json.dumps(_texts(rows, plain.accuracy_name, answers_shown)).encode("ascii")
        block = base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode("ascii")
        file.write(f'<script id="texts-{index}" type="text/plain">{block}</script>\n')
    return overview


def _overview(
    rows: tuple[Mapping[str, Any], Mapping[str, Any]], questions: tuple[Question, Question], accuracy: str
) -> dict[str, Any]:
    plain, steered = (next(answer_texts(row), "") for row in rows)
    return {
        "id": rows[0]["doc_id"],
        "question": _question_text(rows[0]),
        "target": str(rows[0].get("target", "")),
        "answers": min(question.n_answers for question in questions),
        "same": questions[0].digests == questions[1].digests,
        "differs": len(os.path.commonprefix([plain, steered])),
        **{
            side: {
                "accuracy": question.metrics.get(accuracy),
                "tokens": question.metrics.get("completion_tokens"),
                "allTokens": question.metrics.get("completion_tokens", 0.0) * question.n_answers,
                "truncated": question.metrics.get("truncated"),
                "words": question.word_counts,
            }
            for side, question in zip(("plain", "steered"), questions, strict=True)
        },
    }


def _question_text(row: Mapping[str, Any]) -> str:
    doc = row.get("doc")
    doc = doc if isinstance(doc, Mapping) else {}
    named = next((doc[name] for name in QUESTION_FIELDS if isinstance(doc.get(name), str)), None)
    return named or next((value for value in doc.values() if isinstance(value, str)), _prompt(row))


def _prompt(row: Mapping[str, Any]) -> str:
    arguments = row.get("arguments")
    first = next(iter(arguments.values()), {}) if isinstance(arguments, Mapping) else {}
    return str(first.get("arg_0", "")) if isinstance(first, Mapping) else ""


def _texts(rows: tuple[Mapping[str, Any], Mapping[str, Any]], accuracy: str, answers_shown: int) -> dict[str, Any]:
    plain, steered = (list(_answers(row, accuracy)) for row in rows)
    shown = min(answers_shown, len(plain), len(steered))
    return {
        "question": _prompt(rows[0]) or _question_text(rows[0]),
        "target": str(rows[0].get("target", "")),
        "plain": plain[:shown],
        "steered": steered[:shown],
    }


def _answers(row: Mapping[str, Any], accuracy: str) -> Iterator[dict[str, Any]]:
    texts = list(answer_texts(row))
    repeats = row.get("repeats")
    numbers = repeats if isinstance(repeats, list) and len(repeats) == len(texts) else [row] * len(texts)
    for text, metrics in zip(texts, numbers, strict=True):
        yield {
            "text": text,
            "accuracy": metrics.get(accuracy),
            "tokens": metrics.get("completion_tokens"),
            "reasoning": metrics.get("reasoning_tokens"),
            "truncated": metrics.get("truncated"),
            "undecided": metrics.get("undecided"),
        }
