"""What a completion answered, and whether that is right: extraction, and checking by `math-verify` or as plain text."""

import functools
import re
import threading

from lm_eval_sae.grading.notation import (
    UNITS,
    as_based_number,
    as_clock,
    as_words,
    clean,
    grouping,
    has_words,
    normalise,
    stated_units,
    unwrap,
    value_words,
)

CHECK_SECONDS = 5  # for reading one expression, and for one comparison
LONGEST_ANSWER = 1000  # characters; what is longer is not read as mathematics

# "\boxed{" or "\boxed 5": TeX takes one digit then, models mean the number.
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*+\{|\s*+([+-]?\d[\d.,/]*|[A-Z](?![^\W_])))|\\.|[{}]", re.DOTALL)
# "Answer: 5", "**Answer**: 5", "__Answer:__ 5", "Answer：5"
ANSWER_LINE = re.compile(r"(?i)answer[\s*_]*+(?:is\b)?[\s*_]*+[:：][*_]*+\s*+(?=[^\n])")
# "The answer is 5.", but not "the answer is not obvious" or "the answer is a number"
ANSWER_SENTENCE = re.compile(
    r"(?i)(?<![^\W_])answer(?:\s++here)?[\s*_]++is[\s*_]++(?:(?:thus|therefore|then|simply|just|indeed)[\s*_]++)?+"
    r"(?!(?:not|either|neither|an|the|that|this|there|in|of|to|at|on|for|from|with|going|supposed|expected|given|asked|"
    r"unclear|unknown|probably|likely|maybe|perhaps|always|still|also|only|very|so|too|obvious|clear|correct|right|"
    r"wrong|incorrect|(?-i:a)\s+[a-z]{2,})\b)(?=[^\n])"
)
SENTENCE_END = re.compile(r"[.!?](?=[*_$\"”)]*+(?:\s|$))")


def boxes(text: str) -> list[tuple[int, str]]:
    """(position, content) of every complete \\boxed{…}, \\fbox{…} or \\framebox{…}, nested braces included, and of
    every \\boxed 5; no empty ones.
    """
    found, open_braces = [], []  # of each brace that is open, where the content of its box begins, None for another's
    for brace in BOX.finditer(text):
        if brace.group() == "{":
            open_braces.append(None)
        elif brace.group() == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (content := text[start : brace.start()].strip()):
                found.append((start, content))
        elif brace.group(1):
            found.append((brace.start(1), brace.group(1).rstrip(".,/")))
        elif brace.group().endswith("{") and len(brace.group()) > 2:  # \{ is part of a formula
            open_braces.append(brace.end())
    return sorted(found)


def last_boxed(text: str) -> str | None:
    """What the last complete box of a text holds; None without one."""
    found = boxes(text)
    return found[-1][1] if found else None


def labelled_answer(text: str) -> str | None:
    """What the last box holds, else the line after the last "Answer:"; None where there is neither."""
    answer = last_boxed(text)
    if answer is None:
        answer = without_marks(first_formula(text, last_end(ANSWER_LINE, text)))
    return answer or None


def final_answer(text: str) -> str | None:
    """What the last box holds, else the line after the last "Answer:", else what a sentence says that "the answer is".

    None where there is none of these.
    """
    answer = labelled_answer(text)
    if answer is None:
        start = last_end(ANSWER_SENTENCE, text)
        answer = without_marks(SENTENCE_END.split(text[start:].partition("\n")[0], maxsplit=1)[0])
    return answer or None


def last_end(pattern: re.Pattern[str], text: str) -> int:
    """Where the last match of a pattern ends; the end of the text where there is none."""
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


def is_number(text: str) -> bool:
    """Whether a text is a whole number in digits, with or without a sign and commas between thousands."""
    return re.fullmatch(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)", text.strip()) is not None


def strings_agree(answer: str, expected: str) -> bool:
    """The plain string rule: equal as written, whole numbers without commas and leading zeros (073 = 73)."""

    def normalised(text: str) -> str:
        return str(int(text.replace(",", ""))) if is_number(text) and len(text) < LONGEST_ANSWER else text.strip()

    return normalised(answer) == normalised(expected)


@functools.lru_cache(maxsize=65536)  # the repeats of a question give few different answers
def check(answer: str, expected: str) -> bool | None:
    """Whether two answers mean the same: \\frac{1}{2} = 0.5, {1,2} = {2,1}, 12\\text{ cm} = 12, 50\\% = 50.

    Mathematics is compared by `math-verify`, which leaves units, degrees, dollars and percent signs out and takes
    lists for sets. 12.5\\% is also 12.5. Words are compared as words, without regard to case; words that differ may
    still mean the same. Numbers in two bases differ, unless they have the same value (undecided); a base that only one
    side states is a matter of notation. An ordered pair is no set; whether it is a list (1,2 without brackets) is
    undecided.

    Returns:
        None where that cannot be decided: one of the two cannot be read, words differ, words stand beside mathematics
        that differs, units differ, a word such as "dozen" or a ≠ stands on one side alone, or it takes too long. The
        limit of time works in the main thread only; elsewhere there is none.
    """
    as_given = (answer, expected)
    answer, expected = clean(answer), clean(expected)
    if answer == expected:
        return True
    if len(answer) > LONGEST_ANSWER or not answer:
        return None
    words, expected_words = as_words(answer), as_words(expected)
    if words is not None and expected_words is not None:
        return True if words == expected_words else None
    clock, expected_clock = as_clock(answer), as_clock(expected)
    if clock is not None and expected_clock is not None and (verdict := same_time(clock, expected_clock)) is not None:
        return verdict
    units, expected_units = map(stated_units, as_given)
    if units and expected_units and units != expected_units:
        return None  # 2 hours are 120 minutes
    answer, expected = normalise(answer), normalise(expected)
    if value_words(answer) != value_words(expected):
        return None  # 5 dozen are 60
    based, expected_based = as_based_number(answer), as_based_number(expected)
    if based is not None and expected_based is not None and based[1] != expected_based[1]:
        return None if based[0] is not None and based[0] == expected_based[0] else False
    verdict = verify_mathematics(answer, expected)
    if verdict:
        return same_grouping(answer, expected)
    if verdict is None or words is not None or expected_words is not None:
        return None
    return verify_without_units(answer, expected)


def same_time(clock: tuple[int, bool], expected: tuple[int, bool]) -> bool | None:
    """Whether two times of day are the same; None for two numbers such as 6:48 that may be ratios and differ."""
    minutes, in_halves = zip(clock, expected, strict=True)
    if minutes[0] == minutes[1]:
        return True
    if any(in_halves) and not all(in_halves):  # 6:48 PM may be written as 6:48
        return (minutes[0] - minutes[1]) % (12 * 60) == 0
    return False if all(in_halves) else None


def same_grouping(answer: str, expected: str) -> bool | None:
    """The verdict on two expressions that math-verify holds equal, which takes tuples and lists for sets."""
    groupings = {grouping(answer), grouping(expected)}
    if groupings == {"tuple", "set"}:
        return False
    return None if groupings == {"tuple", "list"} else True


def verify_without_units(answer: str, expected: str) -> bool | None:
    """The verdict on two expressions that math-verify holds different, units, percent signs and words considered."""
    percent = [re.sub(r"\s*\\?%$", "", text) for text in (answer, expected)]
    if (percent[0] == answer) != (percent[1] == expected):
        return verify_mathematics(percent[0], percent[1])
    plain = [unwrap(text) for text in (answer, expected)]
    if any(map(UNITS.search, plain)):
        answer, expected = plain = [UNITS.sub("", text).strip() for text in plain]
        verdict = verify_mathematics(answer, expected)
        if verdict is not False:
            return verdict
    return None if any(map(has_words, plain)) else False


def verify_mathematics(answer: str, expected: str) -> bool | None:
    """math-verify's verdict on two expressions in LaTeX or plain text; None where it cannot read or decide them."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from math_verify.errors import TimeoutException

    # math-verify measures time by a signal, which only the main thread can receive.
    seconds = CHECK_SECONDS if threading.current_thread() is threading.main_thread() else None
    config = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    try:
        gold, found = (
            parse(
                f"\\boxed{{{text}}}",
                extraction_config=config,
                fallback_mode="no_fallback",
                parsing_timeout=seconds,
                raise_on_error=True,
            )
            for text in (expected, answer)
        )
        if not gold or not found:
            return None
        return bool(verify(gold, found, allow_set_relation_comp=True, timeout_seconds=seconds, raise_on_error=True))
    except (Exception, TimeoutException):  # TimeoutException is no Exception; models write anything
        return None
