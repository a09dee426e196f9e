"""The files of the search: a table, a picture, a vocabulary for compute_score.py, and the record of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from adjustText import adjust_text
from matplotlib.figure import Figure  # not pyplot, which looks for a display and keeps figures

from transformer_lens_r1.shared.files import write_json
from transformer_lens_r1.shared.vocabulary import word_of
from vocabulary_search.log_odds import choose_entries, spellings

TABLE, PICTURE, VOCABULARY, RUN = "reasoning_words.csv", "reasoning_words.png", "reason_tokens.json", "run.json"
BLUE, RED, GREY = "#33658a", "#c8553d", "#adb5bd"
LABELLED = 10
"""Of the chosen entries, so many have their name in the picture."""


def write_results(
    folder: Path, table: pd.DataFrame, reference: Sequence[str], top: int, record: dict[str, Any]
) -> None:
    """Write everything to an empty folder.

    Args:
        folder: where to.
        table: what `rank_entries` gave.
        reference: the spellings of the vocabulary that is compared.
        top: how many entries to choose for the new one.
        record: what run.json says besides the ranks.
    """
    chosen = choose_entries(table, top)
    marked = reference_ranks(table, reference)
    table.assign(chosen=table["entry"].isin(chosen)).to_csv(folder / TABLE, index=False, float_format="%.6g")
    draw(folder / PICTURE, table, chosen, list(marked))
    write_json(folder / VOCABULARY, [spelling for entry in chosen for spelling in spellings(entry)])
    write_json(folder / RUN, {**record, "entries": len(table), "ranks_of_the_vocabulary_compared": marked})


def reference_ranks(table: pd.DataFrame, reference: Sequence[str]) -> dict[str, int | None]:
    """The rank of each word of another vocabulary; None for one that is not in the table."""
    ranks = dict(zip(table["entry"], table["rank"].tolist(), strict=True))
    words = dict.fromkeys(" ".join(word_of(spelling).split()) for spelling in reference)
    return {word: ranks.get(word) for word in words}


def summary(table: pd.DataFrame, reference: Sequence[str], top: int) -> list[str]:
    """Lines for the terminal: the chosen entries, and where the words of the other vocabulary stand."""
    rows = table.set_index("entry")
    chosen = choose_entries(table, top)
    lines = [f"chosen, {len(chosen)} of {len(table):,} words and phrases, by z:", "  " + ", ".join(chosen)]
    lines.append("the vocabulary compared, per million words in reasoning, in solutions and in the language at large:")
    for word, rank in reference_ranks(table, reference).items():
        if rank is None:
            lines.append(f"  {word}: too rare to be ranked, or no word or phrase of up to three words")
            continue
        row = rows.loc[word]
        general = "" if pd.isna(row.general_per_million) else f" / {row.general_per_million:,.0f}"
        lines.append(
            f"  {word}: rank {rank:,}, z {row.z:,.1f}, {row.reasoning_per_million:,.0f} / "
            f"{row.solution_per_million:,.0f}{general}"
        )
    return lines


def draw(path: Path, table: pd.DataFrame, chosen: Sequence[str], marked: Sequence[str]) -> None:
    """z against the frequency in reasoning: all that marks it, the chosen ones, and the vocabulary compared."""
    figure = Figure(figsize=(9, 6), dpi=130, layout="constrained")
    axes = figure.subplots()
    # What marks solutions is left out, unless it is in the vocabulary compared. The axis of frequencies is logarithmic.
    shown = ((table["z"] > 0) | table["entry"].isin(marked)) & (table["reasoning_count"] > 0)
    rows = table[shown].set_index("entry")
    groups = (
        ("what marks reasoning", GREY, 5, rows.index),
        (f"the {len(chosen)} chosen", BLUE, 14, [entry for entry in chosen if entry not in marked]),
        ("the vocabulary compared", RED, 22, [entry for entry in marked if entry in rows.index]),
    )
    labels = []
    for name, colour, size, entries in groups:
        points = rows.loc[list(entries)]
        axes.scatter(points["reasoning_per_million"], points["z"], s=size, color=colour, label=name, linewidths=0)
        named = points if colour == RED else points[:0] if colour == GREY else points[:LABELLED]
        for entry, frequency, z in zip(named.index, named["reasoning_per_million"], named["z"], strict=True):
            labels.append(axes.text(frequency, z, entry.replace("$", r"\$"), fontsize=8, color=colour))
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xlabel("occurrences per million words of reasoning")
    axes.set_ylabel("z of the log-odds, reasoning against solutions")
    axes.legend(frameon=False, loc="upper left")
    figure.draw_without_rendering()  # the axes have their final size from here on
    # A limit in rounds, not in seconds: the same table gives the same picture.
    adjust_text(
        labels,
        ax=axes,
        iter_lim=500,
        expand=(1.2, 1.4),
        arrowprops={"arrowstyle": "-", "color": "grey", "linewidth": 0.5},
    )
    figure.savefig(path, format="png")
