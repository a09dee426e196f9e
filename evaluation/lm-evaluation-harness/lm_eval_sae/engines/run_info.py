"""What a results file says of a run beside lm-eval's own entries."""

from typing import Any

from lm_eval_sae.grading.identity import scoring_identity
from lm_eval_sae.judge.client import get_judge
from lm_eval_sae.steering.arguments import Steering


def run_info(steering: Steering | None, *, steered_positions: int) -> dict[str, Any]:
    """`sae`: the whole intervention, null for a baseline; `judge`: what was asked of it, null if it is off;
    `scoring`: which code decided what is right (`scoring_identity`). Where no feature is steered, no positions are.
    """
    judge = get_judge()
    positions = steered_positions if steering and steering.features else None
    return {
        "sae": None if steering is None else steering.record() | {"steered_positions": positions},
        "judge": judge.report() if judge else None,
        "scoring": scoring_identity(),
    }
