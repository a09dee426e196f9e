"""Which plain run a steered one is compared with, and what stands in the way of a claim from the two."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paired_statistics import MIN_DISCORDANT, MIN_QUESTIONS
from run_files import SCORING_CODE, Question, Run

MAX_TRUNCATED = 0.05
"""Share of cut-off answers above which their mean length says more about the limit than about the model."""
SHOWN_CHARACTERS = 40
SURROUNDINGS = (
    "lm-eval version", "transformers version", "vLLM version", "torch version", "device", "GPU", "batch size", "limit",
)  # fmt: skip
"""Settings that change answers by rounding, or only which questions are answered: of two plain runs one that differs in
these is the better partner than one that samples or scores differently."""


@dataclass(frozen=True)
class Pair:
    """A steered run and the plain run of the same task and model that it is compared with."""

    steered: Run
    plain: Run | None
    refused: tuple[str, ...]
    """Why the two are not compared at all; empty where they are."""
    marked: tuple[str, ...]
    """Why their difference may not be the intervention's alone."""
    keys: tuple[str, ...]
    """The questions that both answered, in the order of the steered run; empty where they are not compared."""

    @property
    def questions(self) -> list[tuple[Question, Question]]:
        """(plain, steered) of every shared question."""
        if self.plain is None:
            return []
        return [(self.plain.questions[key], self.steered.questions[key]) for key in self.keys]

    @property
    def single(self) -> bool:
        """Whether both runs answered each question once."""
        return all(a.n_answers == b.n_answers == 1 for a, b in self.questions)


def pair_runs(runs: Sequence[Run]) -> list[Pair]:
    """Every steered run with the plain run of the same task and model that fits best.

    That is the one with the fewest reasons against any comparison, then with the most questions in common, the fewest
    settings of sampling, model and scoring that differ, the fewest versions and other surroundings, and the latest.
    """
    plain_runs = [run for run in runs if not run.steered]
    names = distinct_names(run.model for run in runs)
    return [_pair(run, plain_runs, names) for run in runs if run.steered]


def _pair(steered: Run, plain_runs: Iterable[Run], names: Mapping[str, str]) -> Pair:
    same_task = [plain for plain in plain_runs if plain.task == steered.task]
    candidates = [plain for plain in same_task if plain.model == steered.model and plain.revision == steered.revision]
    if not candidates:
        others = sorted({model_name(plain, names) for plain in same_task})
        reason = f"no plain run of {model_name(steered, names)} on {steered.task}"
        return Pair(steered, None, (reason + (f", only of {', '.join(others)}" if others else ""),), (), ())

    def distance(plain: Run) -> tuple[int, int, int, int]:
        differing = differing_settings([steered, plain])
        around = sum(name in SURROUNDINGS for name in differing)
        return len(_refusals(steered, plain)), -_shared(steered, plain), len(differing) - around, around

    nearest = min(sorted(candidates, key=lambda run: run.date, reverse=True), key=distance)
    refused = _refusals(steered, nearest)
    keys = () if refused else tuple(key for key in steered.questions if key in nearest.questions)
    return Pair(steered, nearest, refused, () if refused else _marks(steered, nearest), keys)


def model_name(run: Run, names: Mapping[str, str]) -> str:
    """For people: with the revision where it is not the main one.

    Args:
        run: whose model.
        names: what `distinct_names` gave.
    """
    return names[run.model] + ("" if run.revision == "main" else f"@{run.revision}")


def _shared(steered: Run, plain: Run) -> int:
    return sum(key in plain.questions for key in steered.questions)


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings in which runs differ; which code scored the answers only where all say so."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return [
        name
        for name, found in values.items()
        if any(value != found[0] for value in found) and not (name == SCORING_CODE and None in found)
    ]


def _refusals(steered: Run, plain: Run) -> tuple[str, ...]:
    refused = []
    for name, value in steered.requirements.items():
        other = plain.requirements.get(name)
        # The model's commit and size are not known everywhere, for instance without a network.
        if value != other and not (name in ("model commit", "parameters of the model") and None in (value, other)):
            refused.append(_difference(name, other, value))
    if not refused:
        missing = [run for run in (plain, steered) if not run.questions]
        if missing:
            which = " and ".join("the steered run" if run.steered else "the plain run" for run in missing)
            refused.append(f"{which} logged no samples (--log_samples)")
        elif not any(key in plain.questions for key in steered.questions):
            refused.append("no question in common with the plain run: other data or other prompts")
    return tuple(refused)


def _marks(steered: Run, plain: Run) -> tuple[str, ...]:
    marks = [
        _difference(name, plain.settings.get(name), steered.settings.get(name))
        for name in differing_settings([steered, plain])
    ]
    shared = _shared(steered, plain)
    if shared < max(len(steered.questions), len(plain.questions)):
        marks.append(f"compared over the {plural(shared, 'question')} that both runs answered")
    return tuple(dict.fromkeys(marks))


def _difference(name: str, plain: Any, steered: Any) -> str:
    if name in ("scoring", SCORING_CODE):
        return "answers are scored by other code"
    if name == "judge" and isinstance(plain, Mapping) and isinstance(steered, Mapping):
        keys = [key for key in plain if plain[key] != steered.get(key)]
        plain, steered = ({key: judge.get(key) for key in keys} for judge in (plain, steered))
    paths = distinct_names(value for value in (plain, steered) if isinstance(value, str) and os.path.isabs(value))
    plain, steered = (paths.get(value, value) if isinstance(value, str) else value for value in (plain, steered))
    return f"{name}: {shown_value(plain)} (plain), {shown_value(steered)} (steered)"


def plural(number: int, noun: str) -> str:
    """E.g. "1 question", "2 questions"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def shown_value(value: Any) -> str:
    """A setting's value in a few words."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        text = ", ".join(f"{name} {shown_value(item)}" for name, item in value.items())
    else:
        text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def run_warnings(run: Run) -> list[str]:
    """What a run alone cannot support."""
    warnings = []
    if run.n_questions < MIN_QUESTIONS:
        warnings.append(f"{plural(run.n_questions, 'question')}, fewer than the {MIN_QUESTIONS} that an interval needs")
    if run.questions and len(run.questions) != run.n_questions:
        warnings.append(f"its samples file holds {len(run.questions)} of {plural(run.n_questions, 'question')}")
    if share := _cut_off(run):
        warnings.append(f"the token limit cut off {share} of the answers: their length is a lower bound")
    if run.unrecorded:
        warnings.append("steered by other code: its results file does not record the intervention")
    elif run.steered and not run.steered_positions:
        warnings.append("nothing in its results file says that any position was steered")
    return warnings


def _cut_off(run: Run) -> str | None:
    """The share of its answers that the token limit cut off; None where that is too small to matter."""
    truncated = run.metrics.get("truncated", 0.0)
    return f"{100 * truncated:.0f} %" if truncated > MAX_TRUNCATED else None


def pair_warnings(pair: Pair, discordant: int | None) -> list[str]:
    """What the comparison cannot support: refusals, marks, too little data.

    Args:
        pair: of the runs.
        discordant: questions that changed sides, None where there is no test.
    """
    warnings = [f"not compared: {reason}" for reason in pair.refused]
    warnings += pair.marked
    if pair.keys and pair.plain and (share := _cut_off(pair.plain)):
        warnings.append(
            f"the token limit cut off {share} of the plain run's answers: its length is a lower bound, and the "
            "change in length is biased"
        )
    if pair.keys and len(pair.keys) < min(MIN_QUESTIONS, pair.steered.n_questions):
        warnings.append(
            f"{plural(len(pair.keys), 'question')} compared, fewer than the {MIN_QUESTIONS} that an interval needs"
        )
    if discordant is not None and discordant < MIN_DISCORDANT:
        warnings.append(
            f"{plural(discordant, 'question')} changed between right and wrong; the exact test cannot reach 5 % with "
            f"fewer than {MIN_DISCORDANT}"
        )
    return warnings


def distinct_names(names: Iterable[str]) -> dict[str, str]:
    """Hub ids as they are; of local folders as many last parts as tell them apart, because a report may be published.

    Two folders of the same name in two places get two names.
    """
    names = sorted(set(names))
    shown = {name: name for name in names if not os.path.isabs(name)}
    folders = [Path(name) for name in names if os.path.isabs(name)]
    for folder in folders:
        for n_parts in range(1, len(folder.parts) + 1):
            end = folder.parts[-n_parts:]
            if not any(other.parts[-n_parts:] == end for other in folders if other != folder):
                break
        candidate = os.path.join(*end)
        shown[str(folder)] = str(folder) if candidate in shown.values() else candidate
    return shown
