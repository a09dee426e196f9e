"""A small server on loopback that speaks as much of the Hub's protocol as pushes and downloads of this project use.

It keeps repositories in memory, takes uploads inline, and knows one user, whose token is `TOKEN`.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

USER = "researcher"
TOKEN = "hf_loopback_test_token"
COMMIT = "0" * 40


class HubServer:
    """`with HubServer() as hub:` serves at `hub.endpoint`; `hub.repos` maps "datasets/user/name" to its files."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        hub = self

        class Handler(_Handler):
            server_state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, *, token: str | None = TOKEN) -> dict[str, str]:
        """Variables that point the Hub's client at this server."""
        online = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "0")
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token or "", **online}


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.reply({"error": "Invalid credentials"}, status=401)
            return self.reply({"type": "user", "name": USER, "orgs": []})
        if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            files = self.repo(match)
            if files is None:
                return self.missing()
            siblings = [{"rfilename": name} for name in sorted(files)]
            return self.reply({"id": match[2], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/tree/[^/]+(?:/(.*))?", path):
            files = self.repo(match)
            if files is None:
                return self.missing()
            prefix = f"{match[3]}/" if match[3] else ""
            return self.reply(
                [
                    {"type": "file", "path": name, "size": len(body), "oid": _oid(body)}
                    for name, body in sorted(files.items())
                    if name.startswith(prefix)
                ]
            )
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            files = self.server_state.repos.get(f"{match[1] or 'models/'}{match[2]}")
            body = None if files is None else files.get(match[3])
            if body is None:
                return self.missing("EntryNotFound" if files is not None else "RepoNotFound")
            headers = {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": COMMIT}
            return self.reply(body, headers=headers)
        return self.missing()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply({"error": "Invalid credentials"}, status=401)
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            owner = wanted.get("organization") or USER
            key = f"{wanted.get('type') or 'model'}s/{owner}/{wanted['name']}"
            self.server_state.repos.setdefault(key, {})
            self.server_state.private[key] = bool(wanted.get("private") or wanted.get("visibility") == "private")
            url = f"{self.server_state.endpoint}/{key.removeprefix('models/')}"
            return self.reply({"url": url, "name": f"{owner}/{wanted['name']}"})
        if re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/preupload/[^/]+", path):
            files = json.loads(body)["files"]
            return self.reply(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/commit/[^/]+", path):
            files = self.repo(match)
            if files is None:
                return self.missing()
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    del files[entry["value"]["path"]]
            place = f"{match[1]}/{match[2]}".removeprefix("models/")
            url = f"{self.server_state.endpoint}/{place}/commit/{COMMIT}"
            return self.reply({"commitUrl": url, "commitOid": COMMIT})
        return self.missing()

    def repo(self, match: re.Match[str]) -> dict[str, bytes] | None:
        return self.server_state.repos.get(f"{match[1]}/{match[2]}")

    def missing(self, code: str = "RepoNotFound") -> None:
        self.reply({"error": "not found"}, status=404, headers={"X-Error-Code": code})

    def reply(self, body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()
