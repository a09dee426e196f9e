"""Prompts and metrics of the tasks in `tasks/`: the functions that their YAML files name."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lm_eval_sae.grading.answers import check, is_number, strings_agree
from lm_eval_sae.grading.completion import Completion
from lm_eval_sae.grading.consistency import count_wrong_answers, coverage, majority, powers_of_two
from lm_eval_sae.grading.extraction import final_answer, labelled_answer, last_number
from lm_eval_sae.grading.letters import LETTERS, THINK_END, last_letter

if TYPE_CHECKING:
    import datasets

MATH_PROMPT = "Please reason step by step, and put your final answer within \\boxed{{}}.\nProblem: {problem}\nAnswer:"
SHORT_MATH_PROMPT = "{problem} Explain in one or two sentences, and end with the answer."
GPQA_PROMPT = (
    "Answer the following multiple choice question. The last line of your response should be of the following "
    "format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before answering."
    "\n\n{question}"
)
GPQA_QUESTION = "{Question}\n\nA) {choice1}\nB) {choice2}\nC) {choice3}\nD) {choice4}"
GPQA_SEED = 0


def math_prompt(doc: Mapping[str, Any]) -> str:
    """The prompt of AIME-2024 and MATH-500."""
    return MATH_PROMPT.format(problem=doc["problem"])


def short_math_prompt(doc: Mapping[str, Any]) -> str:
    """A prompt for models of some hundred million parameters, which make little of MATH_PROMPT."""
    return SHORT_MATH_PROMPT.format(problem=doc["problem"])


def gpqa_prompt(doc: Mapping[str, Any]) -> str:
    """The prompt of GPQA-Diamond."""
    return GPQA_PROMPT.format(question=gpqa_question(doc))


def gpqa_question(doc: Mapping[str, Any]) -> str:
    """A question of GPQA with its choices."""
    choices = {f"choice{i + 1}": text for i, text in enumerate(doc["choices"])}
    return GPQA_QUESTION.format(Question=doc["Question"], **choices)


def _as_given(doc: Mapping[str, Any], answer: str) -> str:
    return answer


@dataclass(frozen=True)
class AnswerRule:
    """How the answers to one kind of question are found and checked.

    extract: completion → its answer; None if it gives none.
    extract_string: completion → its answer by the plain string rule; None if it gives none.
    check: answer, expected answer → whether it is right; None if that cannot be decided.
    question: row → the whole question, for a judge.
    expected: row → the expected answer, for a judge.
    resolve: row, answer → the answer as `check` knows it.
    without_answer: the verdict where a completion ended by itself and gives no answer that `extract` finds.
    """

    extract: Callable[[str], str | None]
    extract_string: Callable[[str], str | None]
    check: Callable[[str, str], bool | None]
    question: Callable[[Mapping[str, Any]], str]
    expected: Callable[[Mapping[str, Any]], str]
    resolve: Callable[[Mapping[str, Any], str], str] = _as_given
    without_answer: bool | None = False

    def answer(self, doc: Mapping[str, Any], completion: str) -> str | None:
        """What a completion answers; None if it gives no answer."""
        answer = self.extract(completion)
        return None if answer is None else self.resolve(doc, answer)

    def verdict(self, doc: Mapping[str, Any], completion: str) -> bool | None:
        """Whether a completion is right, by the rule alone; None if that cannot be decided.

        Without an answer it is wrong if it is empty or was cut off, else `without_answer`.
        """
        answer = self.answer(doc, completion)
        if answer is not None:
            return self.check(answer, str(doc["answer"]))
        return False if is_truncated(completion) or not completion.strip() else self.without_answer

    def is_numeric(self, doc: Mapping[str, Any], completion: str) -> bool:
        """Whether the answer given and the expected one are both whole numbers in digits."""
        answer = self.extract(completion)
        return answer is not None and is_number(answer) and is_number(str(doc["answer"]))


def is_truncated(completion: str) -> bool:
    """Whether the limit of tokens is known to have cut a completion off."""
    return bool(getattr(completion, "truncated", False))


def letter_or_answer(completion: str) -> str | None:
    """The letter that a completion of GPQA states last; where it states none, what it answers instead."""
    letter = last_letter(completion, finished=not is_truncated(completion))
    return letter or final_answer(completion.rpartition(THINK_END)[2])


def check_letter(answer: str, expected: str) -> bool | None:
    """Whether a letter is the right one; None if the answer is no letter."""
    return answer == expected if len(answer) == 1 and answer.isalpha() else None


def letter_of_choice(doc: Mapping[str, Any], answer: str) -> str:
    """The letter of the one choice whose text an answer is, with or without its letter before it; else the answer."""

    def plain(text: str) -> str:
        return " ".join(text.strip(" \t\n.*_$`").casefold().split())

    choices = dict(zip(LETTERS, doc.get("choices", ()), strict=False))
    said = plain(answer)
    letters = [letter for letter, text in choices.items() if said in (plain(text), plain(f"{letter} {text}"))]
    return letters[0] if len(letters) == 1 and len(answer.strip()) > 1 else answer


def _problem(doc: Mapping[str, Any]) -> str:
    return str(doc["problem"])


def _answer(doc: Mapping[str, Any]) -> str:
    return str(doc["answer"])


def _choice(doc: Mapping[str, Any]) -> str:
    return f"{doc['answer']}) {doc['choices'][LETTERS.index(doc['answer'])]}"


ANSWER_RULES = {
    "math": AnswerRule(final_answer, labelled_answer, check, _problem, _answer),
    "number": AnswerRule(last_number, last_number, check, _problem, _answer),
    "letter": AnswerRule(
        letter_or_answer, labelled_answer, check_letter, gpqa_question, _choice, letter_of_choice, without_answer=None
    ),
}


def process_math(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Metrics of a mathematical problem: right where the last \\boxed{…}, else the last "Answer:", means the same."""
    return question_metrics(ANSWER_RULES["math"], doc, results)


def process_short_math(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Metrics of a problem given to a small model, which rarely boxes its answer: the last number counts then."""
    return question_metrics(ANSWER_RULES["number"], doc, results)


def process_gpqa(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Metrics of a question of GPQA: right where the letter stated last is."""
    return question_metrics(ANSWER_RULES["letter"], doc, results)


def question_metrics(rule: AnswerRule, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Metrics of one question.

    Args:
        rule: how its answers are checked.
        doc: its row, with `answer`.
        results: what lm-eval's filters left of its one request: a completion, or the list of its repeats.

    Returns:
        The metrics of `completion_metrics`. For several repeats their means, `cov@k` and `maj@k` for k = 1, 2, 4, …
        up to the number of repeats, and `repeats`, the metrics of each.
    """
    completions = [results[0]] if isinstance(results[0], str) else list(results[0])
    rows = [completion_metrics(rule, doc, completion) for completion in completions]
    if len(rows) == 1:
        return rows[0]

    n, right = len(rows), sum(row["exact_match"] == 1 for row in rows)
    wrong = [completion for completion, row in zip(completions, rows, strict=True) if row["exact_match"] == 0]
    answered = [(answer, rule.verdict(doc, text)) for text in wrong if (answer := rule.answer(doc, text)) is not None]
    votes = count_wrong_answers(
        [answer for answer, verdict in answered if verdict is not None],
        [answer for answer, verdict in answered if verdict is None],
    )
    metrics: dict[str, Any] = {name: fmean(row[name] for row in rows) for name in rows[0]}
    for k in powers_of_two(n):
        metrics[f"cov@{k}"] = coverage(right, n, k)
        metrics[f"maj@{k}"] = majority(right, votes, n, k)
    return {**metrics, "repeats": rows}


def completion_metrics(rule: AnswerRule, doc: Mapping[str, Any], completion: str) -> dict[str, float]:
    """exact_match (the judge's verdict where there is one), exact_match_string and undecided of one completion, and
    the lengths that its back end counted: completion_tokens, truncated, reasoning_tokens. Flags are 0 or 1.
    """
    judged = completion.judged if isinstance(completion, Completion) else None
    right = rule.verdict(doc, completion) if judged is None else judged
    answer = rule.extract_string(completion)
    metrics = {
        "exact_match": float(right is True),
        "exact_match_string": float(answer is not None and strings_agree(answer, str(doc["answer"]))),
        "undecided": float(right is None),
    }
    if isinstance(completion, Completion):
        if completion.completion_tokens is not None:
            metrics["completion_tokens"] = completion.completion_tokens
            metrics["truncated"] = float(bool(completion.truncated))
        if completion.reasoning_tokens is not None:
            metrics["reasoning_tokens"] = completion.reasoning_tokens
    return metrics


def repeats_per_question(repeats: Sequence[Sequence[Mapping[str, float]]]) -> int:
    """The aggregate of a metric that has one entry for each completion, such as `repeats`: how many there are."""
    return len(repeats[0])


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
