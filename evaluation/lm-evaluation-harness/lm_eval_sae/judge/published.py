"""The published code's verifier (JUDGE=published), with the connection, cache, retries and limits of our judge.

In mathematics it is asked which of several options an answer is: the expected answer, and what was made of the answers
of the repeats before. So the repeats of a question are asked in their order. In GPQA it is asked for the letter. It
decides `exact_match_published` alone.

The prompts are carried over word for word, since they decide its replies: from the harness in
github.com/AIRI-Institute/SAE-Reasoning (MIT), which has them from github.com/simplescaling/s1 (Apache 2.0).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_sae.grading.completion import as_completion
from lm_eval_sae.grading.letters import LETTERS
from lm_eval_sae.grading.published import PUBLISHED_RULES
from lm_eval_sae.judge.client import Judge, Outcome

PROMPTS = {"aime": "published_math.txt", "math": "published_math.txt", "gpqa": "published_gpqa.txt"}
# The two benchmarks' prompts differ in one example.
EXAMPLES = {
    "aime": {"example_options": "['11', '100', '50', '-5', '12', '10']", "example_index": "5"},
    "math": {"example_options": "['12']", "example_index": "1"},
    "gpqa": {},
}


class PublishedJudge(Judge):
    """Asks as the published code does; its replies are kept word for word."""

    temperature = 0.5
    replies = ("1", "-1")

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = {file: Path(__file__).with_name(file).read_text(encoding="utf-8").strip() for file in PROMPTS.values()}
        self._prompts = {benchmark: texts[file] for benchmark, file in PROMPTS.items()}
        self._prompt = "\n".join(texts.values())  # whose hash is in the report

    @staticmethod
    def read(reply: str) -> str | None:
        """The reply as it is, spaces included."""
        return reply or None

    def verify(self, benchmark: str, completions: list[list[str]], docs: Sequence[Mapping[str, Any]]) -> None:
        """Sets `verified` of the completions whose answer the published code gives to its verifier.

        Without a reply an answer counts as it does without a verifier. Nothing more is asked once the server stopped.

        Args:
            benchmark: of `PUBLISHED_RULES`.
            completions: of each question, equally many.
            docs: their rows.
        """
        rule = PUBLISHED_RULES[benchmark]
        options = [[rule.gold(doc)] for doc in docs]
        outcomes: list[Outcome] = []
        stopped = None
        for repeat in range(len(completions[0]) if completions else 0):
            read = [rule.read(texts[repeat], known[0]) for texts, known in zip(completions, options, strict=True)]
            asked = [i for i, (_, settled) in enumerate(read) if not settled]
            prompts = [self.verifier_prompt(benchmark, docs[i], read[i][0], options[i]) for i in asked]
            replies, stopped = self.ask(prompts) if stopped is None else ([Outcome.FAILED] * len(prompts), stopped)
            for i, reply in zip(asked, replies, strict=True):
                if isinstance(reply, Outcome):
                    outcomes.append(reply)
                    continue
                completion = completions[i][repeat] = as_completion(completions[i][repeat])
                completion.verified = rule.verified(reply, read[i][0], options[i])
                outcomes.append(Outcome.RIGHT if completion.verified == options[i][0] else Outcome.WRONG)
            for doc, texts, known in zip(docs, completions, options, strict=True):
                # In the order in which they appear; the published code has that of a set, another in every process.
                if (answer := rule.answer(doc, texts[repeat])) not in known:
                    known.append(answer)
        self.account(outcomes, stopped)

    def verifier_prompt(self, benchmark: str, doc: Mapping[str, Any], answer: str, options: Sequence[str]) -> str:
        """The text that asks about one answer."""
        fields = {**EXAMPLES[benchmark], "attempt": answer}
        if benchmark == "gpqa":
            choices = [f"({letter}) {text}" for letter, text in zip(LETTERS, doc["choices"], strict=True)]
            fields["question"] = "\n".join([doc["Question"], "Answer Choices:", *choices])
        else:
            fields["options"] = "[" + ", ".join(f"'{option}'" for option in options) + "]"
        # Half of a surrogate pair, which a cut-off generation may hold, cannot be sent.
        return (self._prompts[benchmark] % fields).encode(errors="replace").decode()

    def trial_prompt(self) -> str:
        """Whether two is 2."""
        return self.verifier_prompt("math", {}, "two", ["2"])

    async def _ask_trial(self) -> Any:
        reply = await super()._ask_trial()
        return reply if isinstance(reply, Outcome) or reply in self.replies else Outcome.UNDECIDED
