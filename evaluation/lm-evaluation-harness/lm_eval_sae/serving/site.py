"""The page, what it must know, and the dashboards, served by vLLM's server beside its own routes."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from lm_eval_sae.serving.settings import Settings, settings
from lm_eval_sae.steering.scores import read_max_activations

ASSETS = Path(__file__).resolve().parent / "assets"
FEATURES_FILE = "features.json"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class Site:
    """vLLM's application with ours around it (an ASGI middleware).

    Of vLLM's routes only /v1/… and /health are open: its API key guards no others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.settings = settings()
        info = page_info(self.settings)
        routes: list[Mount | Route] = [Route("/sae/info", lambda request: JSONResponse(info))]
        if self.settings.dashboards is not None:
            routes.append(Mount("/dashboards", StaticFiles(directory=self.settings.dashboards, html=True)))
        self.own = Starlette(routes=[*routes, Mount("/", StaticFiles(directory=ASSETS, html=True))])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            app = self._refusal(Headers(scope=scope)) or self._of_path(Request(scope).url.path)
        await app(scope, receive, send)

    def _of_path(self, path: str) -> ASGIApp:
        return self.app if path.startswith("/v1/") or path == "/health" else self.own

    def _refusal(self, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        # A name that another site's owner points at this machine makes that site this server's origin (DNS rebinding).
        if self.settings.loopback and urlsplit(f"//{host}").hostname not in LOOPBACK_NAMES:
            return _forbidden(f"this server is called {', '.join(LOOPBACK_NAMES)}, not '{host}'")
        if origin is not None and urlsplit(origin).netloc != host:
            return _forbidden(f"pages from {origin} may not use this server")
        return None


def _forbidden(sentence: str) -> Response:
    return JSONResponse({"error": {"message": sentence}}, status_code=403)


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
