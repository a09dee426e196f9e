"""A language model that says whether an answer means the same as the expected one, where the checker cannot decide.

Any server that speaks OpenAI's chat-completions protocol. The environment names it; without PROCESSOR there is none:

    PROCESSOR           the model, for instance meta-llama/llama-3.3-70b-instruct (the paper's)
    OPENROUTER_API_KEY  the key of the server; needed for OpenRouter
    PROCESSOR_BASE_URL  its address, https://openrouter.ai/api/v1 by default
    JUDGE               undecided (default): what the checker cannot decide; all: every answer that is no number
    JUDGE_CONCURRENCY   questions asked at once, 8 by default
    JUDGE_CACHE         folder of its answers, ~/.cache/reasoning-features/judge by default

The prompt is prompt.txt, beside this file.
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import diskcache

from lm_eval_sae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

OPENROUTER = "https://openrouter.ai/api/v1"
PROMPT_FILE = Path(__file__).parent / "prompt.txt"
VERDICTS = {"SAME": True, "DIFFERENT": False}
MAX_ANSWER_CHARACTERS = 4000
"""Of a longer answer the end is shown: that is where a solution settles on its result."""
MAX_REPLY_TOKENS = 1024
"""The verdict is one word; a model that reasons first needs the rest."""
CACHE_ERRORS = (sqlite3.Error, diskcache.Timeout, OSError)
PASSING_STATUSES = (408, 409, 429)
"""Besides 5xx: the statuses after which the client library tries again."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
QUESTION_STATUSES = (400, 413, 422)
"""Statuses for a question that is too long; for the trial question: the server accepts no requests."""
UNANSWERED = {
    "undecided": "which stay undecided and count as wrong",
    "all": "for which the checker's verdict stands",
}
"""By mode: what becomes of a question without a verdict."""


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

    def __post_init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._cost_usd: float | None = None
        self._last_failure = ""
        self._stopped: str | None = None
        self._prompt = PROMPT_FILE.read_text(encoding="utf-8")

    @classmethod
    def from_environment(cls) -> "Judge | None":
        """The judge that the environment asks for, None if PROCESSOR is unset. Nothing is sent yet.

        Raises:
            UserError: a variable is missing or wrong, or answers cannot be kept on disk.
        """
        model, mode = _variable("PROCESSOR"), _variable("JUDGE", "undecided")
        if mode not in UNANSWERED:
            raise UserError(f"JUDGE is '{mode}'; expected {' or '.join(UNANSWERED)}{did_you_mean(mode, UNANSWERED)}")
        if not model:
            if mode == "all":
                raise UserError("JUDGE is 'all' but PROCESSOR is not set; set it to the model that judges")
            return None
        base_url = _variable("PROCESSOR_BASE_URL", OPENROUTER)
        if not re.fullmatch(r"https?://[!-~]+", base_url) or re.search("[@?#]", base_url):
            # The address itself is not shown, and the client library would log it: it may hold a password.
            raise UserError(f"PROCESSOR_BASE_URL is not an address without user name and query, such as {OPENROUTER}")
        api_key = _variable("OPENROUTER_API_KEY") or None
        if api_key is None and base_url.startswith(OPENROUTER):
            raise UserError(
                "PROCESSOR is set but OPENROUTER_API_KEY is not; set it to a key of openrouter.ai, "
                "or PROCESSOR_BASE_URL to a server that needs none"
            )
        address = urlsplit(base_url)
        if api_key and address.scheme == "http" and address.hostname not in LOOPBACK:
            raise UserError(
                "OPENROUTER_API_KEY is set and PROCESSOR_BASE_URL begins with http://, so that anyone on the way could "
                "read the key; use https://, or unset OPENROUTER_API_KEY for a server that needs none"
            )
        if api_key and not re.fullmatch("[!-~]+", api_key):  # the error of a header that cannot be sent shows the key
            raise UserError("OPENROUTER_API_KEY holds a character that no key has, a space perhaps")
        concurrency = _variable("JUDGE_CONCURRENCY", "8")
        if not re.fullmatch("[1-9][0-9]{0,2}", concurrency):
            raise UserError(f"JUDGE_CONCURRENCY is '{concurrency}'; expected a whole number from 1 to 999")
        default = Path(_variable("XDG_CACHE_HOME", "~/.cache")) / "reasoning-features" / "judge"
        cache = open_cache(Path(_variable("JUDGE_CACHE", str(default))).expanduser())
        limits = {"mode": mode, "concurrency": int(concurrency)}
        return cls(model=model, cache=cache, base_url=base_url, api_key=api_key, **limits)

    def decide(self, questions: Sequence[JudgeQuestion]) -> list[bool | None]:
        """Whether each answer means the same as the expected one; None if the judge could not say.

        Equal questions are asked once. A question on which the server fails (past the client's retries) is None and
        counted. No more are asked, and the rest is counted likewise, after `stop_after` of those in a row, and at
        once if the server refuses the key, the model, or for want of credit (401 to 404). Nothing is raised, because
        an evaluation of hours would be lost: one line says how many questions are open and what to do. A reply that is
        no verdict is None and counted too.
        """
        prompts = [self.prompt(question) for question in questions]
        keys = [self._key(prompt) for prompt in prompts]
        outcomes: dict[str, Outcome] = {}
        for key in dict.fromkeys(keys):
            if (verdict := self._kept(key)) is not None:
                outcomes[key] = Outcome.RIGHT if verdict else Outcome.WRONG
        to_ask = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in outcomes}
        self._counts["cached"] += len(outcomes)
        stopped = None
        if to_ask:
            asked, stopped = asyncio.run(self._ask_all(to_ask))
            outcomes |= asked
            self._stopped = stopped or self._stopped
        self._counts["questions"] += len(keys)
        self._counts.update(outcomes[key].value for key in keys)
        if failed := sum(outcomes[key] is Outcome.FAILED for key in keys):
            logger.log(
                logging.WARNING if stopped is None else logging.ERROR,
                "The judge gave no answer to %d of %d questions, %s (%s); run again once it answers: verdicts are kept",
                failed, len(keys), UNANSWERED[self.mode], stopped or self._last_failure,
            )  # fmt: skip
        return [{Outcome.RIGHT: True, Outcome.WRONG: False}.get(outcomes[key]) for key in keys]

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
                f"{', '.join(VERDICTS)}; check PROCESSOR_BASE_URL, or set PROCESSOR to a model that can"
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

    def request(self, prompt: str) -> dict[str, Any]:
        """Arguments of the client library's chat.completions.create."""
        from openai import Omit

        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        if self.base_url.startswith(OPENROUTER):
            request["extra_body"] = {"usage": {"include": True}}  # asks for the cost
        if self.api_key is None:
            request["extra_headers"] = {"Authorization": Omit()}
        return request

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self.base_url, self.model, prompt]).encode()).hexdigest()

    def _kept(self, key: str) -> int | None:
        with contextlib.suppress(*CACHE_ERRORS):  # asked again
            return self.cache.get(key)
        return None

    def _keep(self, key: str, verdict: bool) -> None:
        try:
            self.cache.set(key, int(verdict))
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

    async def _ask_all(self, prompts: Mapping[str, str]) -> tuple[dict[str, Outcome], str | None]:
        """Asks prompts by key, `concurrency` at once; keeps each verdict as it comes. Also returns why it stopped."""
        from tqdm import tqdm

        outcomes: dict[str, Outcome] = {}
        waiting = iter(prompts.items())
        failed_in_a_row = 0
        stopped: str | None = None

        async def work() -> None:
            nonlocal failed_in_a_row, stopped
            for key, prompt in waiting:
                if stopped is not None:
                    outcomes[key] = Outcome.FAILED
                    continue
                self._counts["asked"] += 1
                try:
                    outcome = await self._ask(client, prompt)
                except Refusal as error:
                    outcome, stopped = Outcome.FAILED, str(error)
                outcomes[key] = outcome
                failed_in_a_row = failed_in_a_row + 1 if outcome is Outcome.FAILED else 0
                if stopped is None and failed_in_a_row >= self.stop_after:
                    stopped = self._last_failure
                if outcome in (Outcome.RIGHT, Outcome.WRONG):
                    self._keep(key, outcome is Outcome.RIGHT)
                progress.update()

        async with self._client(max_retries=self.max_retries) as client:
            with tqdm(total=len(prompts), desc="judge", unit="question") as progress:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, len(prompts))):
                        group.create_task(work())
        return outcomes, stopped

    async def _ask_trial(self) -> Outcome:
        async with self._client(max_retries=min(self.max_retries, 2)) as client:
            return await self._ask(client, self.prompt(TRIAL), trial=True)

    async def _ask(self, client: "AsyncOpenAI", prompt: str, *, trial: bool = False) -> Outcome:
        """Raises Refusal."""
        from openai import APIStatusError, OpenAIError

        from lm_eval_sae.judge.server import one_line, refuses_content

        try:
            reply = await client.chat.completions.create(**self.request(prompt))
            return self._read(reply)
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

    def _read(self, reply: Any) -> Outcome:
        """The verdict of a reply, whose tokens and cost are added up."""
        if (usage := reply.usage) is not None:
            for name in ("prompt_tokens", "completion_tokens"):
                self._counts[name] += getattr(usage, name, None) or 0
            if type(cost := getattr(usage, "cost", None)) in (int, float) and 0 <= cost < 1e9:  # NaN is not
                self._cost_usd = (self._cost_usd or 0.0) + cost
        verdict = read_verdict(reply.choices[0].message.content or "")  # none if it only reasoned
        return Outcome.UNDECIDED if verdict is None else Outcome.RIGHT if verdict else Outcome.WRONG


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


def _variable(name: str, default: str = "") -> str:
    """A variable of the environment; an empty one counts as unset."""
    return os.environ.get(name, "").strip() or default
