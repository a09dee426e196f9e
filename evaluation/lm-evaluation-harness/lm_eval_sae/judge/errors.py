"""What a judge's server says against a request, in one line and without its key."""

import http
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import APIStatusError


def refusal(error: "APIStatusError", *, host: str, model: str, api_key: str | None) -> str:
    """A status that no later request of the run will be spared, and what to do."""
    why = reason(error, api_key)
    if error.status_code in (401, 403):
        what = "OPENROUTER_API_KEY" + ("" if api_key else ", which is not set,")
        return (
            f"the judge at {host} does not accept {what} for '{model}' ({why}); "
            "set a key that may use it, or unset PROCESSOR"
        )
    if error.status_code == 402:
        return f"the judge at {host} wants to be paid for '{model}' ({why}); add credit, or unset PROCESSOR"
    return (
        f"the judge at {host} refuses a request for '{model}' ({why}); "
        "check PROCESSOR and PROCESSOR_BASE_URL, or unset PROCESSOR"
    )


def reason(error: "APIStatusError", api_key: str | None) -> str:
    """A status with the server's own words, or the status's name where those are not in the protocol's place."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    if not isinstance(message, str):
        try:
            message = http.HTTPStatus(error.status_code).phrase
        except ValueError:
            message = "unknown status"
    return f"{error.status_code}: {one_line(message, api_key)}"


def one_line(text: str, api_key: str | None) -> str:
    """At most 200 characters in one line, without any word that holds a part of the key."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    if api_key:
        width = min(8, len(api_key))
        parts = [api_key[i : i + width] for i in range(len(api_key) - width + 1)]
        words = ["***" if any(part in word for part in parts) else word for word in words]
    line = " ".join(words)
    return line if len(line) <= 200 else line[:199] + "…"


def refuses_content(error: "APIStatusError") -> bool:
    """Whether OpenRouter says that a model's provider moderates and flagged this very text: one question's matter."""
    metadata = error.body.get("metadata") if isinstance(error.body, dict) else None
    return error.status_code == 403 and isinstance(metadata, dict) and "flagged_input" in metadata
