"""Prompts and answer checking of the tasks in `tasks/`: the functions that their YAML files name.

Checking is by `math-verify` (1/2 = 0.5 = \\frac12), not by comparing strings.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval_sae.completion import Completion

if TYPE_CHECKING:
    import datasets

MATH_PROMPT = "Please reason step by step, and put your final answer within \\boxed{{}}.\nProblem: {problem}\nAnswer:"
SHORT_MATH_PROMPT = "{problem} Explain in one or two sentences, and end with the answer."
GPQA_PROMPT = (
    "Answer the following multiple choice question. The last line of your response should be of the following "
    "format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before answering."
    "\n\n{Question}\n\nA) {choice1}\nB) {choice2}\nC) {choice3}\nD) {choice4}"
)
GPQA_SEED = 0
LETTERS = "ABCD"


def math_prompt(doc: Mapping[str, Any]) -> str:
    """The prompt of AIME-2024 and MATH-500."""
    return MATH_PROMPT.format(problem=doc["problem"])


def last_boxed(text: str) -> str | None:
    """What the last complete \\boxed{…} (or \\fbox{…}) of a text holds, nested braces included; None without one."""
    for match in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))):
        depth = 1
        for position in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[match.end() : position].strip()
    return None


def answers_agree(answer: str, expected: str) -> bool:
    """Whether two mathematical expressions mean the same, by math-verify."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    answer, expected = answer.strip(), expected.strip()
    if answer == expected:
        return True
    config = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    gold, found = (parse(f"\\boxed{{{text}}}", extraction_config=config) for text in (expected, answer))
    return bool(gold) and bool(found) and verify(gold, found)


def process_math(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Metrics of one completion: right where its last \\boxed{…}, else what follows its last "Answer:", is."""
    completion = results[0]
    answer = last_boxed(completion)
    if answer is None and (found := re.findall(r"(?i)answer\s*(?:is)?\s*:\**\s*([^\n]+)", completion)):
        answer = found[-1].strip(" *$.")
    right = answer is not None and answers_agree(answer, str(doc["answer"]))
    return {"exact_match": float(right), **length_metrics(completion)}


def short_math_prompt(doc: Mapping[str, Any]) -> str:
    """A prompt for models of some hundred million parameters, which make little of MATH_PROMPT."""
    return SHORT_MATH_PROMPT.format(problem=doc["problem"])


def process_short_math(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Metrics of one completion by a small model, which rarely boxes its answer: the last number counts then."""
    completion = results[0]
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", completion)
    answer = last_boxed(completion) or (numbers[-1].rstrip(",") if numbers else None)
    right = answer is not None and answers_agree(answer, str(doc["answer"]))
    return {"exact_match": float(right), **length_metrics(completion)}


def length_metrics(completion: str) -> dict[str, float]:
    """completion_tokens and truncated (0 or 1), of a back end that counts them; else nothing."""
    if not isinstance(completion, Completion) or completion.completion_tokens is None:
        return {}
    return {"completion_tokens": completion.completion_tokens, "truncated": float(bool(completion.truncated))}


def clean_choice(text: str) -> str:
    """One answer of GPQA, without the marks its sources left."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def order_gpqa(doc: Mapping[str, Any]) -> dict[str, Any]:
    """Adds `choices` (four texts) and `answer` (a letter) to a row of GPQA.

    The order depends on the question alone: it is the same in every run, process and version of Python.
    """
    texts = [doc["Correct Answer"], *(doc[f"Incorrect Answer {i}"] for i in (1, 2, 3))]

    def key(i: int) -> bytes:
        return hashlib.sha256(f"{GPQA_SEED}\n{i}\n{doc['Question']}".encode()).digest()

    order = sorted(range(4), key=key)
    return {**doc, "choices": [clean_choice(texts[i]) for i in order], "answer": LETTERS[order.index(0)]}


def process_gpqa_docs(dataset: "datasets.Dataset") -> "datasets.Dataset":
    """GPQA with its answers in order."""
    return dataset.map(order_gpqa)


def gpqa_prompt(doc: Mapping[str, Any]) -> str:
    """The prompt of GPQA-Diamond."""
    choices = {f"choice{i + 1}": text for i, text in enumerate(doc["choices"])}
    return GPQA_PROMPT.format(Question=doc["Question"], **choices)


def last_letter(text: str) -> str | None:
    """The letter of the last "Answer: X" of a text, in the forms models write it; else of its last \\boxed{X}."""
    found = re.findall(r"(?i:answer)\W*(?i:is)?\W*(?:\\(?:boxed|text|textbf|mathrm)\W*)*([ABCD])\b", text)
    if found:
        return found[-1]
    boxed = re.fullmatch(r"(?:\\text\w*\{)?\W*([ABCD])\W*.*", last_boxed(text) or "")
    return boxed.group(1) if boxed else None


def process_gpqa(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Metrics of one completion of GPQA."""
    completion = results[0]
    return {"exact_match": float(last_letter(completion) == doc["answer"]), **length_metrics(completion)}
