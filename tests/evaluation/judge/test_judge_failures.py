"""The judge against a server on loopback that refuses, fails and hangs, and its trial question."""

import socket
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from judge_questions import AT_ONCE, HALF, MODEL, THIRD, MakeJudge, questions  # noqa: E402
from judge_server import KEY, JudgeServer, Reply, completion  # noqa: E402

from lm_eval_sae.errors import UserError  # noqa: E402


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refusal_after_the_generations_ends_the_questions_and_keeps_the_verdicts(
    server: JudgeServer, make: MakeJudge, status: int, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    body = {"error": {"code": status, "message": f"No credit\nfor key {KEY[:14]}… ({KEY})"}}
    server.script = [Reply(body=completion("SAME"))]
    server.always = Reply(status, body, {"x-should-retry": "true", **AT_ONCE})
    judge = make(concurrency=1)
    assert judge.decide(questions(50)) == [True] + [None] * 49
    assert len(server.requests) == 2, "nothing is retried, whatever the server says, and nothing more is asked"
    (record,) = caplog.records
    assert record.levelname == "ERROR" and record.message.isprintable()
    for part in ("49 of 50 questions", f"({status}: No credit for key *** ***)", MODEL, "run again once it answers"):
        assert part in record.message
    report = judge.report()
    assert (report["right"], report["failed"], report["asked"]) == (1, 49, 2)
    assert f"{status}: No credit" in report["stopped"]
    assert "loopback" not in str(report) + caplog.text + "".join(capfd.readouterr()), "no part of the key is shown"
    assert judge.end_run() == report["stopped"] and judge.end_run() is None
    server.always = None
    assert make().decide(questions(1)) == [True]
    assert len(server.requests) == 2, "what had been answered is kept"


def test_verdicts_that_are_under_way_when_one_is_refused_are_kept(server: JudgeServer, make: MakeJudge) -> None:
    server.barrier = threading.Barrier(3)
    server.script = [Reply(402, {"error": {"message": "Insufficient credits"}})]
    judge = make(concurrency=3)
    assert sorted(map(str, judge.decide(questions(3)))).count("None") == 1
    assert judge.report()["failed"] == 1


def test_the_line_says_what_becomes_of_open_questions(
    server: JudgeServer, make: MakeJudge, caplog: pytest.LogCaptureFixture
) -> None:
    server.always = Reply(402, {"error": {"message": "Insufficient credits"}})
    for mode in ("undecided", "all"):
        assert make(mode=mode).decide([HALF]) == [None]
    undecided, everything = (record.message for record in caplog.records)
    assert "stay undecided and count as wrong" in undecided and "the checker's verdict stands" in everything


def test_a_missing_key_that_the_server_wants_is_said(server: JudgeServer, make: MakeJudge) -> None:
    server.always = Reply(401, {"error": {"message": "Missing key"}})
    with pytest.raises(UserError, match=r"OPENROUTER_API_KEY, which is not set, .*\(401: Missing key\)"):
        make(api_key=None).check()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(400, {"error": {"message": "no such model\x1b[31m\n at all"}}), "400: no such model [31m at all"),
        (Reply(402, {"error": {"message": "Insufficient credits"}}), "402: Insufficient credits"),
        (Reply(404, "<html>\n<h1>nothing here</h1></html>"), "404: Not Found"),
        (Reply(404, {"detail": [1]}), "404: Not Found"),
        (Reply(413, {"error": "too long"}), "413: "),
        (Reply(422, {"error": {"message": "w" * 1000}}), "422: www"),
        (Reply(499, ""), "499: "),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_a_refused_trial_question_is_one_line_with_its_reason(
    server: JudgeServer, make: MakeJudge, reply: Reply, reason: str
) -> None:
    server.always = replace(reply, headers={"x-should-retry": "true", **AT_ONCE})
    with pytest.raises(UserError) as raised:
        make().check()
    assert len(server.requests) == 1
    message = str(raised.value)
    assert message.isprintable() and len(message) < 500
    assert f"({reason}" in message and MODEL in message


def test_questions_that_the_server_never_takes_are_given_up(server: JudgeServer, make: MakeJudge) -> None:
    server.always = Reply(400, {"error": {"message": "no max_tokens here"}})
    assert make(concurrency=1, stop_after=4).decide(questions(40)) == [None] * 40
    assert len(server.requests) == 4


def test_one_question_that_is_too_long_loses_no_evaluation(
    server: JudgeServer, make: MakeJudge, caplog: pytest.LogCaptureFixture
) -> None:
    too_long = Reply(400, {"error": {"message": "maximum context length is 2048"}})
    server.script = [Reply(body=completion("SAME")), too_long]
    assert make(concurrency=1).decide(questions(4)) == [True, None, True, False]
    assert "1 of 4 questions" in caplog.text and "400: maximum context length is 2048" in caplog.text


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_a_passing_failure_is_tried_again(server: JudgeServer, make: MakeJudge, status: int) -> None:
    server.script = [Reply(status, {"error": {"message": "later"}}, AT_ONCE)] * 5
    judge = make()
    assert judge.decide([HALF]) == [True]
    assert len(server.requests) == 6
    assert judge.report()["failed"] == 0


def test_retry_after_is_obeyed(server: JudgeServer, make: MakeJudge) -> None:
    server.script = [Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})]
    assert make().decide([HALF]) == [True]
    first, second = server.times
    assert second - first >= 1


def test_retry_after_may_be_a_date(server: JudgeServer, make: MakeJudge) -> None:
    in_two_seconds = formatdate(time.time() + 2, usegmt=True)  # whole seconds: one at least
    server.script = [Reply(503, "", {"Retry-After": in_two_seconds})]
    assert make().decide([HALF]) == [True]
    first, second = server.times
    assert second - first >= 0.9


@pytest.mark.parametrize(
    ("seconds", "waited"), [("240", [240.0]), ("301", []), ("nan", [0.5]), ("-5", [0.5]), ("inf", []), ("soon", [0.5])]
)
def test_any_wait_within_the_deadline_is_waited(
    server: JudgeServer, make: MakeJudge, seconds: str, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    async def sleep(wait: float) -> None:
        waits.append(wait)

    monkeypatch.setattr("lm_eval_sae.judge.retries.asyncio.sleep", sleep)
    monkeypatch.setattr("lm_eval_sae.judge.retries.random.uniform", lambda _low, high: high)
    server.script = [Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": seconds})]
    assert make().decide([HALF]) == [True if waited else None]
    assert [wait for wait in waits if wait] == waited


def test_waits_grow_where_the_server_names_none(server: JudgeServer, make: MakeJudge) -> None:
    server.script = [Reply(500, "oops")] * 2
    assert make().decide([HALF]) == [True]
    first, second, third = server.times
    assert second - first >= 0.75 * 0.5 and third - second >= 0.75 * 1, "up to a quarter is taken off"


@pytest.mark.parametrize("status", [429, 500])
def test_a_failure_for_ever_is_counted_and_warned_of_once(
    server: JudgeServer, make: MakeJudge, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.always = Reply(status, {"error": {"message": f"no capacity for {KEY}"}}, AT_ONCE)
    judge = make(concurrency=1, max_retries=2, stop_after=4)
    assert judge.decide(questions(40)) == [None] * 40
    assert len(server.requests) == 4 * 3, "after four failures in a row, of three requests each, it asks no more"
    (warning,) = caplog.records
    assert "40 of 40 questions" in warning.message and f"{status}: no capacity for ***" in warning.message
    report = judge.report()
    assert (report["questions"], report["asked"], report["failed"], report["undecided"]) == (40, 4, 40, 0)
    server.always = None
    assert judge.decide(questions(2)) == [True, False], "the next task's questions are asked"


def test_an_answer_between_failures_goes_on(server: JudgeServer, make: MakeJudge) -> None:
    failure = Reply(503, "", AT_ONCE)
    server.script = [failure, failure, Reply(body=completion("SAME"))] * 3
    asked = questions(9)
    assert make(concurrency=1, max_retries=0, stop_after=3).decide(asked) == [None, None, True] * 3


def test_a_server_that_asks_to_wait_for_an_hour_is_not_waited_for(server: JudgeServer, make: MakeJudge) -> None:
    server.always = Reply(429, {"error": {"message": "daily limit"}}, {"Retry-After": "3600"})
    assert make().decide([HALF]) == [None]
    assert len(server.requests) == 1


@pytest.mark.parametrize(("manner", "seconds"), [("hang", 0.2), ("drip", 0.5)])
def test_a_server_that_hangs_is_given_up(
    server: JudgeServer, make: MakeJudge, manner: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    server.always = Reply(body=completion("SAME"), manner=manner)
    judge = make(timeout=0.2, deadline=0.5, max_retries=0)
    start = time.monotonic()
    assert judge.decide([HALF, THIRD]) == [None, None]
    assert seconds <= time.monotonic() - start < 5
    assert ("timed out" if manner == "hang" else "no reply within 0.5 s") in caplog.text


def test_the_deadline_holds_for_all_retries_of_a_question(server: JudgeServer, make: MakeJudge) -> None:
    server.always = Reply(503, "", {"Retry-After": "100"})
    start = time.monotonic()
    assert make(deadline=0.5).decide([HALF]) == [None]
    assert time.monotonic() - start < 5


def test_a_connection_cut_in_the_middle_of_a_reply_is_tried_again(server: JudgeServer, make: MakeJudge) -> None:
    server.script = [Reply(body=completion("SAME"), manner="drop")]
    assert make().decide([HALF]) == [True]
    assert len(server.requests) == 2


def test_a_server_that_is_not_there(make: MakeJudge, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = unused.getsockname()[1]
        judge = make(base_url=f"http://127.0.0.1:{port}/v1", max_retries=1)
        assert judge.decide([HALF]) == [None]
        assert f"127.0.0.1:{port}: Connection error." in caplog.text
        with pytest.raises(UserError, match=rf"trial question \(127.0.0.1:{port}: Connection error.\)"):
            judge.check()


# ------------------------------------------------------------------------------------------------------ trial question


def test_the_trial_question_passes_where_the_judge_works(server: JudgeServer, make: MakeJudge) -> None:
    judge = make()
    for n in (1, 2):
        judge.check()
        assert len(server.requests) == n, "it is asked anew each time: a key may have expired"
    report = judge.report()
    assert (report["questions"], report["asked"], report["prompt_tokens"]) == (0, 0, 600)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(401, {"error": {"message": "User not found."}}), r"does not accept OPENROUTER_API_KEY .*401: User not"),
        (Reply(404, {"error": {"message": "No endpoints found"}}), r"refuses a request .*404: No endpoints found"),
        (Reply(429, {"error": {"message": "busy"}}, AT_ONCE), r"trial question \(127\.0\.0\.1:\d+: 429: busy\)"),
        (Reply(200, completion("Sure! They agree.")), "neither of SAME, DIFFERENT"),
        (Reply(200, "<html>"), "neither of SAME, DIFFERENT"),
    ],
)
def test_the_trial_question_finds_what_is_wrong(
    server: JudgeServer, make: MakeJudge, reply: Reply, expected: str
) -> None:
    server.always = reply
    with pytest.raises(UserError, match=expected):
        make().check()
