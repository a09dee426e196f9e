"""lm-eval's filter `judge`: keeps every repeat, and has answers judged where a judge is set up."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.filter import Filter

from lm_eval_sae.grading.completion import as_completion
from lm_eval_sae.grading.scoring import ANSWER_RULES, AnswerRule

if TYPE_CHECKING:
    from lm_eval_sae.judge.client import Judge, JudgeQuestion

logger = logging.getLogger(__name__)

END = 1000  # characters of a completion that a judge sees where no answer was found in it


class JudgeFilter(Filter):
    """Sets `judged` on completions whose answer a judge is to decide; without a judge it changes nothing.

    With the judge's mode "undecided" these are the answers that the checker cannot decide. With "all" they are all
    but those where the answer and the expected one are whole numbers; where no answer is found the judge sees the end
    of the completion, unless the limit of tokens cut it off. With "published" the published code's verifier is asked,
    and sets `verified`.

    Args:
        answers: which of `scoring.ANSWER_RULES` the task uses.
        published: which of `published.PUBLISHED_RULES` it uses beside that; None: that verifier is not asked.
    """

    def __init__(self, answers: str = "math", published: str | None = None) -> None:
        super().__init__()
        self.rule = ANSWER_RULES[answers]
        self.published = published

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """All completions of each question of a task → the same, those that were judged as `Completion`s."""
        from lm_eval_sae.judge.client import get_judge

        resps = list(resps)
        # Where several processes share the questions, lm-eval evens their work out by more requests of the last one.
        n = min(map(len, resps), default=0)
        completions = [list(repeats[:n]) for repeats in resps]
        judge = get_judge()
        if judge is not None and judge.mode == "published":
            if self.published is not None:
                judge.verify(self.published, completions, docs)
        elif judge is not None:
            judge_completions(judge, self.rule, completions, docs)
        return completions


def judge_completions(
    judge: "Judge", rule: AnswerRule, completions: list[list[str]], docs: Sequence[Mapping[str, Any]]
) -> None:
    """Asks the judge about all questions of a task at once, and puts its verdicts into `completions`."""
    places, questions = [], []
    for i, (repeats, doc) in enumerate(zip(completions, docs, strict=True)):
        for j, completion in enumerate(repeats):
            if (question := question_for(judge.mode, rule, doc, completion)) is not None:
                places.append((i, j))
                questions.append(question)
    if not questions:
        return
    logger.info("Asking the judge about %s answers", len(questions))
    for (i, j), verdict in zip(places, judge.decide(questions), strict=True):
        completion = completions[i][j] = as_completion(completions[i][j])
        completion.judged = verdict


def question_for(mode: str, rule: AnswerRule, doc: Mapping[str, Any], completion: str) -> "JudgeQuestion | None":
    """What to ask about one completion; None if the checker's verdict stands."""
    from lm_eval_sae.judge.client import JudgeQuestion

    answer = rule.extract(completion)
    if mode == "all":
        asked = not rule.is_numeric(doc, completion)
        if answer is None:
            asked = bool(completion.strip()) and not getattr(completion, "truncated", False)
    else:
        asked = rule.verdict(doc, completion) is None
    if not asked:
        return None
    return JudgeQuestion(problem=rule.question(doc), expected=rule.expected(doc), answer=answer or completion[-END:])
