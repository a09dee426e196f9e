"""What a completion answers: the last box, the line after "Answer:", a sentence, or the last number."""

import re

# "\boxed{" or "\boxed 5": TeX takes one digit then, models mean the number.
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*+\{|\s*+([+-]?\d[\d.,/]*|[A-Z](?![^\W_])))|\\.|[{}]", re.DOTALL)
# "Answer: 5", "**Answer**: 5", "__Answer:__ 5", "Answer：5"
ANSWER_LINE = re.compile(r"(?i)answer[\s*_]*+(?:is\b)?[\s*_]*+[:：][*_]*+\s*+(?=[^\n])")
# "The answer is 5.", but not "the answer is not obvious" or "the answer is a number"
ANSWER_SENTENCE = re.compile(
    r"(?i)(?<![^\W_])answer[\s*_]++is[\s*_]++(?!(?:not|either|an|the|that|in|(?-i:a)\s+[a-z]{2,})\b)(?=[^\n])"
)
SENTENCE_END = re.compile(r"[.!?](?=[*_$\"”)]*+(?:\s|$))")


def boxes(text: str) -> list[tuple[int, str]]:
    """(position, content) of every complete \\boxed{…}, \\fbox{…} or \\framebox{…} that holds no other, nested braces
    included, and of every \\boxed 5; no empty ones. Together they are no longer than the text.
    """
    found, open_braces = [], []  # of each brace that is open, where the content of its box begins, None for another's
    for brace in BOX.finditer(text):
        if brace.group() == "{":
            open_braces.append(None)
        elif brace.group() == "}":
            start = open_braces.pop() if open_braces else None
            innermost = start is not None and (not found or found[-1][0] < start)
            if innermost and (content := text[start : brace.start()].strip()):
                found.append((start, content))
        elif brace.group(1):
            found.append((brace.start(1), brace.group(1).rstrip(".,/")))
        elif brace.group().endswith("{") and len(brace.group()) > 2:  # \{ is part of a formula
            open_braces.append(brace.end())
    return found


def last_boxed(text: str) -> str | None:
    """What the last complete box of a text holds; None without one."""
    found = boxes(text)
    return found[-1][1] if found else None


def labelled_answer(text: str) -> str | None:
    """What the last box holds, else the line after the last "Answer:"; None if there is neither."""
    return last_boxed(text) or without_marks(first_formula(text, last_end(ANSWER_LINE, text))) or None


def final_answer(text: str) -> str | None:
    """As `labelled_answer`, else what a sentence says that "the answer is"; None if there is none of these."""
    sentence = text[last_end(ANSWER_SENTENCE, text) :].partition("\n")[0]
    return labelled_answer(text) or without_marks(SENTENCE_END.split(sentence, maxsplit=1)[0]) or None


def last_end(pattern: re.Pattern[str], text: str) -> int:
    """Where the last match of a pattern ends; the end of the text if there is none."""
    return max((match.end() for match in pattern.finditer(text)), default=len(text))


def first_formula(text: str, start: int) -> str:
    """The rest of a line, or the whole formula in \\[…\\] or $$…$$ that begins there."""
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        inside = start + len(opening)
        if text.startswith(opening, start) and (end := text.find(closing, inside)) >= 0:
            return " ".join(text[inside:end].split())
    return text[start:].partition("\n")[0]


def without_marks(line: str) -> str:
    """A line without bold and formula marks, and without the full stop of a sentence; the point of .5 stays."""
    return line.lstrip(" *_$").rstrip(" *_$.")


def last_number(text: str) -> str | None:
    """What the last box holds, else the last number of a text: for models that rarely box their answer."""
    # A hyphen behind a digit or a word is no sign (pages 3-5), and a fraction is one number.
    numbers = re.findall(r"(?:(?<![\w.)])-)?(?:\d[\d,]*(?:\.\d+)?(?:/\d+)?|(?<![\w.])\.\d+)", text)
    return last_boxed(text) or (numbers[-1].rstrip(",") if numbers else None)
