"""Runs scripts of this project against a Hub-like server, in a process whose Hub clients know no other.

The clients read the Hub's address once, when they are imported, and importing them takes seconds: one process runs many
scripts, each as `python script …` would, with its output caught at the level of the file descriptors.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parent.parent


class Done(NamedTuple):
    """How a script ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line on stderr, which is where a mistake or failure is reported."""
        return self.err.rstrip("\n").rsplit("\n", 1)[-1].rsplit("\r", 1)[-1]


class HubClient:
    """`with HubClient(environment) as client: client.run("training/upload_sae.py", …)`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **environment},
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "HubClient":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def run(self, script: str, *argv: str | Path, token: str | None = None) -> Done:
        """Run a script (path from the root) with HF_TOKEN set to `token`, unless that is None."""
        return self._ask({"script": script, "argv": [str(word) for word in argv], "token": token})

    def evaluate(self, code: str, *argv: str | Path, token: str | None = None) -> Done:
        """Run code that finds its arguments in `sys.argv[1:]`."""
        return self._ask({"code": code, "argv": [str(word) for word in argv], "token": token})

    def _ask(self, request: dict[str, Any]) -> Done:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process that runs the scripts has ended"
        return Done(**json.loads(answer))


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def local_rows(folder: Path) -> list[list[int]]:
    """The rows of a data set on the disk, read without the data library."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path)["tokens"].to_pylist()]


def stored_rows(files: Mapping[str, bytes]) -> list[list[int]]:
    """The rows of a data set on the server (path and content of its files), read without any Hub client."""
    return [
        row
        for path in sorted(files)
        if path.endswith(".parquet")
        for row in pq.read_table(pa.BufferReader(files[path]))["tokens"].to_pylist()
    ]


def assert_one_line(done: Done, *expected: str) -> None:
    """It ended with exit status 2 and one line that says what is expected, without a traceback."""
    assert done.status == 2, done.err
    assert done.error.startswith("error: "), done.err
    assert "Traceback" not in done.err
    for words in expected:
        assert words in done.error


class _NoWaiting:
    """The module `time`, for clients that wait between two attempts: here they ask again at once."""

    def __getattr__(self, name: str) -> Any:
        import time

        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        pass


def _serve() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        module.time = _NoWaiting()
    for line in requests:
        request = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if request["token"] is not None:
            os.environ["HF_TOKEN"] = request["token"]
        answers.write(json.dumps(_run(request)) + "\n")
        answers.flush()


def _run(request: dict[str, Any]) -> dict[str, Any]:
    import runpy
    import traceback

    sys.argv = [request.get("script", "-c"), *request["argv"]]
    before = set(sys.modules)
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        status: Any = 0
        try:
            if "code" in request:
                exec(request["code"], {"__name__": "__main__"})
            else:
                sys.path.insert(0, str((REPOSITORY / request["script"]).parent))
                runpy.run_path(str(REPOSITORY / request["script"]), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in enumerate(kept, start=1):
            os.dup2(original, number)
            os.close(original)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    if "script" in request:
        _forget_neighbours(sys.path.pop(0), before)
    return {"status": status, "out": texts[0], "err": texts[1]}


def _forget_neighbours(folder: str, before: Sequence[str] | set[str]) -> None:
    """What a script imported from its own folder: another folder may use the same names."""
    for name in set(sys.modules) - set(before):
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(folder + os.sep):
            del sys.modules[name]


if __name__ == "__main__":
    _serve()
