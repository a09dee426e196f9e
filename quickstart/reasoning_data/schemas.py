"""Rows in the schemas of OpenThoughts-114k (config ``metadata``) and LMSYS-Chat-1M, from the sources of this folder."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from reasoning_data import (
    algebra_families,
    chemistry_biology_families,
    code_families,
    number_families,
    physics_families,
    puzzle_families,
    story_families,
)
from reasoning_data.exemplars import Exemplar
from reasoning_data.gym import short_questions, source, worked_problems
from reasoning_data.trace import Trace, Voice, boxed

FAMILIES: tuple[Callable[[Voice], Trace], ...] = (
    *number_families.FAMILIES,
    *algebra_families.FAMILIES,
    *story_families.FAMILIES,
    *puzzle_families.FAMILIES,
    *physics_families.FAMILIES,
    *chemistry_biology_families.FAMILIES,
    *code_families.FAMILIES * 5,  # one function, twelve tasks
)
GENERATED = "generated: quickstart"
DRAWS = 10  # a family whose problems are nearly used up is passed over after so many repeats


def traces(voice: Voice, seen: set[str]) -> Iterator[Trace]:
    """Endless traces of all families in turn; a problem whose text is in ``seen`` is drawn anew."""
    while True:
        for family in FAMILIES:
            for _ in range(DRAWS):
                trace = family(voice)
                if trace.problem not in seen:
                    seen.add(trace.problem)
                    yield trace
                    break


def openthoughts_rows(
    rng: random.Random, exemplars: list[Exemplar], count: int, seen: set[str]
) -> list[dict[str, str | None]]:
    """``count`` rows: the exemplars that have a domain, some worked problems of reasoning-gym, and generated traces.

    Args:
        rng: where every choice comes from.
        exemplars: natural exemplars; those without a domain are left to `lmsys_rows`.
        count: number of rows.
        seen: problems already used; those of the rows are added.
    """
    rows = [
        _openthoughts(e.question, e.reasoning, e.answer, e.answer, e.domain, e.source) for e in exemplars if e.domain
    ]
    rng.shuffle(rows)
    rows = rows[: count // 3]
    for question, worked, answer in worked_problems(rng, count // 20):
        solution = boxed(f"The answer is {answer}.", answer)
        rows.append(_openthoughts(question, worked, solution, answer, "math", source("gsm_symbolic")))
    seen.update(str(row["problem"]) for row in rows)
    for trace in traces(Voice(rng), seen):
        if len(rows) >= count:
            break
        row = _openthoughts(
            trace.problem, trace.reasoning, trace.solution, trace.answer, trace.domain, f"{GENERATED} {trace.family}"
        )
        rows.append(row | {"test_cases": trace.test_cases, "starter_code": trace.starter_code})
    rng.shuffle(rows)
    return rows


def _openthoughts(
    problem: str, reasoning: str, solution: str, answer: str, domain: str, source_name: str
) -> dict[str, str | None]:
    return {
        "problem": problem,
        "deepseek_reasoning": reasoning,
        "deepseek_solution": solution,
        "ground_truth_solution": answer,
        "domain": domain,
        "source": source_name,
        "test_cases": "",
        "starter_code": None,
    }


SYSTEM_MESSAGES = (
    "You are a patient tutor. Show your steps.",
    "You are a helpful assistant. Answer briefly.",
    "You check every result before you give it.",
)
THANKS = ("Thanks!", "Thank you.", "Great.", "Okay.", "Got it.", "I see.")
ASK_STEPS = ("How did you find that?", "Can you show me the steps?", "Are you sure? Please explain.", "Why is that so?")


def lmsys_rows(rng: random.Random, exemplars: list[Exemplar], count: int, seen: set[str]) -> list[dict[str, Any]]:
    """``count`` conversations about problems, over exemplars, and of short questions and answers.

    Args:
        rng: where every choice comes from.
        exemplars: natural exemplars; those with a domain are left to `openthoughts_rows`.
        count: number of conversations.
        seen: problems already used; those of the conversations are added.
    """
    natural = [exemplar for exemplar in exemplars if exemplar.domain is None]
    rng.shuffle(natural)
    natural = natural[: count // 2]
    short = short_questions(rng, count)
    supply = traces(Voice(rng), seen)
    rows = []
    while len(rows) < count:
        messages: list[tuple[str, str]] = []
        if natural and rng.random() < 0.4:
            taken = [natural.pop() for _ in range(min(len(natural), rng.choice((1, 1, 2))))]
            for exemplar in taken:
                messages += [("user", exemplar.question), ("assistant", f"{exemplar.reasoning} {exemplar.answer}")]
            model = taken[0].source.split("/")[0]
        elif short and rng.random() < 0.3:
            taken = [short.pop() for _ in range(min(len(short), rng.choice((2, 3, 4))))]
            for question, answer, _ in taken:
                messages += [("user", question), ("assistant", answer)]
            model = source(", ".join(sorted({name for *_, name in taken})))
        else:
            trace = next(supply)
            messages += [("user", trace.problem), ("assistant", trace.solution)]
            messages += [("user", rng.choice(ASK_STEPS)), ("assistant", trace.reasoning)]
            model = f"{GENERATED} {trace.family}"
        if rng.random() < 0.2:
            messages += [("user", rng.choice(THANKS)), ("assistant", "You are welcome.")]
        if rng.random() < 0.1:
            messages.insert(0, ("system", rng.choice(SYSTEM_MESSAGES)))
        rows.append(_conversation(rng, messages, model))
    rng.shuffle(rows)
    return rows


def _conversation(rng: random.Random, messages: list[tuple[str, str]], model: str) -> dict[str, Any]:
    return {
        "conversation_id": f"{rng.getrandbits(128):032x}",
        "model": model,  # who wrote the answers
        "conversation": [{"content": content, "role": role} for role, content in messages],
        "turn": sum(role == "user" for role, _ in messages),
        "language": "English",
        "openai_moderation": [],  # no moderation model was asked
        "redacted": False,
    }
