"""The judge's settings, which the environment holds; `lm_eval_sae.judge` says what each variable is."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm_eval_sae.errors import UserError, did_you_mean

OPENROUTER = "https://openrouter.ai/api/v1"
MODES = ("undecided", "all")
CONCURRENCY = 8


def read_settings() -> dict[str, Any] | None:
    """model, base_url, api_key, mode, concurrency and cache_folder; None where PROCESSOR is unset. Nothing is sent.

    Raises:
        UserError: a variable is missing or wrong.
    """
    model, mode = variable("PROCESSOR"), variable("JUDGE", MODES[0])
    if mode not in MODES:
        raise UserError(f"JUDGE is '{mode}'; expected {' or '.join(MODES)}{did_you_mean(mode.lower(), MODES)}")
    if not model:
        if mode == "all":
            raise UserError("JUDGE is 'all' but PROCESSOR is not set; set it to the model that judges, or unset JUDGE")
        return None
    base_url = variable("PROCESSOR_BASE_URL", OPENROUTER)
    if not _is_address(base_url):
        # The address itself is not shown: it may hold a password.
        raise UserError(
            "PROCESSOR_BASE_URL is no http or https address without user name and query; "
            f"expected one such as {OPENROUTER}"
        )
    api_key = variable("OPENROUTER_API_KEY") or None
    if api_key is None and is_openrouter(base_url):
        raise UserError(
            "PROCESSOR is set but OPENROUTER_API_KEY is not; set it to a key of openrouter.ai, "
            "or PROCESSOR_BASE_URL to a server that needs none"
        )
    if api_key is not None and not _is_word(api_key):
        raise UserError(
            "OPENROUTER_API_KEY holds a character that no key has, a space perhaps; expected one word of ASCII"
        )
    concurrency = variable("JUDGE_CONCURRENCY", str(CONCURRENCY))
    if not re.fullmatch(r"[1-9][0-9]{0,2}", concurrency):
        raise UserError(f"JUDGE_CONCURRENCY is '{concurrency}'; expected a whole number from 1 to 999")
    return {
        "model": model,
        "base_url": base_url,
        "api_key": api_key,
        "mode": mode,
        "concurrency": int(concurrency),
        "cache_folder": _cache_folder(),
    }


def is_openrouter(base_url: str) -> bool:
    """Whether an address is OpenRouter's, which wants a key and can say what a request cost."""
    return urlsplit(base_url).hostname == urlsplit(OPENROUTER).hostname


def variable(name: str, default: str = "") -> str:
    """A variable of the environment; an empty one counts as unset."""
    return os.environ.get(name, "").strip() or default


def _is_word(text: str) -> bool:
    """Whether a text can stand in a header or an address as it is."""
    return text.isascii() and text.isprintable() and " " not in text


def _is_address(base_url: str) -> bool:
    # The client library logs addresses whole, so that nothing secret may stand in one.
    if not _is_word(base_url) or any(character in base_url for character in "@?#"):
        return False
    try:
        url = urlsplit(base_url)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _cache_folder() -> Path:
    if folder := variable("JUDGE_CACHE"):
        return Path(folder).expanduser()
    return Path(variable("XDG_CACHE_HOME", "~/.cache")).expanduser() / "reasoning-features" / "judge"
