"""The judge against a server on loopback that refuses, fails and hangs, and its trial question."""

import socket
import time
from typing import Any

import pytest
from judge_questions import AT_ONCE, HALF, MODEL, THIRD, MakeJudge, questions
from judge_server import KEY, JudgeServer, Reply, completion

from lm_eval_sae.errors import UserError


@pytest.mark.parametrize("status", [402, 403])
def test_a_refusal_after_the_generations_ends_the_questions_and_keeps_the_verdicts(
    server: JudgeServer, make: MakeJudge, status: int, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    body = {"error": {"code": status, "message": f"No credit\nfor key {KEY[:14]}… ({KEY})"}}
    server.script = [Reply(body=completion("SAME"))]
    server.always = Reply(status, body)
    judge = make(concurrency=1)
    assert judge.decide(questions(50)) == [True] + [None] * 49
    assert len(server.requests) == 2, "nothing is retried, whatever the server says, and nothing more is asked"
    (record,) = caplog.records
    assert record.levelname == "ERROR" and record.message.isprintable()
    for part in ("49 of 50 questions", f"{status}: No credit for key *** ***)", MODEL, "run again once it answers"):
        assert part in record.message
    report = judge.report()
    assert (report["right"], report["failed"], report["asked"]) == (1, 49, 2)
    assert f"{status}: No credit" in report["stopped"]
    assert "loopback" not in str(report) + caplog.text + "".join(capfd.readouterr()), "no part of the key is shown"
    assert judge.end_run() == report["stopped"] and judge.end_run() is None
    server.always = None
    assert make().decide(questions(1)) == [True]
    assert len(server.requests) == 2, "what had been answered is kept"


def test_one_question_that_is_too_long_loses_no_evaluation(
    server: JudgeServer, make: MakeJudge, caplog: pytest.LogCaptureFixture
) -> None:
    too_long = Reply(400, {"error": {"message": "maximum context length is 2048"}})
    server.script = [Reply(body=completion("SAME")), too_long]
    assert make(concurrency=1).decide(questions(4)) == [True, None, True, False]
    assert "1 of 4 questions" in caplog.text and "400: maximum context length is 2048" in caplog.text


def test_a_passing_failure_is_tried_again(server: JudgeServer, make: MakeJudge) -> None:
    busy = Reply(429, {"error": {"message": "later"}}, AT_ONCE)
    server.script = [busy, Reply(503, "", AT_ONCE), Reply(body=completion("SAME"), manner="drop"), busy]
    judge = make()
    assert judge.decide([HALF]) == [True]
    assert len(server.requests) == 5
    assert judge.report()["failed"] == 0


def test_a_failure_for_ever_is_counted_and_warned_of_once(
    server: JudgeServer, make: MakeJudge, caplog: pytest.LogCaptureFixture
) -> None:
    server.always = Reply(500, {"error": {"message": f"no capacity for {KEY}"}}, AT_ONCE)
    judge = make(concurrency=1, max_retries=2, stop_after=4)
    assert judge.decide(questions(40)) == [None] * 40
    assert len(server.requests) == 4 * 3, "after four failures in a row, of three requests each, it asks no more"
    (warning,) = caplog.records
    assert "40 of 40 questions" in warning.message and "500: no capacity for ***" in warning.message
    report = judge.report()
    assert (report["questions"], report["asked"], report["failed"], report["undecided"]) == (40, 4, 40, 0)
    server.always = None
    assert judge.decide(questions(2)) == [True, False], "the next task's questions are asked"


def test_an_answer_between_failures_goes_on(server: JudgeServer, make: MakeJudge) -> None:
    failure = Reply(503, "", AT_ONCE)
    server.script = [failure, failure, Reply(body=completion("SAME"))] * 3
    asked = questions(9)
    assert make(concurrency=1, max_retries=0, stop_after=3).decide(asked) == [None, None, True] * 3


def test_a_server_that_hangs_is_given_up(
    server: JudgeServer, make: MakeJudge, caplog: pytest.LogCaptureFixture
) -> None:
    server.always = Reply(body=completion("SAME"), manner="hang")
    start = time.monotonic()
    assert make(timeout=0.2, max_retries=0).decide([HALF, THIRD]) == [None, None]
    assert time.monotonic() - start < 5
    assert "timed out" in caplog.text


def test_a_server_that_is_not_there(make: MakeJudge, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = unused.getsockname()[1]
        judge = make(base_url=f"http://127.0.0.1:{port}/v1", max_retries=1)
        assert judge.decide([HALF]) == [None]
        assert f"127.0.0.1:{port}: Connection error." in caplog.text
        with pytest.raises(UserError, match=rf"trial question \(127.0.0.1:{port}: Connection error.\)"):
            judge.check()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(400, {"error": {"message": "no max_tokens\x1b[31m\n here"}}), r"400: no max_tokens \[31m here"),
        (Reply(401, {"error": {"message": "User not found."}}), r"refuses .*401: User not found.*OPENROUTER_API_KEY"),
        (Reply(429, {"error": {"message": "busy"}}, AT_ONCE), r"trial question \(127\.0\.0\.1:\d+: 429: busy\)"),
        (Reply(200, completion("Sure! They agree.")), "neither of SAME, DIFFERENT"),
    ],
)
def test_the_trial_question_finds_what_is_wrong(
    server: JudgeServer, make: MakeJudge, reply: Reply, expected: str
) -> None:
    server.always = reply
    with pytest.raises(UserError, match=expected) as raised:
        make().check()
    assert str(raised.value).isprintable()
