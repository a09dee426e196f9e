"""The judge that the environment asks for; without PROCESSOR there is none:

    PROCESSOR           the model, for instance meta-llama/llama-3.3-70b-instruct (the paper's)
    OPENROUTER_API_KEY  the key of the server; needed for OpenRouter
    PROCESSOR_BASE_URL  its address, https://openrouter.ai/api/v1 by default
    JUDGE               undecided (default): what the checker cannot decide; all: every answer that is no number;
                        published: as the published code's verifier (published.py), for exact_match_published alone
    JUDGE_CONCURRENCY   questions asked at once, 8 by default
    JUDGE_CACHE         folder of its answers, ~/.cache/reasoning-features/judge by default

An empty one counts as unset.
"""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm_eval_sae.errors import UserError, did_you_mean

OPENROUTER = "https://openrouter.ai/api/v1"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
UNANSWERED = {
    "undecided": "which stay undecided and count as wrong",
    "all": "for which the checker's verdict stands",
    "published": "which exact_match_published grades without it",
}
"""By mode: what becomes of a question without a verdict."""


def read_environment() -> dict[str, Any] | None:
    """What makes a `Judge`, with `cache_folder` for its cache; None if PROCESSOR is unset.

    Raises UserError if a variable is missing or wrong.
    """
    model, mode = _variable("PROCESSOR"), _variable("JUDGE", "undecided")
    if mode not in UNANSWERED:
        raise UserError(f"JUDGE is '{mode}'; expected {' or '.join(UNANSWERED)}{did_you_mean(mode, UNANSWERED)}")
    if not model:
        if mode != "undecided":
            raise UserError(f"JUDGE is '{mode}' but PROCESSOR is not set; set it to the model that judges")
        return None
    base_url = _variable("PROCESSOR_BASE_URL", OPENROUTER)
    if not re.fullmatch(r"https?://[!-~]+", base_url) or re.search("[@?#]", base_url):
        # The address itself is not shown, and the client library would log it: it may hold a password.
        raise UserError(f"PROCESSOR_BASE_URL is not an address without user name and query, such as {OPENROUTER}")
    api_key = _variable("OPENROUTER_API_KEY") or None
    if api_key is None and base_url.startswith(OPENROUTER):
        raise UserError(
            "PROCESSOR is set but OPENROUTER_API_KEY is not; set it to a key of openrouter.ai, "
            "or PROCESSOR_BASE_URL to a server that needs none"
        )
    address = urlsplit(base_url)
    if api_key and address.scheme == "http" and address.hostname not in LOOPBACK:
        raise UserError(
            "OPENROUTER_API_KEY is set and PROCESSOR_BASE_URL begins with http://, so that anyone on the way could "
            "read the key; use https://, or unset OPENROUTER_API_KEY for a server that needs none"
        )
    if api_key and not re.fullmatch("[!-~]+", api_key):  # the error of a header that cannot be sent shows the key
        raise UserError("OPENROUTER_API_KEY holds a character that no key has, a space perhaps")
    concurrency = _variable("JUDGE_CONCURRENCY", "8")
    if not re.fullmatch("[1-9][0-9]{0,2}", concurrency):
        raise UserError(f"JUDGE_CONCURRENCY is '{concurrency}'; expected a whole number from 1 to 999")
    default = Path(_variable("XDG_CACHE_HOME", "~/.cache")) / "reasoning-features" / "judge"
    return {
        "model": model,
        "mode": mode,
        "base_url": base_url,
        "api_key": api_key,
        "concurrency": int(concurrency),
        "cache_folder": Path(_variable("JUDGE_CACHE", str(default))).expanduser(),
    }


def _variable(name: str, default: str = "") -> str:
    """A variable of the environment, the default if it is unset."""
    return os.environ.get(name, "").strip() or default
