"""A judge's server that is not what it should be: it learns no more than the question, and ends nothing."""

import gzip
import json
import tracemalloc

import openai  # noqa: F401  (its import takes memory that is no reply's)
import pytest
from judge_questions import HALF, MakeJudge
from judge_server import KEY, JudgeServer, Reply, completion

from lm_eval_sae.errors import UserError
from lm_eval_sae.judge.client import Judge

LONG = json.dumps(completion("SAME" + " " * (32 << 20))).encode()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=gzip.compress(LONG), headers={"Content-Encoding": "gzip"}),
        Reply(body=LONG),
        Reply(body=completion("SAME"), headers={"Content-Type": "application/json; charset=utf-16"}),
        Reply(body=completion("SAME"), headers={"Content-Type": "application/json; charset=idna"}),
        Reply(302, "", {"Location": "http://127.0.0.1:99999/"}),
        Reply(body="[" * 100_000),
        Reply(body=[]),
        Reply(body={"choices": []}),
        Reply(body={"choices": [{"message": {"content": ["SAME"]}}]}),
        Reply(body="<!DOCTYPE html><html><body>Welcome to the hotel's network</body></html>"),
    ],
    ids=["gzip", "long", "utf-16", "idna", "port 99999", "nested", "no object", "no choice", "wrong types", "html"],
)
def test_a_reply_that_is_none_makes_a_failed_question(reply: Reply, make: MakeJudge, server: JudgeServer) -> None:
    server.script = [reply]
    judge = make(max_retries=0)
    tracemalloc.start()
    verdict = judge.decide([HALF])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert verdict == [None] or (reply.headers.get("Content-Type") and verdict == [True])  # JSON is read as UTF-8
    assert judge.report()["failed"] == verdict.count(None)
    assert peak < 12 << 20


def test_a_redirect_is_not_followed(make: MakeJudge, server: JudgeServer) -> None:
    with JudgeServer() as other:
        server.always = Reply(307, "", {"Location": f"{other.base_url}/chat/completions"})
        assert make(max_retries=0).decide([HALF]) == [None]
        assert len(server.requests) == 1 and other.requests == []


def test_no_account_is_named(make: MakeJudge, server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-someone")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-someone")
    assert make().decide([HALF]) == [True]
    assert "of-someone" not in str(server.headers)


def test_a_key_is_not_sent_in_the_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROCESSOR": "m", "OPENROUTER_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    for address in ("http://127.0.0.1:1/v1", "https://judge.example/v1"):
        monkeypatch.setenv("PROCESSOR_BASE_URL", address)
        assert Judge.from_environment() is not None
    monkeypatch.setenv("PROCESSOR_BASE_URL", "http://judge.example/v1")
    with pytest.raises(UserError, match="https://"):
        Judge.from_environment()
