"""A small server on loopback that speaks the chat-completions protocol, as far as the judge uses it.

It reads the three texts out of the prompt by their marks and answers by a rule; or it fails, as it is told to.
"""

import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

KEY = "sk-or-v1-loopback0123456789abcdef"
USAGE = {"prompt_tokens": 300, "completion_tokens": 2, "total_tokens": 302}
PARTS = ("problem", "expected_answer", "given_answer")


def same_number(expected: str, answer: str) -> str:
    """A model that knows a few numbers by name."""
    names = {"one half": "0.5", "a dozen": "12"}
    return "SAME" if names.get(answer, answer) == expected else "DIFFERENT"


@dataclass
class Reply:
    """What the server does with a request instead of answering by its rule."""

    status: int = 200
    body: Any = None
    """Text and bytes as they are; anything else as JSON."""
    headers: dict[str, str] = field(default_factory=dict)
    manner: str = "whole"
    """whole; drop: the connection is cut in the middle of the body; hang: nothing until the server closes."""


def completion(content: str | None, **usage: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


class JudgeServer:
    """`with JudgeServer() as server:` serves at `server.base_url`.

    script: replies to the next requests, in order.
    always: the reply to every request after those; None answers by the rule.
    delay: seconds before each answer.
    barrier: how many requests must have come before any of them is answered.
    """

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.always: Reply | None = None
        self.delay = 0.0
        self.barrier: threading.Barrier | None = None
        self.usage: dict[str, Any] = dict(USAGE)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.authorizations: list[str | None] = []
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        state = self

        class Handler(_Handler):
            server_state = state

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/api/v1"

    def __enter__(self) -> "JudgeServer":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def asked(self) -> list[tuple[str, ...]]:
        """(problem, expected answer, given answer) of every request, in the order in which they came."""
        return [read_prompt(request["messages"][0]["content"]) for request in self.requests]


def read_prompt(prompt: str) -> tuple[str, ...]:
    """The texts between the marks, read by the prompt's own account of them: by the code that it names first."""
    code = re.search(r"marks that carry the code (\w+)", prompt)
    assert code is not None, prompt
    found = []
    for part in PARTS:
        texts = re.findall(rf"<{part} {code[1]}>\n(.*?)\n</{part} {code[1]}>", prompt, re.DOTALL)
        assert len(texts) == 1, f"{len(texts)} texts are marked as {part}"
        found.append(texts[0])
    return tuple(found)


class _Handler(BaseHTTPRequestHandler):
    server_state: JudgeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.requests.append(body)
            state.headers.append(dict(self.headers))
            state.authorizations.append(self.headers.get("Authorization"))
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
            reply = state.script.pop(0) if state.script else state.always
        try:
            if state.barrier:
                state.barrier.wait(timeout=10)
            if state.delay:
                state.closing.wait(state.delay)
            if self.path != "/api/v1/chat/completions":
                reply = Reply(404, {"error": {"message": f"no such place as {self.path}", "code": 404}})
            if reply is None:
                _, expected, answer = read_prompt(body["messages"][0]["content"])
                reply = Reply(body=completion(same_number(expected, answer), **state.usage))
        finally:
            with state.lock:
                state.at_once -= 1
        self.send(reply)

    def send(self, reply: Reply) -> None:
        content = reply.body if isinstance(reply.body, (str, bytes)) else json.dumps(reply.body)
        content = content.encode() if isinstance(content, str) else content
        if reply.manner == "hang":
            self.server_state.closing.wait()
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **reply.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if reply.manner == "drop":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif reply.manner == "whole":
            self.wfile.write(content)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
