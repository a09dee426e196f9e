"""A language model that says whether an answer means the same as the expected one, where the checker cannot decide.

Any server that speaks OpenAI's chat-completions protocol. The environment names it (environment.py). The prompt is
prompt.txt, beside this file.
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import diskcache

from lm_eval_sae.errors import UserError
from lm_eval_sae.judge.environment import OPENROUTER, UNANSWERED, read_environment

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

PROMPT_FILE = Path(__file__).parent / "prompt.txt"
VERDICTS = {"SAME": True, "DIFFERENT": False}
MAX_ANSWER_CHARACTERS = 4000
"""Of a longer answer the end is shown: that is where a solution settles on its result."""
MAX_REPLY_TOKENS = 1024
"""The verdict is one word; a model that reasons first needs the rest."""
CACHE_ERRORS = (sqlite3.Error, diskcache.Timeout, OSError)
PASSING_STATUSES = (408, 409, 429)
"""Besides 5xx: the statuses after which the client library tries again."""
QUESTION_STATUSES = (400, 413, 422)
"""Statuses for a question that is too long; for the trial question: the server accepts no requests."""


@dataclass(frozen=True)
class JudgeQuestion:
    """Does `answer` mean the same as `expected`, as an answer to `problem`?"""

    problem: str
    expected: str
    answer: str
    """The extracted answer, or the end of the completion if none was extracted."""


TRIAL = JudgeQuestion(problem="What is 1 + 1?", expected="2", answer="two")


class Outcome(StrEnum):
    """What became of a question."""

    RIGHT = "right"
    WRONG = "wrong"
    UNDECIDED = "undecided"  # the model replied, but not with a verdict
    FAILED = "failed"  # no reply after every retry, or not asked any more


class Refusal(UserError):
    """The server will not answer any question: it rejects the key, the model, or every request."""


@dataclass(kw_only=True)
class Judge:
    """Decides questions by asking a model, many at once; definite answers are kept on disk and not asked for again."""

    model: str
    """The model's name, as the server knows it."""
    cache: diskcache.Cache
    """Verdicts of earlier runs: 1 or 0 by the hash of server, model and prompt."""
    base_url: str = OPENROUTER
    """Address of the server, up to /chat/completions."""
    api_key: str | None = field(default=None, repr=False)
    """Key of the server; None sends none."""
    mode: str = "undecided"
    """"undecided" or "all": which answers the scoring asks about."""
    concurrency: int = 8
    """Questions asked at once."""
    timeout: float = 60.0
    """Seconds of silence after which a request counts as lost."""
    max_retries: int = 10
    """Further requests of the client library after 408, 409, 429, 5xx or a lost connection."""
    stop_after: int = 8
    """Failed questions in a row after which a call of `decide` asks no more."""
    temperature: ClassVar[float] = 0.0
    replies: ClassVar[tuple[str, ...]] = tuple(VERDICTS)
    """What the model may reply to the trial question."""

    def __post_init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._cost_usd: float | None = None
        self._last_failure = ""
        self._failed_in_a_row = 0
        self._stopped: str | None = None
        self._prompt = PROMPT_FILE.read_text(encoding="utf-8")

    @classmethod
    def from_environment(cls) -> "Judge | None":
        """The judge that the environment asks for, None if PROCESSOR is unset. Nothing is sent yet.

        Raises:
            UserError: a variable is missing or wrong, or answers cannot be kept on disk.
        """
        if (settings := read_environment()) is None:
            return None
        cache = open_cache(settings.pop("cache_folder"))
        if settings["mode"] == "published":
            from lm_eval_sae.judge.published import PublishedJudge as cls
        return cls(cache=cache, **settings)

    def decide(self, questions: Sequence[JudgeQuestion]) -> list[bool | None]:
        """Whether each answer means the same as the expected one; None if the judge could not say.

        Equal questions are asked once. A question on which the server fails (past the client's retries) is None and
        counted. No more are asked, and the rest is counted likewise, after `stop_after` of those in a row, and at
        once if the server refuses the key, the model, or for want of credit (401 to 404). Nothing is raised, because
        an evaluation of hours would be lost: one line says how many questions are open and what to do. A reply that is
        no verdict is None and counted too.
        """
        found, stopped = self.ask([self.prompt(question) for question in questions])
        outcomes = [
            value if isinstance(value, Outcome) else Outcome.RIGHT if value else Outcome.WRONG for value in found
        ]
        self.account(outcomes, stopped)
        return [{Outcome.RIGHT: True, Outcome.WRONG: False}.get(outcome) for outcome in outcomes]

    def ask(self, prompts: Sequence[str]) -> tuple[list[Any], str | None]:
        """What `read` makes of the reply to each prompt, else Outcome.UNDECIDED or FAILED; and why it asked no more."""
        keys = [self._key(prompt) for prompt in prompts]
        found = {key: kept for key in dict.fromkeys(keys) if (kept := self._kept(key)) is not None}
        to_ask = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in found}
        self._counts["cached"] += len(found)
        stopped = None
        if to_ask:
            asked, stopped = asyncio.run(self._ask_all(to_ask))
            found |= asked
            self._stopped = stopped or self._stopped
        return [found[key] for key in keys], stopped

    def account(self, outcomes: Sequence[Outcome], stopped: str | None) -> None:
        """Ends a call: counts what became of its questions, and says in one line if some are open."""
        self._failed_in_a_row = 0
        self._counts["questions"] += len(outcomes)
        self._counts.update(outcome.value for outcome in outcomes)
        if failed := outcomes.count(Outcome.FAILED):
            logger.log(
                logging.WARNING if stopped is None else logging.ERROR,
                "The judge gave no answer to %d of %d questions, %s (%s); run again once it answers: verdicts are kept",
                failed, len(outcomes), UNANSWERED[self.mode], stopped or self._last_failure,
            )  # fmt: skip

    @staticmethod
    def read(reply: str) -> Any:
        """What is kept of a reply, 1 or 0 for its verdict; None if there is nothing to keep."""
        verdict = read_verdict(reply)
        return None if verdict is None else int(verdict)

    def check(self) -> None:
        """Asks one trial question, so that a wrong key, model or address is known before the generations are made.

        Raises:
            UserError: the server refuses, cannot be reached, or the model does not reply with a verdict.
        """

        outcome = asyncio.run(self._ask_trial())
        if outcome is Outcome.FAILED:
            raise UserError(
                f"the judge does not answer a trial question ({self._last_failure}); "
                "check PROCESSOR_BASE_URL and the connection, or unset PROCESSOR"
            )
        if outcome is Outcome.UNDECIDED:
            raise UserError(
                f"the judge '{self.model}' at {self.host} replies to a trial question with neither of "
                f"{', '.join(self.replies)}; check PROCESSOR_BASE_URL, or set PROCESSOR to a model that can"
            )

    def report(self) -> dict[str, Any]:
        """What was asked and what it cost, for the results file.

        right + wrong + undecided + failed = questions. `asked` counts the distinct questions that went to the server,
        `cached` those that an earlier answer settled. `stopped` says why it was asked no more, null if it answered to
        the end; `cost_usd` is null if the server does not say. All are of the run since the last `end_run`, the tokens
        and cost of its trial question included.
        """
        counted = ("questions", "asked", "cached", *Outcome, "prompt_tokens", "completion_tokens")
        return {
            "model": self.model,
            "host": self.host,
            "mode": self.mode,
            "prompt_sha": hashlib.sha256(self._prompt.encode()).hexdigest(),
            **{str(name): self._counts[name] for name in counted},
            "cost_usd": self._cost_usd,
            "stopped": self._stopped,
        }

    def end_run(self) -> str | None:
        """Starts the counts again. Returns why the run that ends asked no more, None if it did not stop."""
        stopped = self._stopped
        self._counts, self._cost_usd, self._stopped = Counter(), None, None
        return stopped

    @property
    def host(self) -> str:
        """Host and port of the server."""
        return urlsplit(self.base_url).netloc

    def prompt(self, question: JudgeQuestion) -> str:
        """The text that asks a question.

        Its marks carry a code that depends on the question's text: an answer that imitates them cannot know it.
        """
        parts = (question.problem, question.expected, question.answer.strip()[-MAX_ANSWER_CHARACTERS:])
        # Half of a surrogate pair, which a cut-off generation may hold, cannot be sent.
        problem, expected, answer = (part.strip().encode(errors="replace").decode() for part in parts)
        mark = hashlib.sha256(json.dumps([problem, expected, answer]).encode()).hexdigest()[:12]
        return Template(self._prompt).substitute(problem=problem, expected=expected, answer=answer, mark=mark)

    def trial_prompt(self) -> str:
        """The text of `check`'s question, to which each of `replies` is a reply."""
        return self.prompt(TRIAL)

    def request(self, prompt: str) -> dict[str, Any]:
        """Arguments of the client library's chat.completions.create."""
        from openai import Omit

        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        if self.base_url.startswith(OPENROUTER):
            request["extra_body"] = {"usage": {"include": True}}  # asks for the cost
        if self.api_key is None:
            request["extra_headers"] = {"Authorization": Omit()}
        return request

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self.base_url, self.model, prompt]).encode()).hexdigest()

    def _kept(self, key: str) -> Any:
        with contextlib.suppress(*CACHE_ERRORS):  # asked again
            return self.cache.get(key)
        return None

    def _keep(self, key: str, value: Any) -> None:
        try:
            self.cache.set(key, value)
        except CACHE_ERRORS as error:  # a full disk must not lose the evaluation
            logger.warning("A verdict of the judge could not be kept: %s", error)

    def _client(self, *, max_retries: int) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        from lm_eval_sae.judge.server import make_client

        client = AsyncOpenAI(
            base_url=self.base_url,
            # Never None, which would send the key of another service, OPENAI_API_KEY.
            api_key=self.api_key or "none",
            timeout=self.timeout,
            max_retries=max_retries,
            http_client=make_client(),
        )
        client.organization = client.project = None  # of OpenAI's account, from the environment
        return client

    async def _ask_all(self, prompts: Mapping[str, str]) -> tuple[dict[str, Any], str | None]:
        """`ask` for prompts by key, `concurrency` at once; keeps what is read as it comes."""
        from tqdm import tqdm

        found: dict[str, Any] = {}
        waiting = iter(prompts.items())
        stopped: str | None = None

        async def work() -> None:
            nonlocal stopped
            for key, prompt in waiting:
                if stopped is not None:
                    found[key] = Outcome.FAILED
                    continue
                self._counts["asked"] += 1
                try:
                    value = await self._ask(client, prompt)
                except Refusal as error:
                    value, stopped = Outcome.FAILED, str(error)
                found[key] = value
                self._failed_in_a_row = self._failed_in_a_row + 1 if value is Outcome.FAILED else 0
                if stopped is None and self._failed_in_a_row >= self.stop_after:
                    stopped = self._last_failure
                if not isinstance(value, Outcome):
                    self._keep(key, value)
                progress.update()

        async with self._client(max_retries=self.max_retries) as client:
            with tqdm(total=len(prompts), desc="judge", unit="question") as progress:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, len(prompts))):
                        group.create_task(work())
        return found, stopped

    async def _ask_trial(self) -> Any:
        async with self._client(max_retries=min(self.max_retries, 2)) as client:
            return await self._ask(client, self.trial_prompt(), trial=True)

    async def _ask(self, client: "AsyncOpenAI", prompt: str, *, trial: bool = False) -> Any:
        """One value of `ask`. Raises Refusal."""
        from openai import APIStatusError, OpenAIError

        from lm_eval_sae.judge.server import one_line, refuses_content

        try:
            # The client's own limit is one of silence: a server could send a byte now and then for ever.
            async with asyncio.timeout((self.max_retries + 2) * self.timeout):
                reply = await client.chat.completions.create(**self.request(prompt))
            self._add_usage(reply.usage)
            value = self.read(reply.choices[0].message.content or "")  # nothing if it only reasoned
            return Outcome.UNDECIDED if value is None else value
        except APIStatusError as error:
            if refuses_content(error):
                return Outcome.UNDECIDED
            said = error.body.get("message") if isinstance(error.body, dict) else None
            said = said if isinstance(said, str) else error.response.reason_phrase
            self._last_failure = f"{self.host}: {error.status_code}: {one_line(said, self.api_key)}"
            passing = error.status_code in PASSING_STATUSES or error.status_code >= 500
            if not passing and (trial or error.status_code not in QUESTION_STATUSES):
                raise Refusal(
                    f"the judge refuses a request for '{self.model}' ({self._last_failure}); check OPENROUTER_API_KEY"
                    f"{'' if self.api_key else ' (not set)'}, PROCESSOR and PROCESSOR_BASE_URL, or unset PROCESSOR"
                ) from None
        except OpenAIError as error:
            self._last_failure = f"{self.host}: {one_line(str(error), self.api_key)}"
        except Exception as error:  # a server may reply anything, and must not end an evaluation of hours
            self._last_failure = f"{self.host}: a reply that does not follow the protocol ({type(error).__name__})"
        return Outcome.FAILED

    def _add_usage(self, usage: Any) -> None:
        """Adds up the tokens and the cost of a reply."""
        if usage is not None:
            for name in ("prompt_tokens", "completion_tokens"):
                self._counts[name] += getattr(usage, name, None) or 0
            if type(cost := getattr(usage, "cost", None)) in (int, float) and 0 <= cost < 1e9:  # NaN is not
                self._cost_usd = (self._cost_usd or 0.0) + cost


@functools.cache
def get_judge() -> Judge | None:
    """This process's judge, made from the environment on first use; None if it is off."""
    return Judge.from_environment()


def open_cache(folder: Path) -> diskcache.Cache:
    """The verdicts kept in a folder; parallel runs share it. Raises UserError if nothing can be written there."""
    try:
        cache = diskcache.Cache(str(folder), eviction_policy="none")
        cache.set("writable", 1)
        return cache
    except CACHE_ERRORS as error:
        raise UserError(
            f"the judge's answers cannot be kept in {folder}: {error}; set JUDGE_CACHE to a folder that can be written"
        ) from error


def read_verdict(reply: str) -> bool | None:
    """True for SAME, False for DIFFERENT, None for any other reply; reasoning up to </think> may come first."""
    return VERDICTS.get(reply.rpartition("</think>")[2].strip(" \t\r\n*_`'\".").upper())
