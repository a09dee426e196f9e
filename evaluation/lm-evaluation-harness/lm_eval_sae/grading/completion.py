"""Generated text that knows how long it was in tokens."""

from collections.abc import Callable, Collection, Sequence


class Completion(str):
    """What a model generated for one request. lm-eval hands it to filters and `process_results` as it is.

    completion_tokens: tokens generated, the one that ended it included; None if it was not counted.
    truncated: whether the limit of tokens ended it, rather than the model or a stop string.
    reasoning_tokens: tokens before the first `cutoff_token`, all of them where it does not occur; None where they
        were not counted.
    judged: whether a judge held its answer right; None if none was asked or it could not say.
    verified: its answer after the published code's verifier (`grading.published`); None if none was asked or replied.
    """

    completion_tokens: int | None
    truncated: bool | None
    reasoning_tokens: int | None
    judged: bool | None
    verified: str | None

    def __new__(
        cls,
        text: str,
        completion_tokens: int | None = None,
        truncated: bool | None = None,
        reasoning_tokens: int | None = None,
        judged: bool | None = None,
        verified: str | None = None,
    ) -> "Completion":
        self = super().__new__(cls, text)
        self.completion_tokens = completion_tokens
        self.truncated = truncated
        self.reasoning_tokens = reasoning_tokens
        self.judged = judged
        self.verified = verified
        return self


def as_completion(text: str) -> Completion:
    """A text as a `Completion`, itself if it is one."""
    return text if isinstance(text, Completion) else Completion(text)


def count_reasoning(tokens: Sequence[int], cutoff: int | None) -> int | None:
    """reasoning_tokens of a `Completion` of these tokens, the one that ended it included; None without a cutoff."""
    if cutoff is None:
        return None
    return next((i for i, token in enumerate(tokens) if token == cutoff), len(tokens))


def measure_completion(
    tokens: Sequence[int],
    *,
    eos_ids: Collection[int],
    stop: Sequence[str],
    max_tokens: int,
    decode: Callable[[Sequence[int]], str],
) -> tuple[int, bool]:
    """Length of one row of a batch, which runs on (padded, or generating) until its last row has ended.

    Args:
        tokens: the generated part of the row.
        eos_ids: ids that end a completion.
        stop: strings that end it.
        max_tokens: the limit of tokens.
        decode: ids → text with special tokens.

    Returns:
        (completion_tokens, truncated) as in `Completion`.
    """
    length = next((i + 1 for i, token in enumerate(tokens) if token in eos_ids), len(tokens))
    ended = length > 0 and tokens[length - 1] in eos_ids

    def stopped(n: int) -> bool:
        text = decode(tokens[:n])
        return any(string in text for string in stop)

    stop = [string for string in stop if string]
    if stop and stopped(length):
        low, high = 1, length  # the shortest prefix that holds a stop string lies in [low, high]
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if stopped(middle) else (middle + 1, high)
        length, ended = low, True
    return length, not ended and length >= max_tokens
