"""Requests as lm-eval passes them: with other arguments, numbered where they are repeats, and with their own seeds."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


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
