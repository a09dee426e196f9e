"""Requests as lm-eval passes them: their arguments, their room, and a number and a seed for each repeat."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval_sae.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

CUTOFF = "cutoff_token"  # a generation argument: the id of the token that ends the reasoning


def split_cutoff(gen_kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """The generation arguments that an engine knows, and the `cutoff_token`, None if there is none.

    Raises UserError if it is no token id.
    """
    cutoff = gen_kwargs.get(CUTOFF)
    if cutoff is not None and (isinstance(cutoff, bool) or not isinstance(cutoff, int) or cutoff < 0):
        raise UserError(
            f"{CUTOFF} is {cutoff!r}, expected the id of a token, a whole number from 0 (</think> of "
            "DeepSeek-R1-Distill-Llama-8B: 128014)"
        )
    return {key: value for key, value in gen_kwargs.items() if key != CUTOFF}, cutoff


def require_room(prompt_tokens: int, max_gen_toks: int, context: int) -> None:
    """Raises UserError if a prompt would lose its start to make room for its completion."""
    if prompt_tokens + max_gen_toks > context:
        raise UserError(
            f"a prompt of {prompt_tokens} tokens and max_gen_toks {max_gen_toks} do not fit into the context of "
            f"{context} tokens; set max_gen_toks in --gen_kwargs (evaluate.sh: GEN_KWARGS) to at most "
            f"{max(context - prompt_tokens, 0)}"
        )


def with_arguments(request: "Instance", *arguments: Any) -> "Instance":
    """The same request with other arguments; lm-eval's own object, which its samples file shows, stays as it is."""
    from lm_eval.api.instance import Instance

    return Instance(
        request_type=request.request_type,
        doc=request.doc,
        arguments=arguments,
        idx=request.idx,
        metadata=request.metadata,
    )


def number_repeats(requests: "Sequence[Instance]") -> list[int]:
    """For each request, how many requests of the same task and prompt come before it.

    lm-eval passes a request that is to be repeated as many times as it is to be run, without a number.
    """
    seen: Counter[tuple[str | None, str]] = Counter()
    numbers = []
    for request in requests:
        key = (request.task_name, str(request.args[0]))
        numbers.append(seen[key])
        seen[key] += 1
    return numbers


def request_seed(seed: int, prompt: str, repeat: int) -> int:
    """The seed (0 to 2³¹ − 1) of one repeat of a prompt: it depends on these three alone, not on the other requests."""
    digest = hashlib.sha256(f"{seed}\n{repeat}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
