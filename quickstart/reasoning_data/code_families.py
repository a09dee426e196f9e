"""Small programming problems: a first attempt that really fails on an input, and the program that passes the tests.

Both programs are run here, so what a trace says a program returns is what it returned.
"""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reasoning_data.trace import Trace, Voice, paragraphs


@dataclass(frozen=True)
class Task:
    """A function of one list or string, with a tempting mistake."""

    name: str
    question: str
    argument: str  # name of the parameter
    program: str  # body of the function that is right
    attempt: str  # body of a function that is wrong for some inputs
    why: str  # what the attempt forgets; a clause
    other: str  # another way to do it; a clause
    sample: Callable[[Voice], Any]


def _integers(v: Voice) -> list[int]:
    return [v.number(-9, 20) for _ in range(v.number(3, 8))]


def _repeating(v: Voice) -> list[int]:
    return [v.number(1, 4) for _ in range(v.number(4, 9))]


def _word(v: Voice) -> str:
    return "".join(v.pick(*"aabcdeeiostu") for _ in range(v.number(4, 9)))


def _sentence(v: Voice) -> str:
    words = (
        "The",
        "quick",
        "Moon",
        "rises",
        "over",
        "old",
        "Harbours",
        "and",
        "a",
        "cat",
        "sleeps",
        "In",
        "sun",
        "light",
    )
    return " ".join(v.some(words, v.number(3, 6)))


def _runs(v: Voice) -> str:
    return "".join(v.pick(*"abc") * v.number(1, 4) for _ in range(v.number(2, 4)))


def tasks(v: Voice) -> list[Task]:
    """All tasks, with constants drawn from ``v``."""
    k, turn, shift, limit = v.number(2, 5), v.number(3, 6), v.number(3, 20), v.number(3, 6)
    return [
        Task(
            "second_largest",
            "returns the second largest different value of a list of integers, or None if there is none",
            "values",
            "    different = sorted(set(values))\n    return different[-2] if len(different) > 1 else None",
            "    return sorted(values)[-2]",
            "equal values count only once",
            "one pass that keeps the best two values would do without sorting",
            _repeating,
        ),
        Task(
            "count_vowels",
            "counts the vowels (a, e, i, o, u, in either case) of a text",
            "text",
            '    return sum(c in "aeiou" for c in text.lower())',
            '    return sum(c in "aeiou" for c in text)',
            "capital letters are vowels too",
            "one could list all ten letters and leave the text as it is",
            lambda v: _sentence(v) + " In All",
        ),
        Task(
            f"sum_every_{k}",
            f"adds up every {k}th element of a list, that is the elements number {k}, {2 * k}, {3 * k} and so on",
            "values",
            f"    return sum(values[{k - 1}::{k}])",
            f"    return sum(values[::{k}])",
            "Python counts from 0, so the first element would be taken",
            f"a loop over range({k - 1}, len(values), {k}) is the same",
            _integers,
        ),
        Task(
            "run_lengths",
            'compresses a text into pairs of letter and length of run, so that "aab" becomes "a2b1"',
            "text",
            '    result, start = "", 0\n    for i in range(1, len(text) + 1):\n        if i == len(text) or text[i] != '
            "text[start]:\n"
            "            result += text[start] + str(i - start)\n            start = i\n    return result",
            '    result, start = "", 0\n    for i in range(1, len(text)):\n        if text[i] != text[start]:\n'
            "            result += text[start] + str(i - start)\n            start = i\n    return result",
            "the last run never ends inside the loop",
            "itertools.groupby gives the runs directly",
            _runs,
        ),
        Task(
            f"shift_by_{shift}",
            f"moves every lower-case letter {shift} places on in the alphabet, starting again at a after z",
            "text",
            f'    return "".join(chr((ord(c) - 97 + {shift}) % 26 + 97) if c.islower() else c for c in text)',
            f'    return "".join(chr(ord(c) + {shift}) if c.islower() else c for c in text)',
            "letters near z must start again at a",
            "a table made by str.maketrans would do it in one call",
            lambda v: _word(v) + "xyz",
        ),
        Task(
            "is_palindrome",
            "says whether a text reads the same backwards when spaces and capitals are ignored",
            "text",
            '    letters = text.replace(" ", "").lower()\n    return letters == letters[::-1]',
            "    return text == text[::-1]",
            "spaces and capitals must be taken out first",
            "two pointers that move towards each other need no copy",
            lambda v: v.pick(
                "Never odd or even", "A nut for a jar of tuna", "Step on no pets", "Top spot", _word(v), _sentence(v)
            ),
        ),
        Task(
            f"best_window_{k}",
            f"returns the largest sum of {k} neighbouring elements of a list with at least {k} elements",
            "values",
            f"    return max(sum(values[i:i + {k}]) for i in range(len(values) - {k} + 1))",
            f"    return max(sum(values[i:i + {k}]) for i in range(len(values)))",
            "near the end the window is shorter than it should be",
            "a running sum that adds one element and drops one is faster",
            lambda v: [v.number(-15, 9) for _ in range(v.number(5, 8))] + [12, -3][: v.number(1, 2)],
        ),
        Task(
            "remove_repeats",
            "removes repeated elements of a list and keeps the first of each in its place",
            "values",
            "    seen, result = set(), []\n    for value in values:\n        if value not in seen:\n            "
            "seen.add(value)\n"
            "            result.append(value)\n    return result",
            "    return sorted(set(values))",
            "a set forgets the order in which the elements came",
            "dict.fromkeys keeps the order as well",
            lambda v: [v.number(3, 9) for _ in range(6)] + [v.number(1, 2)],
        ),
        Task(
            f"count_longer_than_{limit}",
            f"counts the words of a text that have more than {limit} letters",
            "text",
            f"    return sum(len(word) > {limit} for word in text.split())",
            f"    return sum(len(word) >= {limit} for word in text.split())",
            f"words of exactly {limit} letters do not have more than {limit}",
            "a list of the long words and its length would show more",
            lambda v: _sentence(v) + " cat mice whale rabbit",
        ),
        Task(
            "digit_sum",
            "adds up the digits of every number of a list of integers, negative ones included",
            "values",
            "    return sum(int(d) for value in values for d in str(abs(value)))",
            "    return sum(value // 10 + value % 10 for value in values)",
            "a number can be negative or have more than two digits",
            "repeated divmod by 10 avoids the text",
            lambda v: [*_integers(v), v.number(100, 999), -v.number(10, 99)],
        ),
        Task(
            "largest_gap",
            "returns the largest difference between neighbours of a list after sorting it",
            "values",
            "    ordered = sorted(values)\n    return max(b - a for a, b in zip(ordered, ordered[1:]))",
            "    return max(b - a for a, b in zip(values, values[1:]))",
            "the list has to be sorted first",
            "one could use itertools.pairwise instead of zip",
            _integers,
        ),
        Task(
            f"rotate_{turn}",
            f"moves the last {turn} elements of a list to its front, for lists of any length above 0",
            "values",
            f"    cut = {turn} % len(values)\n    return values[len(values) - cut:] + values[:len(values) - cut]",
            f"    return values[-{turn}:] + values[:-{turn}]",
            f"a list with fewer than {turn} elements must be rotated more than once round",
            "a deque has a method for it",
            lambda v: [v.number(0, 9) for _ in range(v.number(2, 7))],
        ),
    ]


def run_function(name: str, source: str, argument: Any) -> Any:
    """Define the function in ``source`` and call it."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace[name](argument)


def run_program(source: str, stdin: str) -> str:
    """Run ``source`` with ``stdin`` as its input and return what it prints."""
    lines, printed = iter(stdin.split("\n")), io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(source, {"input": lambda: next(lines)})
    return printed.getvalue()


def _outcome(name: str, source: str, argument: Any) -> str:
    try:
        return repr(run_function(name, source, argument))
    except (IndexError, ValueError) as error:
        return f"an error, {error}"


ATTEMPTS = ("Maybe a short version is enough:", "Perhaps this does it:", "Let me try the obvious thing first:")
KEEP = (
    "However, the version above is short and clear.",
    "However, I see no need for it here.",
    "I keep the version above.",
)


def program(v: Voice) -> Trace:
    task = v.pick(*tasks(v))
    head = f"def {task.name}({task.argument}):\n"
    right, wrong = head + task.program, head + task.attempt
    inputs: list[Any] = []
    while len(inputs) < 4 or not any(_outcome(task.name, right, x) != _outcome(task.name, wrong, x) for x in inputs):
        inputs.append(task.sample(v))
        if len(inputs) > 60:
            raise AssertionError(f"{task.name}: the attempt is never wrong")
    results = [run_function(task.name, right, x) for x in inputs]
    failing = next(i for i, x in enumerate(inputs) if _outcome(task.name, right, x) != _outcome(task.name, wrong, x))
    shown = [failing, *(i for i in range(len(inputs)) if i != failing)][:3]
    inputs, results = [inputs[i] for i in shown], [results[i] for i in shown]

    named = v.chance(0.6)
    if named:
        answer = right
        cases = {"fn_name": task.name, "inputs": [[x] for x in inputs], "outputs": results}
        form = f"Write a function {task.name}({task.argument}) that {task.question}."
        starter: str | None = head.rstrip() if v.chance(0.5) else None
    else:
        is_text = isinstance(inputs[0], str)
        reader = "input()" if is_text else "[int(part) for part in input().split()]"
        answer = f"{right}\n\n\nprint({task.name}({reader}))"
        lines = [x if is_text else " ".join(map(str, x)) for x in inputs]
        cases = {
            "inputs": [line + "\n" for line in lines],
            "outputs": [run_program(answer, line + "\n") for line in lines],
        }
        if cases["outputs"] != [f"{result}\n" for result in results]:
            raise AssertionError(f"{task.name}: the program and its function disagree")
        form = (
            f"Write a program that {task.question}. "
            + (
                "The text is one line of input."
                if is_text
                else "The list is one line of input, with spaces between the numbers."
            )
            + " Print the result."
        )
        starter = None
    example = f"Example: for {inputs[-1]!r} the result is {results[-1]!r}."
    return Trace(
        problem=f"{form}\n\n{example}",
        reasoning=paragraphs(
            v.begin(),
            f"{v.pick(*ATTEMPTS)}\n\n```python\n{wrong}\n```",
            f"Let me run it in my head on {inputs[0]!r}. It gives {_outcome(task.name, wrong, inputs[0])}.\n\nWait, "
            f"the result should be "
            f"{results[0]!r}, because {task.why}.",
            f"{v.hmm()}so the program has to deal with that:\n\n```python\n{right}\n```",
            f"Now {inputs[0]!r} gives {results[0]!r}, as it should. Another test: {inputs[1]!r} gives {results[1]!r}.",
            f"{v.pick('Alternatively, ', 'Alternatively, ', 'But perhaps there is more than one way: ')}{task.other}. "
            f"{v.pick(*KEEP)}",
            ""
            if named
            else f"{v.pick('But the task reads from the input', 'However, the input is a line of text')}, so I add a "
            f"line that reads it.",
            f"{v.therefore()}this is my answer.",
        ),
        solution=f"```python\n{answer}\n```",
        answer=answer,
        domain="code",
        family=f"program/{task.name.rstrip('0123456789_')}",
        test_cases=json.dumps(cases),
        starter_code=starter,
        reference=answer,
    )


FAMILIES = (program,)
