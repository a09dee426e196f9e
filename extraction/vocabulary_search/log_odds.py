"""Which words and phrases mark reasoning: log-odds with an informative Dirichlet prior (Monroe et al. 2008).

With y_w the occurrences of w among the n words of the reasoning, y'_w and n' those of the solutions, and the prior
α_w = ρ (y_w + y'_w), α_0 = ρ (n + n'):

    δ_w = ln (y_w + α_w) / (n + α_0 − y_w − α_w)  −  ln (y'_w + α_w) / (n' + α_0 − y'_w − α_w)
    z_w = δ_w / √(1 / (y_w + α_w) + 1 / (y'_w + α_w))

The prior draws both texts towards their common frequencies, the more the larger ρ. With ρ = 1 and texts of equal length
the odds in reasoning come out at most twice those in solutions, even of a word that these never use. A phrase is
treated like a word.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd


def log_odds(counts: np.ndarray, n_words: np.ndarray, prior_weight: float) -> tuple[np.ndarray, np.ndarray]:
    """δ and z, both float64 [w].

    Args:
        counts: occurrences in reasoning and in solutions, [w, 2].
        n_words: words in both, [2].
        prior_weight: ρ.
    """
    prior, prior_total = prior_weight * counts.sum(axis=1, keepdims=True), prior_weight * n_words.sum()
    inside = counts + prior  # [w, 2]
    outside = n_words + prior_total - inside
    delta = np.log(inside[:, 0] / outside[:, 0]) - np.log(inside[:, 1] / outside[:, 1])
    return delta, delta / np.sqrt((1 / inside).sum(axis=1))


def rank_entries(
    counts: Mapping[str, tuple[int, int]], n_words: tuple[int, int], *, prior_weight: float, language: str
) -> pd.DataFrame:
    """One row for each word or phrase, by z from the highest down.

    The column `general_per_million` is `wordfreq`'s frequency in the language at large: 0 for a word that it does not
    know, empty for a phrase, for which it would make one up from the words.
    """
    from wordfreq import word_frequency

    both, totals = np.array(list(counts.values()), dtype=np.float64), np.array(n_words, dtype=np.float64)
    delta, z = log_odds(both, totals, prior_weight)
    per_million = 1e6 * both / totals
    general = [np.nan if " " in entry else 1e6 * word_frequency(entry, language) for entry in counts]
    table = pd.DataFrame(
        {
            "entry": list(counts),
            "words": [entry.count(" ") + 1 for entry in counts],
            "z": z,
            "log_odds": delta,
            "reasoning_per_million": per_million[:, 0],
            "solution_per_million": per_million[:, 1],
            "general_per_million": general,
            "reasoning_count": both[:, 0].astype(int),
            "solution_count": both[:, 1].astype(int),
        }
    )
    table = table.sort_values(["z", "entry"], ascending=[False, True], ignore_index=True)
    table.insert(0, "rank", table.index + 1)
    return table


def choose_entries(table: pd.DataFrame, top: int) -> list[str]:
    """The best ``top`` that the reasoning uses more than the solutions, and a word more than the language at large."""
    more = (table["z"] > 0) & ~(table["reasoning_per_million"] <= table["general_per_million"])
    return table["entry"][more].head(top).tolist()


def spellings(entry: str) -> list[str]:
    """The spellings in which the vocabulary's file has each word: with and without a space and a capital."""
    capital = entry[0].upper() + entry[1:]
    return list(dict.fromkeys([entry, f" {entry}", capital, f" {capital}"]))  # some scripts have no capitals
