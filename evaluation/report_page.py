"""The report as one HTML page that opens without a network: table, warnings, figures, words, and links to questions."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from question_pages import asset
from report_figures import Picture
from run_pairs import plural
from summary_rows import Row
from summary_text import (
    NOTHING,
    WHO,
    by_k_cell,
    by_k_names,
    change,
    method,
    numbered_warnings,
    occurring_words,
    shown_columns,
)

from transformer_lens_r1.shared.files import atomic_file

HEADING = "Plain and steered evaluation"
REPORT_TITLE = f"<title>{HEADING}</title>"
"""By which an earlier report is known: it stands in the first lines of every page."""


def write_report_page(
    path: Path,
    rows: Sequence[Row],
    *,
    pictures: Sequence[Picture],
    left_out: Sequence[str],
    question_pages: Mapping[int, str],
    n_resamples: int,
    seed: int,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        rows: what `summarize` gave.
        pictures: shown in the page itself.
        left_out: why a figure is not there, in sentences.
        question_pages: for the places of rows that have one, the address of the page of their questions.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    steered = sum(row.run.steered for row in rows)
    tasks = plural(len({row.run.task for row in rows}), "task")
    about = f"{len(rows) - steered} plain and {plural(steered, 'steered run')} of {tasks}"
    sections = [_main_table(rows, question_pages), _warnings(rows), _figures(pictures, left_out)]
    sections += [_by_k_table(rows), _words_table(rows), _method(rows, n_resamples, seed)]
    page = Template(asset("report.html")).substitute(
        title=REPORT_TITLE,
        heading=HEADING,
        style=asset("report.css"),
        about=html.escape(about),
        sections="\n".join(filter(None, sections)),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _main_table(rows: Sequence[Row], question_pages: Mapping[int, str]) -> str:
    columns = {name: cell for name, cell in shown_columns(rows).items() if name not in WHO}
    warnings = numbered_warnings(rows)
    lines = []
    for place, row in enumerate(rows):
        numbers = [warnings.index(warning) + 1 for warning in row.warnings]
        beside = ", ".join(f'<a href="#warning-{n}">{n}</a>' for n in numbers)
        who = _title(row)
        if numbers:
            who += f' <span class="warned" title="{html.escape("; ".join(row.warnings))}">⚠ {beside}</span>'
        if place in question_pages:
            who += f'<br><a href="{html.escape(question_pages[place])}">answers side by side</a>'
        cells = "".join(_cell(cell(row)) for cell in columns.values())
        lines.append((row, f"{who}</th>{cells}"))
    return _table(columns, lines)


def _header(name: str) -> str:
    # "[95 %]" stays on one line, and so do the two sides of "→".
    name = html.escape(name).replace("[95 %]", "[95\u00a0%]").replace(" / ", "\u00a0/ ")
    return f'<th scope="col" class="number">{name}</th>'


def _cell(text: str) -> str:
    return f'<td class="number">{html.escape(text).replace(" [", "<br>[")}</td>'


def _table(columns: Iterable[str], lines: Sequence[tuple[Row, str]]) -> str:
    """A table with a heading above the rows of each task and model.

    Args:
        columns: their names, after the first, which says what was done.
        lines: each run and the inside of its row, which begins within the first cell.
    """
    parts = [f'<tr><th scope="col">intervention</th>{"".join(map(_header, columns))}</tr>']
    group = None
    for row, line in lines:
        if group != (row.run.task, row.model):
            group = (row.run.task, row.model)
            name = f"{html.escape(row.run.task)} · {html.escape(row.model)}"
            parts.append(f'<tr class="group"><th colspan="100" scope="colgroup"><span>{name}</span></th></tr>')
        parts.append(f'<tr class="{"steered" if row.run.steered else "plain"}"><th scope="row">{line}</tr>')
    head, *body = parts
    text = "\n".join(body)
    return f'<div class="wide" tabindex="0"><table>\n<thead>{head}</thead>\n<tbody>\n{text}\n</tbody>\n</table></div>'


def _warnings(rows: Sequence[Row]) -> str:
    items = [
        f'<li id="warning-{number}">{html.escape(warning)}</li>'
        for number, warning in enumerate(numbered_warnings(rows), 1)
    ]
    if not items:
        return ""
    return "<h2>Warnings</h2>\n" + '<ol class="warnings">\n' + "\n".join(items) + "\n</ol>"


def _figures(pictures: Sequence[Picture], left_out: Sequence[str]) -> str:
    if not pictures and not left_out:
        return ""
    shown = [
        f'<figure><img src="{picture.address}" alt="{html.escape(picture.caption)}">'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
    ]
    return "\n".join(["<h2>Figures</h2>", *shown, *(f'<p class="quiet">{html.escape(why)}</p>' for why in left_out)])


def _by_k_table(rows: Sequence[Row]) -> str:
    names = by_k_names(rows)
    if not names:
        return ""
    lines = [(row, f"{_who(row)}{''.join(_cell(by_k_cell(row, name)) for name in names)}") for row in rows if row.by_k]
    title = (
        "<h2>Coverage and majority of k answers</h2>\n"
        '<p class="quiet">In brackets the difference to the plain run, in points.</p>\n'
    )
    return title + _table(names, lines)


def _words_table(rows: Sequence[Row]) -> str:
    compared = [row for row in rows if row.word_rates]
    if not compared:
        return ""
    places, note = occurring_words(compared)
    heading = "<h2>Reasoning words per 1,000 tokens</h2>\n"
    if not places:
        return f'{heading}<p class="quiet">{html.escape(note)}</p>\n'
    lines = []
    for row in compared:
        cells = "".join(
            f'<td class="number">{rate.plain:.2f} → {rate.steered:.2f}<br><small class="quiet">'
            f"{html.escape(change(rate.change))}</small></td>"
            for rate in (row.word_rates[i] for i in places)
        )
        lines.append((row, _who(row) + cells))
    title = (
        f"{heading}"
        '<p class="quiet">Plain → steered, over all questions compared; below, the relative change with its interval '
        f"({NOTHING} where the plain run never uses the word). {html.escape(note)}</p>\n"
    )
    return title + _table([compared[0].word_rates[i].word for i in places], lines)


def _who(row: Row) -> str:
    return f"{_title(row)}</th>"


def _title(row: Row) -> str:
    # "2 × 5.84" stays on one line.
    return html.escape(row.title).replace(" × ", "\u00a0×\u00a0")


def _method(rows: Sequence[Row], n_resamples: int, seed: int) -> str:
    sentences = method(rows, n_resamples=n_resamples, seed=seed)
    return f'<h2>How the numbers were made</h2>\n<p class="notes quiet">{html.escape(" ".join(sentences))}</p>'
