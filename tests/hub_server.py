"""A small server on loopback that speaks the Hub's protocol, as far as pushes and downloads of this project use it.

Repositories with commits and tags, files inline and as LFS objects, ranges, access by token: all in memory. It can be
told to fail: with a status, or by cutting the connection in the middle of a request or an answer.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "researcher"
TOKEN = "hf_loopbackWriteToken0123456789"
READ_TOKEN = "hf_loopbackReadToken0123456789"
NARROW_TOKEN = "hf_loopbackNarrowToken0123456789"
"""Fine-grained: may write the repositories of `ORGANISATION` only."""
ORGANISATION = "laboratory"
LFS_FILES = (".parquet", ".safetensors", ".bin")
SIGNATURE = "X-Amz-Signature=0123456789abcdef"


@dataclass
class Fault:
    """A failure of the requests whose "METHOD path" the pattern is found in."""

    pattern: str
    status: int | None
    """None: the connection is cut in the middle."""
    times: int | None = None
    """How often; None for always."""
    seen: int = 0


@dataclass
class Repository:
    """Files of the main branch by path; the content of older commits by their hash; tags by name."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def head(self) -> str:
        listing = "".join(f"{path} {sha256(body)}\n" for path, body in sorted(self.files.items()))
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        self.commits.setdefault(commit, dict(self.files))
        return commit

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        head = self.head()
        commit = head if revision == "main" else self.tags.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class HubServer:
    """`with HubServer() as hub:` serves at `hub.endpoint`; `hub.repositories` maps "datasets/user/name" to them."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            server_state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        # The same server by another name: large files lie on another host than the Hub.
        self.storage = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def repos(self) -> dict[str, dict[str, bytes]]:
        """The files on the main branch of every repository."""
        return {name: repository.files for name, repository in self.repositories.items()}

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> None:
        """Make a repository, "datasets/user/name" or "models/user/name"."""
        self.repositories[name] = Repository(files, private)

    def fail(self, pattern: str, status: int | None, *, times: int | None = None) -> Fault:
        """Have requests fail; `pattern` is a regular expression for "METHOD path", status None cuts the connection."""
        self.faults.append(Fault(pattern, status, times))
        return self.faults[-1]

    def environment(self, *, token: str | None = TOKEN) -> dict[str, str]:
        """Variables that point the Hub's client at this server."""
        online = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "0")
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token or "", **online}


def _access_token(role: str, **more: Any) -> dict[str, Any]:
    return {"type": "access_token", "accessToken": {"displayName": "test", "role": role, **more}}


_NARROW = {"scoped": [{"entity": {"type": "org", "name": ORGANISATION}, "permissions": ["repo.write"]}]}
ACCOUNTS = {
    TOKEN: _access_token("write"),
    READ_TOKEN: _access_token("read"),
    NARROW_TOKEN: _access_token("fineGrained", fineGrained=_NARROW),
}


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def respond(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        hub, request = self.server_state, f"{self.command} {path}"
        hub.requests.append(request)
        self.cut = False
        for fault in hub.faults:
            if re.search(fault.pattern, request) and (fault.times is None or fault.seen < fault.times):
                fault.seen += 1
                if fault.status is not None:
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    return self.reply({"error": f"told to fail with {fault.status}"}, status=fault.status)
                self.cut = True
        length = int(self.headers.get("Content-Length") or 0)
        if self.cut and self.command in ("POST", "PUT"):
            self.rfile.read(length // 2)
            return self.hang_up()
        assert "Transfer-Encoding" not in self.headers
        body = self.rfile.read(length)
        for method, pattern, answer in ROUTES:
            if (method == self.command or (method, self.command) == ("GET", "HEAD")) and (
                match := re.fullmatch(pattern, path)
            ):
                self.query = parse_qs(url.query)
                return answer(self, match, body)
        self.missing()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def whoami(self, match: re.Match[str], body: bytes) -> None:
        auth = ACCOUNTS.get(self.token)
        if auth is None:
            return self.reply({"error": "Invalid credentials"}, status=401)
        orgs = [{"name": ORGANISATION, "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
        self.reply({"type": "user", "name": USER, "orgs": orgs, "auth": auth})

    def create(self, match: re.Match[str], body: bytes) -> None:
        wanted = json.loads(body)
        owner = wanted.get("organization") or USER
        if not self.may_write(owner):
            return
        key = f"{wanted.get('type') or 'model'}s/{owner}/{wanted['name']}"
        url = f"{self.server_state.endpoint}/{key.removeprefix('models/')}"
        if key in self.server_state.repositories:
            return self.reply({"error": "You already created this repo", "url": url}, status=409)
        private = bool(wanted.get("private") or wanted.get("visibility") == "private")
        self.server_state.add(key, {".gitattributes": b""}, private=private)
        self.reply({"url": url, "name": f"{owner}/{wanted['name']}"})

    def info(self, match: re.Match[str], body: bytes) -> None:
        if (found := self.find(match, match[3] or "main")) is None:
            return
        repository, commit, files = found
        self.reply(
            {
                "id": match[2], "sha": commit, "private": repository.private, "tags": [], "gated": False,
                "siblings": [{"rfilename": name} for name in sorted(files)],
            }
        )  # fmt: skip

    def tree(self, match: re.Match[str], body: bytes) -> None:
        if (found := self.find(match, match[3])) is None:
            return
        prefix = f"{match[4]}/" if match[4] else ""
        entries = [_entry(name, body) for name, body in sorted(found[2].items()) if name.startswith(prefix)]
        if prefix and not entries:
            return self.missing("EntryNotFound")
        self.reply(entries)

    def paths_info(self, match: re.Match[str], body: bytes) -> None:
        if (found := self.find(match, match[3])) is None:
            return
        text = body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        self.reply([_entry(name, found[2][name]) for name in paths if name in found[2]])

    def preupload(self, match: re.Match[str], body: bytes) -> None:
        if self.may_write(match[2].split("/")[0]) and self.find(match, match[3]) is not None:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(LFS_FILES) else "regular" for path in files}
            self.reply({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def lfs_batch(self, match: re.Match[str], body: bytes) -> None:
        if not self.may_write(match[2].split("/")[0]):
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server_state.lfs:
                place = f"{self.server_state.storage}/lfs/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": f"{place}?{SIGNATURE}"}}
            objects.append(answer)
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, match: re.Match[str], body: bytes) -> None:
        # Storage trusts the signature in the address; a token is none of its business.
        if SIGNATURE not in urlsplit(self.path).query or sha256(body) != match[1]:
            return self.reply({"error": "bad signature or content"}, status=403)
        self.server_state.lfs[match[1]] = body
        self.reply({})

    def lfs_get(self, match: re.Match[str], body: bytes) -> None:
        self.content(self.server_state.lfs[match[1]], {"ETag": f'"{match[1]}"'})

    def commit(self, match: re.Match[str], body: bytes) -> None:
        if not self.may_write(match[2].split("/")[0]) or (found := self.find(match, match[3])) is None:
            return
        files = found[0].files
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server_state.lfs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = found[0].head()
        place = f"{match[1]}/{match[2]}".removeprefix("models/")
        self.reply({"commitUrl": f"{self.server_state.endpoint}/{place}/commit/{commit}", "commitOid": commit})

    def resolve(self, match: re.Match[str], body: bytes) -> None:
        if (found := self.find(match, match[3])) is None:
            return
        _, commit, files = found
        if match[4] not in files:
            return self.missing("EntryNotFound")
        content, headers = files[match[4]], {"X-Repo-Commit": commit}
        if not match[4].endswith(LFS_FILES):
            return self.content(content, {**headers, "ETag": f'"{_git_oid(content)}"'})
        oid = sha256(content)
        self.server_state.lfs.setdefault(oid, content)
        place = f"{self.server_state.storage}/lfs/{oid}?{SIGNATURE}"
        headers |= {"Location": place, "X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        self.reply(b"", status=302, headers=headers)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self, owner: str) -> bool:
        """Whether the token may write for `owner`; answers 401 or 403 where it may not."""
        if self.token not in ACCOUNTS:
            self.reply({"error": "Invalid credentials"}, status=401)
            return False
        narrow = self.token == NARROW_TOKEN
        if self.token == READ_TOKEN or owner not in (USER, ORGANISATION) or (narrow and owner != ORGANISATION):
            self.reply({"error": "Forbidden"}, status=403)
            return False
        return True

    def find(self, match: re.Match[str], revision: str) -> tuple[Repository, str, dict[str, bytes]] | None:
        """The repository, and commit and files at a revision; answers 401 or 404 where the token may not see them."""
        kind = (match[1] or "models").rstrip("/")
        repository = self.server_state.repositories.get(f"{kind}/{match[2]}")
        if repository is None or (repository.private and self.token not in ACCOUNTS):
            self.missing(status=401 if not self.token else 404)
            return None
        found = repository.at(revision)
        if found is None:
            self.missing("RevisionNotFound")
            return None
        return repository, *found

    def missing(self, code: str = "RepoNotFound", *, status: int = 404) -> None:
        self.reply({"error": "not found"}, status=status, headers={"X-Error-Code": code})

    def content(self, body: bytes, headers: dict[str, str]) -> None:
        """A file, or the range of it that is asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.reply(body, headers=headers)
        start, stop = int(wanted[1]), int(wanted[2] or len(body) - 1) + 1
        headers = {**headers, "Content-Range": f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}"}
        self.reply(body[start:stop], status=206, headers=headers)

    def reply(self, body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self.cut else data)
        if self.cut:
            self.wfile.flush()
            self.hang_up()


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _git_oid(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body, usedforsecurity=False).hexdigest()


def _entry(name: str, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(body), "oid": _git_oid(body)}
    if name.endswith(LFS_FILES):
        entry["lfs"] = {"oid": sha256(body), "size": len(body), "pointerSize": 130}
    return entry


_API = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
Answer = Callable[[_Handler, re.Match[str], bytes], None]
ROUTES: list[tuple[str, str, Answer]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", lambda handler, match, body: handler.reply({"errors": [], "warnings": []})),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", _API + r"/paths-info/([^/]+)", _Handler.paths_info),
    ("GET", _API + r"/tree/([^/]+)(?:/(.*))?", _Handler.tree),
    ("POST", _API + r"/preupload/([^/]+)", _Handler.preupload),
    ("POST", _API + r"/commit/([^/]+)", _Handler.commit),
    ("GET", _API + r"(?:/revision/([^/]+))?", _Handler.info),
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.lfs_put),
    ("GET", r"/lfs/([0-9a-f]{64})", _Handler.lfs_get),
    ("GET", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
]
