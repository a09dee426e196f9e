"""Which baseline a steered run is compared with, and what stands in the way of a claim from the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from report.labels import distinct_names, plural, shown_value
from report.paired_statistics import MIN_DISCORDANT, MIN_QUESTIONS
from report.runs import SCORING_CODE, Run

MAX_TRUNCATED = 0.05
"""Share of cut-off answers above which their mean length says more about the limit than about the model."""
SURROUNDINGS = (
    "lm-eval version", "transformers version", "vLLM version", "torch version", "device", "GPU", "batch size", "limit",
)  # fmt: skip
"""Settings that change answers by rounding, or only which questions are answered: of two baselines one that differs in
these is the better partner than one that samples or scores differently."""
NOT_ALWAYS_KNOWN = ("model commit", "parameters of the model", SCORING_CODE)
"""What some runs do not record, for instance without a network; not knowing is no difference."""


@dataclass(frozen=True)
class Pair:
    """A steered run and the baseline of the same task and model that it is compared with."""

    steered: Run
    baseline: Run | None
    refused: tuple[str, ...]
    """Why the two are not compared at all; empty if they are."""
    marked: tuple[str, ...]
    """Why their difference may not be the intervention's alone."""
    keys: pd.Index
    """The questions that both answered, in the order of the steered run; empty if they are not compared."""

    def sides(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What the baseline and the steered run logged of the questions that both answered."""
        assert self.baseline is not None
        return self.baseline.questions.loc[self.keys], self.steered.questions.loc[self.keys]

    def values(self, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[n, 1] of baseline and steered, over the questions for which both know the metric."""
        baseline, steered = (side.get(metric, pd.Series(dtype=float)) for side in self.sides())
        both = pd.concat([baseline, steered], axis=1).dropna().to_numpy(dtype=np.float64)
        return both[:, :1], both[:, 1:]


def model_name(run: Run, names: Mapping[str, str]) -> str:
    """What `distinct_names` calls the model, with the revision unless it is the main one."""
    return names[run.model] + ("" if run.revision == "main" else f"@{run.revision}")


def pair_runs(runs: Sequence[Run]) -> dict[Run, Pair]:
    """Every steered run with the baseline of the same task and model that fits best.

    That is the one with the fewest reasons against any comparison, then with the most questions in common, the fewest
    settings of sampling, model and scoring that differ, the fewest versions and other surroundings, and the latest.
    """
    names = distinct_names(run.model for run in runs)
    baselines = sorted((run for run in runs if not run.steered), key=lambda run: run.date, reverse=True)
    return {run: _pair(run, [b for b in baselines if b.task == run.task], names) for run in runs if run.steered}


def _pair(steered: Run, same_task: Sequence[Run], names: Mapping[str, str]) -> Pair:
    def distance(baseline: Run) -> tuple[int, int, int, int]:
        differing = differing_settings([steered, baseline])
        around = sum(name in SURROUNDINGS for name in differing)
        return len(_refusals(steered, baseline)), -len(_shared(steered, baseline)), len(differing) - around, around

    candidates = [run for run in same_task if (run.model, run.revision) == (steered.model, steered.revision)]
    if not candidates:
        others = sorted({model_name(baseline, names) for baseline in same_task})
        reason = f"no baseline of {model_name(steered, names)} on {steered.task}"
        return Pair(steered, None, (reason + (f", only of {', '.join(others)}" if others else ""),), (), pd.Index([]))
    nearest = min(candidates, key=distance)
    if refused := _refusals(steered, nearest):
        return Pair(steered, nearest, refused, (), pd.Index([]))
    return Pair(steered, nearest, (), _marks(steered, nearest), _shared(steered, nearest))


def _shared(steered: Run, baseline: Run) -> pd.Index:
    return steered.questions.index[steered.questions.index.isin(baseline.questions.index)]


def differing_settings(runs: Sequence[Run], kind: str = "settings") -> list[str]:
    """Names of the settings (or ``kind`` "requirements") in which runs differ, as far as they are known."""
    names = dict.fromkeys(name for run in runs for name in getattr(run, kind))
    values = {name: [getattr(run, kind).get(name) for run in runs] for name in names}
    return [
        name
        for name, found in values.items()
        if any(value != found[0] for value in found) and not (name in NOT_ALWAYS_KNOWN and None in found)
    ]


def _refusals(steered: Run, baseline: Run) -> tuple[str, ...]:
    if differing := differing_settings([steered, baseline], "requirements"):
        return tuple(_difference(name, baseline.requirements, steered.requirements) for name in differing)
    without = [name for name, run in (("baseline", baseline), ("steered run", steered)) if not len(run.questions)]
    if without:
        return (f"the {' and the '.join(without)} logged no samples (--log_samples)",)
    if not len(_shared(steered, baseline)):
        return ("no question in common with the baseline: other data or other prompts",)
    return ()


def _marks(steered: Run, baseline: Run) -> tuple[str, ...]:
    marks = [_difference(name, baseline.settings, steered.settings) for name in differing_settings([steered, baseline])]
    shared = len(_shared(steered, baseline))
    if shared < max(len(steered.questions), len(baseline.questions)):
        marks.append(f"compared over the {plural(shared, 'question')} that both runs answered")
    return tuple(marks)


def _difference(name: str, baseline: Any, steered: Any) -> str:
    values = baseline.get(name), steered.get(name)
    names = distinct_names(value for value in values if isinstance(value, str))
    before, after = (shown_value(names.get(value, value) if isinstance(value, str) else value) for value in values)
    return f"{name}: {before} (baseline), {after} (steered)"


def run_warnings(run: Run) -> Iterable[str]:
    """What a run alone cannot support."""
    if run.n_questions < MIN_QUESTIONS:
        yield f"{plural(run.n_questions, 'question')}, fewer than the {MIN_QUESTIONS} that an interval needs"
    if len(run.questions) not in (0, run.n_questions):
        yield f"its samples file holds {len(run.questions)} of {plural(run.n_questions, 'question')}"
    if share := _cut_off(run):
        yield f"the token limit cut off {share} of the answers: their length is a lower bound"
    if run.word_bias:
        if split := [word for word, tokens in run.word_bias["tokens"].items() if not tokens]:
            yield f"no token of the model is one of these words by itself, and they got no bias: {', '.join(split)}"
    elif run.features == ():
        yield "steered by other code: its results file does not record the intervention"
    elif run.steered and not run.steered_positions:
        yield "nothing in its results file says that any position was steered"


def _cut_off(run: Run) -> str | None:
    """The share of its answers that the token limit cut off; None if that is too small to matter."""
    truncated = run.metrics.get("truncated", 0.0)
    return f"{100 * truncated:.0f} %" if truncated > MAX_TRUNCATED else None


def pair_warnings(pair: Pair, discordant: int | None) -> Iterable[str]:
    """What the comparison cannot support: refusals, marks, too little data.

    Args:
        pair: of the runs.
        discordant: questions that changed sides, None if there is no test.
    """
    yield from (f"not compared: {reason}" for reason in pair.refused)
    yield from pair.marked
    if len(pair.keys) and pair.baseline and (share := _cut_off(pair.baseline)):
        yield (
            f"the token limit cut off {share} of the baseline's answers: its length is a lower bound, and the change "
            "in length is biased"
        )
    if 0 < len(pair.keys) < min(MIN_QUESTIONS, pair.steered.n_questions):
        yield f"{plural(len(pair.keys), 'question')} compared, fewer than the {MIN_QUESTIONS} that an interval needs"
    if discordant is not None and discordant < MIN_DISCORDANT:
        yield (
            f"{plural(discordant, 'question')} changed between right and wrong; the exact test cannot reach 5 % with "
            f"fewer than {MIN_DISCORDANT}"
        )
