"""The judge's server is not trusted: no redirects, no more of a reply than a verdict needs, no key in an error."""

from collections.abc import AsyncIterator

import httpx2 as httpx  # what the client library is built on
from openai import APIStatusError, DefaultAsyncHttpxClient

MAX_REPLY_BYTES = 1 << 20


class Beginning(httpx.AsyncByteStream):
    """The first bytes of a stream, whatever follows."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MAX_REPLY_BYTES
        async for part in self._stream:
            yield part[:left]
            left -= len(part)
            if left <= 0:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()


async def shorten(response: httpx.Response) -> None:
    """Let a reply be read as it was sent, up to the limit: decompressed, 400 kB can be a gigabyte."""
    response.headers.pop("content-encoding", None)
    response.stream = Beginning(response.stream)


def make_client() -> httpx.AsyncClient:
    """A client that asks for uncompressed replies; proxies are those of the environment."""
    return DefaultAsyncHttpxClient(
        follow_redirects=False, headers={"Accept-Encoding": "identity"}, event_hooks={"response": [shorten]}
    )


def refuses_content(error: APIStatusError) -> bool:
    """Whether OpenRouter says that a model's provider flagged this very text, which concerns one question only."""
    metadata = error.body.get("metadata") if isinstance(error.body, dict) else None
    return error.status_code == 403 and isinstance(metadata, dict) and "flagged_input" in metadata


def one_line(text: str, api_key: str | None) -> str:
    """At most 200 characters in one line, without any word that holds a part of the key."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    if api_key:
        parts = [api_key[i : i + 8] for i in range(max(len(api_key) - 7, 1))]
        words = ["***" if any(part in word for part in parts) else word for word in words]
    return " ".join(words)[:200]
