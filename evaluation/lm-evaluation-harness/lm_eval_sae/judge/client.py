"""A language model that says whether an answer means the same as the expected one, where a checker cannot decide.

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
import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from lm_eval_sae.errors import UserError
from lm_eval_sae.judge.cache import VerdictCache
from lm_eval_sae.judge.environment import CONCURRENCY, MODES, OPENROUTER, is_openrouter, read_settings
from lm_eval_sae.judge.errors import one_line, reason, refusal, refuses_content
from lm_eval_sae.judge.retries import ask_again, is_passing

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)
T = TypeVar("T")

PROMPT_FILE = Path(__file__).parent / "prompt.txt"
VERDICTS = {"SAME": True, "DIFFERENT": False}
MAX_ANSWER_CHARACTERS = 4000
"""Of a longer answer the end is shown: that is where a solution settles on its result."""
MAX_REPLY_TOKENS = 1024
"""The verdict is one word; a model that reasons first needs the rest."""
QUESTION_STATUSES = (400, 413, 422)
"""What a server says of a question that is too long for it; of the trial question, that it takes none at all."""


@dataclass(frozen=True)
class JudgeQuestion:
    """Does `answer` mean the same as `expected`, as an answer to `problem`?"""

    problem: str
    expected: str
    answer: str
    """The extracted answer, or the end of the completion where none was extracted."""


UNANSWERED = {
    "undecided": "which stay undecided and count as wrong",
    "all": "where the checker's verdict stands",
}
"""By mode: what a question without a verdict comes to."""
TRIAL = JudgeQuestion(problem="What is 1 + 1?", expected="2", answer="two")


class Outcome(StrEnum):
    """What became of a question."""

    RIGHT = "right"
    WRONG = "wrong"
    UNDECIDED = "undecided"  # the model replied, but not with a verdict
    FAILED = "failed"  # no reply after every retry, or not asked any more


class Refusal(UserError):
    """The server will not answer any question: it takes not the key, not the model, or no request at all."""


@dataclass(kw_only=True)
class Judge:
    """Decides questions by asking a model, many at once; definite answers are kept on disk and not asked for again."""

    model: str
    """The model's name, as the server knows it."""
    cache: VerdictCache
    """Answers of earlier runs."""
    base_url: str = OPENROUTER
    """Address of the server, up to /chat/completions."""
    api_key: str | None = field(default=None, repr=False)
    """Key of the server; None sends none."""
    mode: str = MODES[0]
    """One of MODES: which answers the scoring asks about."""
    concurrency: int = CONCURRENCY
    """Questions asked at once."""
    timeout: float = 60.0
    """Seconds of silence after which a request counts as lost."""
    deadline: float = 300.0
    """Seconds that one question may take, retries and waiting included; a wait that would go beyond is not begun."""
    max_retries: int = 10
    """Further requests after 429, 5xx or a lost connection, 0.5, 1, 2, 4, 8, 8, … s apart or as Retry-After says."""
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
        """The judge that the environment asks for, None where PROCESSOR is unset. Nothing is sent yet.

        Raises:
            UserError: a variable is missing or wrong, or answers cannot be kept on disk.
        """
        settings = read_settings()
        if settings is None:
            return None
        return cls(cache=VerdictCache(settings.pop("cache_folder")), **settings)

    def decide(self, questions: Sequence[JudgeQuestion]) -> list[bool | None]:
        """Whether each answer means the same as the expected one; None where the judge could not say.

        Equal questions are asked once. A question on which the server fails (429 or 5xx past the retries, no
        connection, no reply in time) is None and counted. No more are asked, and the rest is counted likewise, after
        `stop_after` of those in a row, and at once where the server refuses the key, the model, or for want of
        credit (401 to 404). Nothing is raised, because an evaluation of hours would be lost: one line says how many
        questions are open and what to do. A reply that is neither verdict is None and counted too.
        """
        prompts = [self.prompt(question) for question in questions]
        keys = [self._key(prompt) for prompt in prompts]
        outcomes: dict[str, Outcome] = {}
        for key in dict.fromkeys(keys):
            if (verdict := self.cache.get(key)) is not None:
                outcomes[key] = Outcome.RIGHT if verdict else Outcome.WRONG
        to_ask = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in outcomes}
        self._counts["cached"] += len(outcomes)
        stopped = None
        if to_ask:
            asked, stopped = _run(self._ask_all(to_ask))
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

        async def ask() -> Outcome:
            async with self._client() as client:
                return await self._ask(client, self.prompt(TRIAL), trial=True)

        outcome = _run(ask())
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
        `cached` those that an earlier answer settled. `stopped` says why it was asked no more, null where it answered
        to the end; `cost_usd` is null where the server does not say. All are of the run since the last `end_run`, the
        tokens and cost of its trial question included.
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
        """Counts anew from here. Returns why the run that ends asked no more, None where it did not stop."""
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
        # A half of a surrogate pair, which a cut-off generation may hold, cannot be sent.
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
        if is_openrouter(self.base_url):
            request["extra_body"] = {"usage": {"include": True}}  # asks for the cost
        if self.api_key is None:
            request["extra_headers"] = {"Authorization": Omit()}
        return request

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self.base_url, self.model, prompt]).encode()).hexdigest()

    def _client(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            base_url=self.base_url,
            # Never None, which would send the key of another service, OPENAI_API_KEY.
            api_key=self.api_key or "none",
            timeout=self.timeout,
            max_retries=0,
        )

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
                    self.cache.put(key, outcome is Outcome.RIGHT)
                progress.update()

        async with self._client() as client:
            with tqdm(total=len(prompts), desc="judge", unit="question") as progress:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, len(prompts))):
                        group.create_task(work())
        return outcomes, stopped

    async def _ask(self, client: "AsyncOpenAI", prompt: str, *, trial: bool = False) -> Outcome:
        """Raises Refusal."""
        from openai import APIStatusError, OpenAIError

        max_retries = min(self.max_retries, 2) if trial else self.max_retries
        try:
            text = await ask_again(client, self.request(prompt), max_retries=max_retries, deadline=self.deadline)
        except TimeoutError:
            self._last_failure = f"{self.host}: no reply within {self.deadline:g} s"
        except APIStatusError as error:
            if refuses_content(error):
                return Outcome.UNDECIDED
            of_question = error.status_code in QUESTION_STATUSES and not trial
            if not of_question and not is_passing(error.status_code):
                message = refusal(error, host=self.host, model=self.model, api_key=self.api_key)
                raise Refusal(message) from None
            self._last_failure = f"{self.host}: {reason(error, self.api_key)}"
        except OpenAIError as error:
            self._last_failure = f"{self.host}: {one_line(str(error), self.api_key)}"
        else:
            return self._read(text)
        return Outcome.FAILED

    def _read(self, text: str) -> Outcome:
        """The verdict of a reply's body, whose tokens and cost are added up."""
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            return Outcome.UNDECIDED
        usage = reply.get("usage") if isinstance(reply, dict) else None
        if isinstance(usage, dict):
            for name in ("prompt_tokens", "completion_tokens"):
                if type(tokens := usage.get(name)) is int:
                    self._counts[name] += tokens
            if type(cost := usage.get("cost")) in (int, float) and 0 <= cost < 1e9:  # NaN is not
                self._cost_usd = (self._cost_usd or 0.0) + cost
        try:
            content = reply["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            return Outcome.UNDECIDED
        verdict = read_verdict(content) if isinstance(content, str) else None
        return Outcome.UNDECIDED if verdict is None else Outcome.RIGHT if verdict else Outcome.WRONG


@functools.cache
def get_judge() -> Judge | None:
    """This process's judge, made from the environment on first use; None where it is off."""
    return Judge.from_environment()


def read_verdict(reply: str) -> bool | None:
    """True for SAME, False for DIFFERENT, None for any other reply; marks around the word do not matter.

    Reasoning that ends with </think> may come before it.
    """
    word = reply.rpartition("</think>")[2].strip(" \t\r\n*_`'\".").upper()
    return VERDICTS.get(word)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:  # in a notebook, whose own loop is running
        return thread.submit(asyncio.run, work).result()
