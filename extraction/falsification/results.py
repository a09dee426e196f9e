"""The files of the test: tables, what was measured on each text, a picture, and the record of the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from reasonscore.results import CSV
from safetensors.numpy import save_file

from falsification.experiment import Finding
from falsification.material import Experiment, PerText
from falsification.statistics import Estimate
from falsification.tokens import NGram
from falsification.verdict import ENOUGH, EXPLAINED, THRESHOLDS, compared_length
from transformer_lens_r1.shared.files import write_json

TABLE, STRATEGIES_TABLE, PER_TEXT = "falsification.csv", "strategies.csv", "falsification.safetensors"
PICTURE, RUN = "falsification.png", "falsification.json"
COLOURS = {"token": "#c8553d", "mixed": "#e09f3e", "context": "#33658a", "unclear": "#6c757d"}


@dataclass(frozen=True)
class Tested:
    """A feature that was tested."""

    feature: int
    rank: int
    """By ReasonScore, from 1."""
    score: float
    matched_to: int | None
    """The top feature that this one is the null of; None for a top feature."""
    finding: Finding

    @property
    def best(self) -> str:
        """The strategy that decided, else the best by ours, else by Ma et al.; empty if nothing was injected."""
        finding = self.finding
        if finding.by in finding.recovered:
            return finding.by
        recovered = {name: rho.value for name, rho in finding.recovered.items() if not math.isnan(rho.value)}
        if recovered:
            return max(recovered, key=lambda name: recovered[name])
        return finding.ma.strategy if finding.ma else ""

    @property
    def compared(self) -> Estimate:
        """The AUROC that the verdict goes by: of top tokens, or of top bigrams."""
        return self.finding.auroc[compared_length(self.finding.by)]


def _interval(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def table_of(tested: Sequence[Tested], decode: Callable[[NGram], str]) -> pd.DataFrame:
    """One row for each feature; what is not defined is empty, and `notes` says why."""
    rows = []
    for one in tested:
        finding, best = one.finding, one.best
        nothing = Estimate(math.nan, math.nan, math.nan)
        rows.append(
            {
                "feature": one.feature,
                "rank": one.rank,
                "score": one.score,
                "matched_to": one.matched_to,
                "verdict": finding.verdict,
                "by": finding.by,
                **_interval("r2_token", finding.r2[1]),
                **_interval("r2_pair", finding.r2[2]),
                "best_strategy": best,
                **_interval("recovered", finding.recovered.get(best, nothing)),
                **_interval("recovered_untouched", finding.recovered_untouched.get(best, nothing)),
                "p_adjusted": finding.p_adjusted.get(best, math.nan),
                "on_tokens": finding.on_tokens,
                **_interval("stays", finding.stays),
                **_interval("auroc", finding.auroc[1]),
                **_interval("auroc_bigrams", finding.auroc[2]),
                "ma_class": finding.ma.kind if finding.ma else "",
                "ma_d": finding.ma.d if finding.ma else math.nan,
                "ma_p": finding.ma.p if finding.ma else math.nan,
                "ma_strategy": finding.ma.strategy if finding.ma else "",
                "tokens": " ".join(decode(gram) for gram in finding.tokens.top),
                "notes": "; ".join(finding.notes),
            }
        )
    return pd.DataFrame(rows).astype({"matched_to": "Int64"})


def table_of_strategies(tested: Sequence[Tested]) -> pd.DataFrame:
    """One row for each feature and strategy that could be tried."""
    return pd.DataFrame(
        {
            "feature": one.feature,
            "strategy": name,
            **_interval("recovered", rho),
            **_interval("recovered_untouched", one.finding.recovered_untouched[name]),
            "p_adjusted": one.finding.p_adjusted[name],
        }
        for one in tested
        for name, rho in one.finding.recovered.items()
    )


def draw(path: Path, tested: Sequence[Tested]) -> None:
    """Recovered share against AUROC, verdicts by colour; matched features are hollow.

    Features whose recovered share is not defined are on the left, by what the pair of tokens explains of them.
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2))
    left_out = 0
    for one in tested:
        auroc, rho = one.compared, one.finding.recovered.get(one.best)
        defined = rho is not None and not math.isnan(rho.value)
        across = rho if defined else one.finding.r2[2]
        if math.isnan(auroc.value) or math.isnan(across.value):
            left_out += 1
            continue
        colour = COLOURS[one.finding.verdict]
        (right if defined else left).errorbar(
            across.value, auroc.value, xerr=_span(across), yerr=_span(auroc), fmt="o", color=colour, markersize=5,
            elinewidth=0.8, alpha=0.9, markerfacecolor="white" if one.matched_to is not None else colour,
        )  # fmt: skip
    for verdict, colour in COLOURS.items():
        right.plot([], [], "o", color=colour, label=verdict)
    if any(one.matched_to is not None for one in tested):
        right.plot([], [], "o", color="black", markerfacecolor="white", label="matched feature")
    for axes, threshold in ((left, EXPLAINED), (right, ENOUGH)):
        axes.axvline(threshold, color="grey", linestyle="--", linewidth=0.8)
        axes.axhline(0.5, color="grey", linestyle="--", linewidth=0.8)
        axes.set_xlim(min(-0.1, axes.get_xlim()[0]), max(1.1, axes.get_xlim()[1]))
        axes.grid(alpha=0.25)
    left.set_ylim(-0.05, 1.05)
    left.set_ylabel("AUROC: the same tokens in reasoning against ordinary text")
    left.set_xlabel("explained by the pair of tokens (R²)")
    left.set_title("recovered share not defined", fontsize=11)
    right.set_xlabel("share of the activation in reasoning text that its tokens recover in ordinary text")
    title = "Does the token decide, or the context?"
    right.set_title(f"{title} ({left_out} features left out: no AUROC)" if left_out else title, fontsize=11)
    right.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _span(estimate: Estimate) -> list[list[float]]:
    """The two arms of an error bar."""
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def write_results(
    folder: Path,
    tested: Sequence[Tested],
    experiment: Experiment,
    measured: PerText,
    decode: Callable[[NGram], str],
    record: dict[str, Any],
) -> None:
    """Write everything but the page into a folder.

    Args:
        folder: that is there.
        tested: in the order of the experiment's features.
        experiment: what was measured.
        measured: on each text.
        decode: an n-gram's text.
        record: what is known of the run besides.
    """
    table_of(tested, decode).to_csv(folder / TABLE, **CSV)
    table_of_strategies(tested).to_csv(folder / STRATEGIES_TABLE, **CSV)
    arrays = {
        "features": np.array([one.feature for one in tested]),
        "ordinary_ids": experiment.ordinary_texts,
        "reasoning_ids": experiment.reasoning_texts,
        **measured.arrays(),
    }
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / PER_TEXT)
    draw(folder / PICTURE, tested)
    write_json(folder / RUN, {"thresholds": THRESHOLDS, "strategies": experiment.settings.strategies, **record})


def print_verdicts(tested: Sequence[Tested], *, most: int = 20) -> None:
    """The verdicts of the best features, and how many features got which, on the terminal."""
    top = [one for one in tested if one.matched_to is None]
    print("\n rank  feature  verdict  recovered  AUROC  Ma et al.")
    for one in top[:most]:
        rho = one.finding.recovered[one.best].value if one.best else math.nan
        kind = one.finding.ma.kind if one.finding.ma else "–"
        shown = ("–" if math.isnan(value) else f"{value:.2f}" for value in (rho, one.compared.value))
        print("{:>5} {:>8}  {:<7} {:>10} {:>6}  {}".format(one.rank, one.feature, one.finding.verdict, *shown, kind))
    for name, group in (("top", top), ("matched", [one for one in tested if one.matched_to is not None])):
        counts = Counter(one.finding.verdict for one in group)
        if group:
            print(f"{name}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
