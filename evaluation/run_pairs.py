"""Which plain run a steered one is compared with, and what stands in the way of a claim from the two."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paired_statistics import MIN_DISCORDANT, MIN_QUESTIONS
from run_files import Question, Run

MAX_TRUNCATED = 0.05
"""Share of cut-off answers above which their mean length says more about the limit than about the model."""
SHOWN_CHARACTERS = 40


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
    """Every steered run with the plain run of the same task and model that differs least from it, then the latest."""
    plain_runs = [run for run in runs if not run.steered]
    return [_pair(run, plain_runs) for run in runs if run.steered]


def _pair(steered: Run, plain_runs: Iterable[Run]) -> Pair:
    same_task = [plain for plain in plain_runs if plain.task == steered.task]
    candidates = [plain for plain in same_task if plain.model == steered.model and plain.revision == steered.revision]
    if not candidates:
        others = sorted({_model_name(plain) for plain in same_task})
        reason = f"no plain run of {_model_name(steered)} on {steered.task}"
        return Pair(steered, None, (reason + (f", only of {', '.join(others)}" if others else ""),), (), ())

    def distance(plain: Run) -> tuple[int, int]:
        return len(_refusals(steered, plain)), len(_marks(steered, plain))

    nearest = min(sorted(candidates, key=lambda run: run.date, reverse=True), key=distance)
    refused = _refusals(steered, nearest)
    keys = () if refused else tuple(key for key in steered.questions if key in nearest.questions)
    return Pair(steered, nearest, refused, () if refused else _marks(steered, nearest), keys)


def _model_name(run: Run) -> str:
    return run.model if run.revision == "main" else f"{run.model}@{run.revision}"


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
        for name in dict.fromkeys([*steered.settings, *plain.settings])
        if plain.settings.get(name) != steered.settings.get(name)
    ]
    shared = sum(key in plain.questions for key in steered.questions)
    if shared < max(len(steered.questions), len(plain.questions)):
        marks.append(f"compared over the {shared} questions that both runs answered")
    return tuple(marks)


def _difference(name: str, plain: Any, steered: Any) -> str:
    if name == "scoring":
        return "answers are scored by other code"
    if name == "judge" and isinstance(plain, Mapping) and isinstance(steered, Mapping):
        keys = [key for key in plain if plain[key] != steered.get(key)]
        plain, steered = ({key: judge.get(key) for key in keys} for judge in (plain, steered))
    return f"{name}: {_shown(plain)} (plain), {_shown(steered)} (steered)"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        text = ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    else:
        text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def run_warnings(run: Run) -> list[str]:
    """What a run alone cannot support."""
    warnings = []
    if run.n_questions < MIN_QUESTIONS:
        warnings.append(f"{run.n_questions} questions, fewer than the {MIN_QUESTIONS} that an interval needs")
    if run.questions and len(run.questions) != run.n_questions:
        warnings.append(f"its samples file holds {len(run.questions)} of {run.n_questions} questions")
    truncated = run.metrics.get("truncated")
    if truncated is not None and truncated > MAX_TRUNCATED:
        warnings.append(f"the token limit cut off {truncated:.0%} of the answers: their length is a lower bound")
    if run.steered and not run.steered_positions:
        warnings.append("nothing in its results file says that any position was steered")
    return warnings


def pair_warnings(pair: Pair, discordant: int | None) -> list[str]:
    """What the comparison cannot support: refusals, marks, too little data.

    Args:
        pair: of the runs.
        discordant: questions that changed sides, None where there is no test.
    """
    warnings = [f"not compared: {reason}" for reason in pair.refused]
    warnings += pair.marked
    if pair.keys and len(pair.keys) < min(MIN_QUESTIONS, pair.steered.n_questions):
        warnings.append(f"{len(pair.keys)} questions compared, fewer than the {MIN_QUESTIONS} that an interval needs")
    if discordant is not None and discordant < MIN_DISCORDANT:
        warnings.append(
            f"{discordant} questions changed between right and wrong; the exact test cannot reach 5 % with "
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
