"""The grading of the published code, beside ours: `exact_match_published` and what its tasks log with it.

It reads an answer by a rule of its own, and compares texts. Source: process_results in lm_eval/tasks/{aime,
hendrycks_math, gpqa/openai} of the harness in github.com/AIRI-Institute/SAE-Reasoning. Where that code ends in an
exception, after \\fbox{5} or "²" for instance, the answer is read as if the box or digit were none.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_sae.grading.consistency import powers_of_two
from lm_eval_sae.grading.letters import LETTERS
from lm_eval_sae.grading.scoring import process_gpqa, process_math

BOX = "\\boxed"
# All that follows the first "Answer:", over the ends of lines: the published pattern matches no second one.
ANSWER = re.compile(r"answer\s*:\s*(.*)", re.IGNORECASE | re.DOTALL)
NO_ANSWER = "0"
NO_LETTER = "None"
MOST_DIGITS = 4300  # int() takes no more


def last_box(text: str) -> str | None:
    """What the last \\boxed{…} holds; None if no brace follows it, or its brace is not closed.

    "\\boxed " with a space comes before every other box, and reaches to the next "$" or the end of the text.
    """
    _, spaced, content = text.rpartition(f"{BOX} ")
    if spaced:
        return content.partition("$")[0]
    _, box, content = text.rpartition(BOX)
    depth = 0
    for brace in re.finditer("[{}]", content) if box and content.startswith("{") else ():
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return content[1 : brace.start()]
    return None


def stated_answer(text: str) -> str | None:
    """What the last box holds, else all that follows the first "Answer:"; None if there is neither."""
    box = last_box(text)
    answer = ANSWER.search(text) if box is None else None
    return answer[1] if answer else box


def is_whole(text: str) -> bool:
    """Whether a text is nothing but digits."""
    return text.isdecimal() and len(text) <= MOST_DIGITS


def without_zeros(text: str) -> str:
    """023 → 23; another text as it is."""
    return str(int(text)) if is_whole(text) else text


def read_mathematics(completion: str, gold: str) -> tuple[str, bool]:
    """The answer, 0 if there is none. Whole numbers are settled if the expected answer is one too."""
    answer = stated_answer(completion)
    answer = NO_ANSWER if answer is None else answer
    settled = is_whole(answer) and is_whole(gold)
    return without_zeros(answer) if settled else answer, settled


def read_letter(completion: str, gold: str) -> tuple[str, bool]:
    """The answer, which is the whole completion if none is stated. A letter and nothing else is settled."""
    answer = stated_answer(completion)
    answer = completion if answer is None else answer
    settled = answer.upper() in [*LETTERS]
    return answer.upper() if settled else answer, settled


def numbered_option(reply: str, answer: str, options: Sequence[str]) -> str:
    """The option of the number that the verifier replies, from 1; the answer itself after -1 and any other reply."""
    number = int(reply) if is_whole(reply) else 0
    return options[number - 1] if 1 <= number <= len(options) else answer


def replied_letter(reply: str, answer: str, options: Sequence[str]) -> str:
    """The letter that the verifier replies, and nothing else."""
    return reply if reply in [*LETTERS] else NO_LETTER


@dataclass(frozen=True)
class PublishedRule:
    """How the published code grades the answers to one benchmark.

    gold: row → the expected answer.
    read: completion, expected answer → its answer, and whether that is settled. Others go to the verifier.
    verified: the verifier's reply word for word, the answer, options → the answer after that.
    unread: what an answer that is not settled counts as without a verifier; None: as it is.
    """

    gold: Callable[[Mapping[str, Any]], str]
    read: Callable[[str, str], tuple[str, bool]]
    verified: Callable[[str, str, Sequence[str]], str]
    unread: str | None = None

    def answer(self, doc: Mapping[str, Any], completion: str) -> str:
        """The answer that is compared with the expected one; the verifier's (`Completion.verified`) if it gave one."""
        if (verified := getattr(completion, "verified", None)) is not None:
            return verified
        answer, settled = self.read(completion, self.gold(doc))
        return answer if settled or self.unread is None else self.unread


def _answer(doc: Mapping[str, Any]) -> str:
    return without_zeros(str(doc["answer"]))


def _box_of_solution(doc: Mapping[str, Any]) -> str:
    """The last box of the column `solution`; the answer if it has none, which would end the published code."""
    box = last_box(str(doc.get("solution", "")))
    return _answer(doc) if box is None else without_zeros(box)


PUBLISHED_RULES = {
    "aime": PublishedRule(_answer, read_mathematics, numbered_option),
    "math": PublishedRule(_box_of_solution, read_mathematics, numbered_option),
    "gpqa": PublishedRule(_answer, read_letter, replied_letter, NO_LETTER),
}


def published_metrics(rule: PublishedRule, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """What the published tasks report and log of one question.

    Args:
        rule: of its benchmark.
        doc: its row.
        results: as in `question_metrics`.

    Returns:
        `exact_match_published` (0 or 1) of the first completion, and `extracted_answers`, one of each. For several
        repeats also `exact_matches` of each, and over the first k of them, k = 2, 4, …, `cov@k_published` (one is
        right) and `maj@k_published` (the most frequent answer is right; of equally frequent ones the first).
    """
    completions = [results[0]] if isinstance(results[0], str) else list(results[0])
    gold = rule.gold(doc)
    answers = [rule.answer(doc, completion) for completion in completions]
    matches = [int(answer == gold) for answer in answers]
    metrics: dict[str, Any] = {"exact_match_published": matches[0], "extracted_answers": answers}
    if len(completions) > 1:
        metrics["exact_matches"] = matches
        for k in powers_of_two(len(completions))[1:]:
            metrics[f"cov@{k}_published"] = max(matches[:k])
            metrics[f"maj@{k}_published"] = int(Counter(answers[:k]).most_common(1)[0][0] == gold)
    return metrics


def process_aime(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Our metrics of a problem of AIME-2024, and the published ones."""
    return process_math(doc, results) | published_metrics(PUBLISHED_RULES["aime"], doc, results)


def process_math_500(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Our metrics of a problem of MATH-500, and the published ones."""
    return process_math(doc, results) | published_metrics(PUBLISHED_RULES["math"], doc, results)


def process_gpqa_diamond(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Our metrics of a question of GPQA-Diamond, and the published ones."""
    return process_gpqa(doc, results) | published_metrics(PUBLISHED_RULES["gpqa"], doc, results)
