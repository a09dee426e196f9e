"""A request to the judge's server that is made again where it may succeed later."""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PASSING_STATUSES = (408, 409, 429)
"""Besides 5xx: the statuses after which the same request may succeed."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds, where the server names none."""


async def ask_again(client: "AsyncOpenAI", request: Mapping[str, Any], *, max_retries: int, deadline: float) -> str:
    """The body of the server's reply.

    The client library would retry too, but it gives up where Retry-After is above two minutes, and retries a refused
    key where a header of the server's says so.

    Args:
        client: without retries of its own.
        request: arguments of chat.completions.create.
        max_retries: further requests after a passing status or a lost connection, 0.5, 1, 2, 4, 8, 8, … s apart (up
            to a quarter less) or as Retry-After says.
        deadline: seconds for all of them, waiting included. A wait that would go beyond is not begun.

    Raises:
        openai.APIStatusError, openai.APIConnectionError: of the last request.
        TimeoutError: the deadline passed during a request.
    """
    from openai import APIConnectionError, APIStatusError

    end = time.monotonic() + deadline
    # The client's own limit is for silence: a server that sends a byte now and then would never reach it.
    async with asyncio.timeout(deadline):
        for attempt in itertools.count():
            try:
                response = await client.chat.completions.with_raw_response.create(**request)
                return response.text
            except APIStatusError as error:
                if not is_passing(error.status_code):
                    raise
                failure, wait = error, named_wait(error.response.headers)
            except APIConnectionError as error:
                failure, wait = error, None
            if wait is None:
                wait = min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT) * random.uniform(0.75, 1)
            if attempt >= max_retries or time.monotonic() + wait > end:
                raise failure
            await asyncio.sleep(wait)
    raise AssertionError("unreachable")


def is_passing(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in PASSING_STATUSES or status >= 500


def named_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds by retry-after-ms (milliseconds) or Retry-After (seconds, or a date); None where there is no such."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            wait = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        return None if math.isnan(wait) or wait <= 0 else wait
    try:
        date = parsedate_tz(headers.get("retry-after", ""))
        wait = mktime_tz(date) - time.time() if date else 0
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    return wait if wait > 0 else None
