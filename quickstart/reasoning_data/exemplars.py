"""Worked exemplars that people wrote, from the task files that lm-eval ships (nothing is downloaded).

The sources are the chain-of-thought prompts of BIG-Bench-Hard, of MMLU (as in Flan) and of GSM8K.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_lens_r1.shared.errors import UserError

BBH = "bbh/cot_fewshot"
MMLU = "mmlu/flan_cot_fewshot"
GSM8K = "gsm8k/gsm8k-cot.yaml"
MINIMUM = 150  # exemplars that any lm-eval of this generation has; fewer means that its files have moved

# MMLU's subjects that OpenThoughts has a domain for. Abstract algebra is left out: its file is cut in the wrong places.
SUBJECT_DOMAINS = {
    "anatomy": "biology",
    "college_biology": "biology",
    "high_school_biology": "biology",
    "medical_genetics": "biology",
    "virology": "biology",
    "nutrition": "biology",
    "college_chemistry": "chemistry",
    "high_school_chemistry": "chemistry",
    "astronomy": "physics",
    "college_physics": "physics",
    "conceptual_physics": "physics",
    "electrical_engineering": "physics",
    "high_school_physics": "physics",
    "college_mathematics": "math",
    "elementary_mathematics": "math",
    "high_school_mathematics": "math",
    "high_school_statistics": "math",
    "formal_logic": "puzzle",
    "logical_fallacies": "puzzle",
}
LEFT_OUT = {"abstract_algebra"}


@dataclass(frozen=True)
class Exemplar:
    """A question and the worked answer that a person wrote for it."""

    question: str
    reasoning: str
    answer: str  # the closing sentence, which names the answer
    domain: str | None  # of OpenThoughts; None where it has none that fits
    source: str


def load_exemplars() -> list[Exemplar]:
    """All different exemplars, in the order of their files.

    Raises:
        UserError: lm-eval is not installed, or holds fewer than `MINIMUM` of them.
    """
    spec = importlib.util.find_spec("lm_eval")  # finds the folder without importing the package, which takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lm-eval is not installed, and the exemplars come from its files: run setup.sh first")
    tasks = Path(spec.submodule_search_locations[0]) / "tasks"
    different = {exemplar.question: exemplar for exemplar in _read_tasks(tasks)}
    if len(different) < MINIMUM:
        raise UserError(
            f"found {len(different)} worked exemplars under {tasks}, expected at least {MINIMUM}: install the lm-eval "
            "that requirements.txt names"
        )
    return list(different.values())


def _read_tasks(tasks: Path) -> Iterator[Exemplar]:
    for path in sorted((tasks / BBH).glob("[a-z]*.yaml")):
        for sample in _samples(path):
            yield from _exemplar(sample["input"], sample["target"], "puzzle", f"BIG-Bench-Hard/{path.stem}")
    for path in sorted((tasks / MMLU).glob("mmlu_*.yaml")):
        subject = path.stem.removeprefix("mmlu_")
        if subject not in LEFT_OUT:
            for sample in _samples(path):
                domain = SUBJECT_DOMAINS.get(subject)
                yield from _exemplar(sample["question"], sample["target"], domain, f"MMLU-CoT/{subject}")
    if (tasks / GSM8K).is_file():
        for sample in _samples(tasks / GSM8K):
            yield from _exemplar(sample["question"], sample["target"], "math", "GSM8K-CoT")


def _samples(path: Path) -> list[dict[str, Any]]:
    import yaml

    # BaseLoader: every value is text, and tags that name Python functions are not followed.
    task = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return task.get("fewshot_config", {}).get("samples", [])


def _exemplar(question: str, target: str, domain: str | None, source: str) -> Iterator[Exemplar]:
    reasoning = " ".join(target.split(" ")).strip().removeprefix("Let's think step by step.").strip()
    position = max(reasoning.rfind("So the answer is"), reasoning.rfind("The answer is"))
    if position <= 0 or (source.startswith("MMLU") and "(A)" not in question):
        return  # no closing answer: the file is cut in the wrong place
    yield Exemplar(
        question.strip(), reasoning[:position].strip(), reasoning[position:].strip(), domain, f"lm-eval: {source}"
    )
