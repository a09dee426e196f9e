"""JUDGE=published against a server on loopback: what the verifier is asked, in which order, and what becomes of it."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_questions import AT_ONCE, MODEL
from judge_server import KEY, JudgeServer, Reply, completion

from lm_eval_sae.errors import UserError
from lm_eval_sae.grading.published import process_aime, process_gpqa_diamond
from lm_eval_sae.judge.client import get_judge, open_cache
from lm_eval_sae.judge.filter import JudgeFilter
from lm_eval_sae.judge.published import PublishedJudge

MakeVerifier = Callable[..., PublishedJudge]
HALF = {"problem": "What is 1 / 2?", "answer": "0.5", "solution": r"\boxed{0.5}"}
LETTERS = {"Question": "Which?", "choices": ["a", "b", "c", "d"], "answer": "C"}


@pytest.fixture
def make(server: JudgeServer, tmp_path: Path) -> MakeVerifier:
    """Makes verifiers of `server` that share one cache and ask one question at a time."""

    def verifier(**changes: Any) -> PublishedJudge:
        settings = {"model": MODEL, "base_url": server.base_url, "api_key": KEY, "concurrency": 1, "max_retries": 0}
        return PublishedJudge(cache=open_cache(tmp_path / "cache"), mode="published", **settings | changes)

    return verifier


def replies(server: JudgeServer, *texts: str) -> None:
    server.script = [Reply(body=completion(text)) for text in texts]


def prompts(server: JudgeServer) -> list[str]:
    return [request["messages"][0]["content"] for request in server.requests]


def options_and_attempts(server: JudgeServer) -> list[tuple[str, str]]:
    """What the last lines of each prompt ask about."""
    found = [
        re.search(r"    Options: (.*)\n    Attempt: (.*)\Z", prompt.rpartition("YOUR TASK")[2])
        for prompt in prompts(server)
    ]
    return [(match[1], match[2]) for match in found if match]


@pytest.mark.parametrize(
    ("benchmark", "doc", "answer", "sha256"),  # of the published code's prompt
    [
        ("aime", {}, "one half", "e72d548e5af1ea09094dee2fbcae49d42737e9440b55b0548fdfa309b9ed5a1f"),
        ("math", {}, "one half", "118847e3efc13969757a022d7c9764be60e44c9628ef0ef7d08d8687609f31a1"),
        ("gpqa", LETTERS, "the third", "f7cdc8d9a18ae5cfe3fd560ab23ecbbf506c93e03f441c6cd865998b8c65e8da"),
    ],
)
def test_prompts_to_the_letter(benchmark: str, doc: dict, answer: str, sha256: str, make: MakeVerifier) -> None:
    prompt = make().verifier_prompt(benchmark, doc, answer, ["0.5", "x"])
    assert hashlib.sha256(prompt.encode()).hexdigest() == sha256


def test_the_options_grow_from_repeat_to_repeat(server: JudgeServer, make: MakeVerifier) -> None:
    texts = ["one half", "0.4", "two fifths", "0.50", "0.6", "0.7", "0.8", "9", "0.6"]
    replies(server, "1", "-1", "2", "1", " 1", "one", "5", "0", "3")
    completions = [[rf"\boxed{{{text}}}" for text in texts]]
    judge = make()
    judge.verify("math", completions, [HALF])
    assert options_and_attempts(server) == [
        ("['0.5']", "one half"),
        ("['0.5']", "0.4"),
        ("['0.5', '0.4']", "two fifths"),
        ("['0.5', '0.4']", "0.50"),
        ("['0.5', '0.4']", "0.6"),  # " 1" is no index: it stays as it is
        ("['0.5', '0.4', '0.6']", "0.7"),
        ("['0.5', '0.4', '0.6', '0.7']", "0.8"),  # of which there is no fifth
        ("['0.5', '0.4', '0.6', '0.7', '0.8']", "9"),
        ("['0.5', '0.4', '0.6', '0.7', '0.8', '9']", "0.6"),
    ]
    assert [text.verified for text in completions[0]] == ["0.5", "0.4", "0.4", "0.5", "0.6", "0.7", "0.8", "9", "0.6"]


def test_the_request_is_the_published_one(server: JudgeServer, make: MakeVerifier) -> None:
    replies(server, "1")
    make().verify("math", [[r"\boxed{one half}"]], [HALF])
    (request,) = server.requests
    assert [message["role"] for message in request["messages"]] == ["user"]
    assert (request["model"], request["temperature"], request["max_tokens"]) == (MODEL, 0.5, 1024)


def test_only_what_is_not_settled_is_asked(server: JudgeServer, make: MakeVerifier) -> None:
    replies(server, "-1", "-1", "-1")
    whole = {"answer": "12"}
    make().verify("aime", [[r"\boxed{012}", "nothing", r"\boxed{12.0}"], [r"\boxed{7}", "Answer: 7", "0"]], [whole] * 2)
    assert options_and_attempts(server) == [("['12', '0']", "12.0")], "no answer is the whole number 0"
    server.requests.clear()
    replies(server, "C", "-1")
    make().verify("gpqa", [["Answer: C", r"\boxed{b}", "Answer: D."], ["Answer: A", "x" * 5000, "D"]], [LETTERS] * 2)
    assert [prompt.rpartition("Attempt: ")[2] for prompt in prompts(server)] == ["x" * 5000, "D."]


def test_a_letter_is_what_the_reply_says_and_nothing_else(server: JudgeServer, make: MakeVerifier) -> None:
    completions = [[f"the third, {i}" for i in range(6)]]
    replies(server, "C", "B", "-1", "c", "C\n", "The third")
    judge = make()
    judge.verify("gpqa", completions, [LETTERS])
    scored = process_gpqa_diamond(LETTERS, completions)
    assert scored["extracted_answers"] == ["C", "B", "None", "None", "None", "None"]
    assert (scored["exact_match_published"], scored["maj@2_published"], scored["maj@4_published"]) == (1, 1, 0)
    assert scored["exact_match"] == 0 and scored["undecided"] == 1, "our own metric asks nobody"
    report = judge.report()
    assert (report["mode"], report["questions"], report["right"], report["wrong"]) == ("published", 6, 1, 5)


def test_each_question_has_its_own_options(server: JudgeServer, make: MakeVerifier) -> None:
    replies(server, "-1", "1", "2", "2")
    make().verify("math", [["Answer: a", "Answer: b"], ["Answer: c", "Answer: d"]], [HALF, HALF])
    assert options_and_attempts(server) == [
        ("['0.5']", "a"), ("['0.5']", "c"), ("['0.5', 'a']", "b"), ("['0.5']", "d"),
    ]  # fmt: skip


def test_a_reply_is_kept_and_not_asked_for_again(server: JudgeServer, make: MakeVerifier) -> None:
    replies(server, "-1", "2")
    first, second = ([["Answer: one half", "Answer: 1 of 2"]] for _ in range(2))
    make().verify("math", first, [HALF])
    judge = make()
    judge.verify("math", second, [HALF])
    assert len(server.requests) == 2
    assert [text.verified for text in second[0]] == [text.verified for text in first[0]] == ["one half", "one half"]
    assert (judge.report()["asked"], judge.report()["cached"]) == (0, 2)


def test_a_verifier_that_fails_is_given_up(server: JudgeServer, make: MakeVerifier) -> None:
    server.always = Reply(500, {"error": {"message": "busy"}}, AT_ONCE)
    completions = [[r"\boxed{0.5}", r"\boxed{1/2}", r"\boxed{x}"] for _ in range(2)]
    judge = make(stop_after=2)
    judge.verify("math", completions, [HALF] * 2)
    # Equal questions are one: the first two repeats fail in a row, and the third is not asked.
    assert [attempt for _, attempt in options_and_attempts(server)] == ["0.5", "1/2"]
    report = judge.report()
    assert (report["questions"], report["asked"], report["failed"], report["right"]) == (6, 2, 6, 0)
    assert judge.end_run(), "the run ends with status 3"
    # The next task is a new start: one more failure does not end it.
    server.always, server.script = None, [Reply(500, {}, AT_ONCE), Reply(body=completion("1"))]
    later = [["Answer: a", "Answer: b"]]
    judge.verify("math", later, [HALF])
    assert later[0][1].verified == "0.5" and judge.end_run() is None
    scored = process_aime({"answer": "0.5"}, completions[:1])
    assert scored["extracted_answers"] == ["0.5", "1/2", "x"] and scored["exact_match_published"] == 1


def test_the_filter_asks_for_what_its_task_names(
    server: JudgeServer, make: MakeVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = make()
    monkeypatch.setattr("lm_eval_sae.judge.client.get_judge", lambda: judge)
    replies(server, "1")
    undecided = [[r"\boxed{the half}"]]
    (kept,) = JudgeFilter(answers="math", published="aime").apply(undecided, [HALF])
    assert kept == undecided[0] and (kept[0].verified, kept[0].judged) == ("0.5", None)
    scored = process_aime(HALF, [kept])
    assert (scored["exact_match_published"], scored["exact_match"], scored["undecided"]) == (1, 0, 1)
    assert JudgeFilter(answers="number").apply(undecided, [HALF]) == undecided  # has no published rule
    assert len(server.requests) == 1


def test_the_environment_names_it(monkeypatch: pytest.MonkeyPatch, server: JudgeServer) -> None:
    monkeypatch.setenv("JUDGE", "published")
    with pytest.raises(UserError, match="JUDGE is 'published' but PROCESSOR is not set"):
        get_judge()
    monkeypatch.setenv("PROCESSOR", MODEL)
    monkeypatch.setenv("PROCESSOR_BASE_URL", server.base_url)
    judge = get_judge()
    assert isinstance(judge, PublishedJudge) and judge.mode == "published"


def test_the_trial_question_finds_a_model_that_replies_with_no_index(server: JudgeServer, make: MakeVerifier) -> None:
    replies(server, "1", "-1", "The first")
    judge = make()
    judge.check()
    judge.check()
    with pytest.raises(UserError, match="replies to a trial question with neither of 1, -1"):
        judge.check()
    assert options_and_attempts(server) == [("['2']", "two")] * 3
