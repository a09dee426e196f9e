"""Problems of the reasoning-gym package: worked school problems whose steps check, and short questions."""

import random
from importlib.metadata import version

from reasoning_data.trace import is_true, statements

# Data sets with short questions in plain language, each generated in well under a second.
SHORT_QUESTIONS = (
    "aiw", "base_conversion", "basic_arithmetic", "caesar_cipher", "calendar_arithmetic", "chain_sum",
    "count_primes", "family_relationships", "fraction_simplification", "gcd", "lcm", "leg_counting",
    "letter_counting", "number_filtering", "number_sequence", "prime_factorization", "products",
    "simple_equations", "spell_backward", "syllogism", "time_intervals", "word_sorting",
)  # fmt: skip


def source(dataset: str) -> str:
    """How rows of a data set of reasoning-gym are labelled."""
    return f"generated: reasoning-gym {version('reasoning-gym')} {dataset}"


def worked_problems(rng: random.Random, count: int) -> list[tuple[str, str, str]]:
    """``count`` problems of gsm_symbolic as (question, worked solution, answer).

    Some of its worked solutions contain wrong or empty steps ("48=48"): only those are taken in which every sign of
    equality belongs to a true arithmetic statement with something to compute, and the last line is the answer.
    """
    import reasoning_gym

    problems: dict[str, tuple[str, str, str]] = {}
    dataset = reasoning_gym.create_dataset("gsm_symbolic", size=40 * count, seed=rng.randrange(2**31))
    for entry in dataset:
        question = entry["question"].partition(" Give the result as your final answer.")[0].strip()
        worked, mark, result = entry["metadata"]["answer_cot"].rpartition("####")
        lines = [line.strip() for line in worked.strip().splitlines()]
        if mark and result.strip() == entry["answer"] and _checks(worked):
            problems[question] = (question, "\n".join(lines), entry["answer"])
        if len(problems) == count:
            break
    return list(problems.values())


def _checks(worked: str) -> bool:
    found = statements(worked.replace("/", "÷"))
    computed = all(is_true(sides) and len(set(sides)) == len(sides) for sides in found)
    return len(found) >= 2 and computed and sum(len(sides) - 1 for sides in found) == worked.count("=")


def short_questions(rng: random.Random, count: int) -> list[tuple[str, str, str]]:
    """``count`` questions as (question, answer, data set); each answer gets full marks from its own data set."""
    import reasoning_gym

    share = -(-count // len(SHORT_QUESTIONS))
    questions = []
    for name in SHORT_QUESTIONS:
        dataset = reasoning_gym.create_dataset(name, size=share, seed=rng.randrange(2**31))
        for entry in dataset:
            answer = entry["answer"]
            if isinstance(answer, str) and dataset.score_answer(answer, entry) == 1.0:
                questions.append((entry["question"].strip(), answer, name))
    rng.shuffle(questions)
    return questions[:count]
