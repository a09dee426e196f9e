"""Questions for a judge, and what its tests name often."""

from collections.abc import Callable

from lm_eval_sae.judge.client import Judge, JudgeQuestion

MODEL = "meta-llama/llama-3.3-70b-instruct"
HALF = JudgeQuestion(problem="What is 1 / 2?", expected="0.5", answer="one half")
THIRD = JudgeQuestion(problem="What is 1 / 2?", expected="0.5", answer="one third")
AT_ONCE = {"retry-after-ms": "5"}
"""Asks the client to come again almost at once, so that tests of its patience are short."""

MakeJudge = Callable[..., Judge]


def questions(n: int) -> list[JudgeQuestion]:
    """n questions of which the first, third, … answer is right."""
    return [JudgeQuestion(f"Problem {i}", "0.5", "one half" if i % 2 == 0 else "0.4") for i in range(n)]
