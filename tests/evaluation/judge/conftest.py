"""A server on loopback, and judges of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_questions import MODEL, MakeJudge
from judge_server import KEY, JudgeServer

from lm_eval_sae.judge.client import Judge, get_judge, open_cache

VARIABLES = (
    "PROCESSOR", "PROCESSOR_BASE_URL", "OPENROUTER_API_KEY", "JUDGE", "JUDGE_CONCURRENCY", "JUDGE_CACHE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No judge is set, and none keeps its answers outside the test's folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    get_judge.cache_clear()


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as running:
        yield running


@pytest.fixture
def make(server: JudgeServer, tmp_path: Path) -> MakeJudge:
    """Makes judges of `server` that share one cache."""

    def judge(**changes: Any) -> Judge:
        settings = {"model": MODEL, "base_url": server.base_url, "api_key": KEY, **changes}
        return Judge(cache=open_cache(tmp_path / "cache"), **settings)

    return judge
