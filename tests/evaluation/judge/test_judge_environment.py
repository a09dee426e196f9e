"""The environment variables that make a judge; no test leaves the machine."""

from pathlib import Path

import pytest
from judge_questions import HALF, MODEL
from judge_server import KEY, JudgeServer

from lm_eval_sae.errors import UserError
from lm_eval_sae.judge.client import Judge, get_judge


def set_variables(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_the_judge_is_off_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_variables(monkeypatch, OPENROUTER_API_KEY=KEY, PROCESSOR="", JUDGE="undecided")
    assert get_judge() is None
    assert not (tmp_path / "xdg").exists()


def test_the_environment_in_full(monkeypatch: pytest.MonkeyPatch, server: JudgeServer, tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    set_variables(
        monkeypatch, PROCESSOR=MODEL, OPENROUTER_API_KEY=KEY, PROCESSOR_BASE_URL=f"{server.base_url}/", JUDGE="all",
        JUDGE_CONCURRENCY="3", JUDGE_CACHE=str(folder),
    )  # fmt: skip
    judge = get_judge()
    assert judge is get_judge() and (judge.mode, judge.concurrency) == ("all", 3)
    assert judge.decide([HALF]) == [True] and list(folder.iterdir())
    assert server.authorizations == [f"Bearer {KEY}"]


def test_defaults_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_variables(monkeypatch, PROCESSOR=MODEL, OPENROUTER_API_KEY=KEY)
    judge = Judge.from_environment()
    assert (judge.base_url, judge.mode, judge.concurrency) == ("https://openrouter.ai/api/v1", "undecided", 8)
    assert Path(judge.cache.directory) == tmp_path / "xdg" / "reasoning-features" / "judge"


def test_a_server_of_ones_own_needs_no_key_and_gets_no_other(
    monkeypatch: pytest.MonkeyPatch, server: JudgeServer
) -> None:
    set_variables(monkeypatch, PROCESSOR=MODEL, PROCESSOR_BASE_URL=server.base_url, OPENAI_API_KEY="of-another-service")
    assert Judge.from_environment().decide([HALF]) == [True]
    assert server.authorizations == [None]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OPENROUTER_API_KEY": ""}, "PROCESSOR is set but OPENROUTER_API_KEY is not"),
        ({"OPENROUTER_API_KEY": f"{KEY} x"}, "OPENROUTER_API_KEY holds a character"),
        ({"JUDGE": "al"}, "JUDGE is 'al'; expected undecided or all or published; did you mean 'all'?"),
        ({"JUDGE": "all", "PROCESSOR": ""}, "JUDGE is 'all' but PROCESSOR is not set"),
        ({"JUDGE_CONCURRENCY": "0"}, "JUDGE_CONCURRENCY is '0'"),
        ({"PROCESSOR_BASE_URL": "openrouter.ai/api/v1"}, "PROCESSOR_BASE_URL is not an address"),
        ({"PROCESSOR_BASE_URL": f"https://user:{KEY}@host/v1"}, "PROCESSOR_BASE_URL is not"),
    ],
)
def test_a_mistake_in_the_environment_is_one_line(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    set_variables(monkeypatch, **{"PROCESSOR": MODEL, "OPENROUTER_API_KEY": KEY, **variables})
    with pytest.raises(UserError) as raised:
        Judge.from_environment()
    message = str(raised.value)
    assert expected in message
    assert message.isprintable() and KEY[9:] not in message


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    set_variables(monkeypatch, PROCESSOR=MODEL, OPENROUTER_API_KEY=KEY, JUDGE_CACHE=str(tmp_path / "file" / "folder"))
    with pytest.raises(UserError, match="cannot be kept in .*set JUDGE_CACHE"):
        Judge.from_environment()
