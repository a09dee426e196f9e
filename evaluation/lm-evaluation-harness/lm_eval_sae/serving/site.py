"""What stands before vLLM's server: checks of each request, the page, what it must know, and the dashboards."""

import hmac
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm_eval_sae.errors import UserError, did_you_mean
from lm_eval_sae.serving.settings import KEY_VARIABLE, Settings, settings
from lm_eval_sae.steering.requests import REQUEST_ARGUMENTS, Served
from lm_eval_sae.steering.scores import read_max_activations

ASSETS = Path(__file__).resolve().parent / "assets"
FEATURES_FILE = "features.json"
GENERATION = ("/v1/chat/completions", "/v1/completions")
OPEN = ("/v1/models", "/health")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class Site:
    """vLLM's application with ours around it (an ASGI middleware, which vLLM makes by its name).

    Of vLLM's own paths those above are open, and no others: what is generated elsewhere would not be checked, and a
    request that the worker cannot read ends the engine.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.settings = settings()
        self.served = Served.of(self.settings.served)
        self.key = os.environ.get(KEY_VARIABLE)
        info = page_info(self.settings)
        routes: list[Mount | Route] = [Route("/sae/info", lambda request: JSONResponse(info))]
        if self.settings.dashboards is not None:
            routes.append(Mount("/dashboards", StaticFiles(directory=self.settings.dashboards, html=True)))
        self.own = Starlette(routes=[*routes, Mount("/", StaticFiles(directory=ASSETS, html=True))])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        path = request.url.path
        app: ASGIApp = self.app if path in GENERATION + OPEN else self.own
        if refusal := self._refusal(request):
            app = refusal
        elif path in GENERATION:
            body = await request.body()
            try:
                check_body(body, self.served)
            except UserError as error:
                app = _refused(400, str(error))
            receive = _again(body, receive)
        await app(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        # A name that another site's owner points at this machine makes that site this server's origin (DNS rebinding).
        if self.settings.loopback and urlsplit(f"//{host}").hostname not in LOOPBACK_NAMES:
            return _refused(403, f"this server is called {', '.join(LOOPBACK_NAMES)}, not '{host}'")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refused(403, f"pages from {origin} may not use this server")
        # vLLM asks for the key too, but its body is read here.
        given = request.headers.get("authorization", "").encode()
        if (
            self.key
            and request.url.path in GENERATION
            and not hmac.compare_digest(given, f"Bearer {self.key}".encode())
        ):
            return _refused(401, "this server needs its API key, as the header Authorization: Bearer <key>")
        return None


def _refused(status: int, sentence: str) -> Response:
    return JSONResponse({"error": {"message": sentence, "code": status}}, status_code=status)


def _again(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """`receive` for who has not read the body yet; what follows it is whether the client is still there."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def check_body(body: bytes, served: Served) -> None:
    """Raises UserError for a request that the worker could not steer, or would not steer as it says.

    Whatever else is wrong with it is left to vLLM.

    Args:
        body: JSON, as the client sent it.
        served: what requests may change.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return
    if not isinstance(request, dict):
        return
    if misplaced := [key for key in request if key.startswith("sae_")]:
        raise UserError(f"'{misplaced[0]}' is read in vllm_xargs only; put it there")
    entries = request.get("vllm_xargs")
    if not isinstance(entries, dict):
        return
    for key in entries:
        if not key.startswith("sae_"):
            hint = did_you_mean(f"sae_{key}", REQUEST_ARGUMENTS)
            raise UserError(f"vllm_xargs has an unknown entry '{key}'{hint or '; sae_feature_idx names a feature'}")
    if served.read(entries) and request.get("use_beam_search"):
        raise UserError("vLLM's beam search is not steered; leave out use_beam_search")


def page_info(settings: Settings) -> dict[str, Any]:
    """What the page is told: model, SAE, words, features of the dashboards, and all maximal activations."""
    features, maxima = [], None
    if settings.dashboards is not None:
        features = json.loads((Path(settings.dashboards) / FEATURES_FILE).read_text(encoding="utf-8"))
    if settings.scores is not None:
        values = read_max_activations(Path(settings.scores), d_sae=settings.d_sae)
        maxima = [float(f"{value:.4g}") for value in values.tolist()]
    return {
        "model": settings.model,
        "hook_name": settings.hook_name,
        "d_sae": settings.d_sae,
        "words": list(settings.words),
        "dashboards": settings.dashboards is not None,
        "features": features,
        "max_activations": maxima,
    }
