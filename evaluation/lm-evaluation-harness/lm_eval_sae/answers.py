"""What a completion answered, and whether that is right: extraction, and checking by `math-verify` or as plain text."""

import functools
import re
import threading

CHECK_SECONDS = 5  # for reading one expression, and for one comparison
LONGEST_ANSWER = 1000  # characters; what is longer is not read as mathematics

# Words that an answer in LaTeX is wrapped in: \text{even}, \mathrm{cm}.
TEXT_COMMAND = re.compile(r"\\(?:text\w*|mbox|math(?:rm|bf|sf|tt|it)|operatorname)\s*\{([^{}]*)\}")
WORDS = re.compile(r"(?:[a-z]+|\d+)(?:[ ,.:'’&-]+(?:[a-z]+|\d+))*")

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

NUMBER_WORDS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
NUMBER_WORD = re.compile(
    r"(?i)(?<=\d)\s*(?:\\[,;:! ]|~)?\s*(?:\\text\{{\s*({0})\s*\}}|({0})\b)".format("|".join(NUMBER_WORDS))
)
# Units that math-verify leaves in, or reads as variables where a power or a quotient follows. A single letter may be a
# variable: it is a unit only in a quotient, such as m/s, or in \text{…}, which math-verify leaves out itself.
UNIT_WORD = (
    r"(?:dollars?|cents?|euros?|pounds?|(?:kilo|centi|milli|nano)?met(?:er|re)s?|inch(?:es)?|feet|foot|yards?|miles?|"
    r"(?:kilo|milli)?grams?|(?:milli)?lit(?:er|re)s?|degrees?|radians?|units?|"
    r"seconds?|minutes?|hours?|days?|weeks?|months?|years?|mph|kph|min|sec|hrs?|[kcmdnμ]m|[km]g|ft|mi|lbs?|oz|m[lL]|"
    r"k?Pa|k?Hz|k?eV|k[JNW]|mol)"
)
UNIT = rf"(?:(?:square|sq\.?|cubic)\s+)?{UNIT_WORD}(?:\^\{{?-?\d\}}?|[²³])?"
UNITS = re.compile(
    rf"(?<=[\d}})])\s*(?:\\[,;:! ]|~)?\s*"
    rf"((?:{UNIT}\s*|[mgJNVWCL](?=\s*/))(?:(?:\s*/\s*|\s+per\s+|\s+)(?:{UNIT}|[smhgJNVWCLK](?:\^\{{?\d\}}?|[²³])?))*)$"
)
# What is spelt like a word but is mathematics.
FUNCTIONS = "(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|exp|sqrt|max|min|gcd|lcm|mod|det|infty"
GREEK = "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|sigma|omega|phi|psi|rho|tau"
SYMBOL = re.compile(f"{FUNCTIONS}|{GREEK}", re.IGNORECASE)


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
    numbers = re.findall(r"-?(?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)", text)
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
    side states is a matter of notation.

    Returns:
        None where that cannot be decided: one of the two cannot be read, words differ, words stand beside mathematics
        that differs, units differ, or it takes too long. The limit of time works in the main thread only; elsewhere
        there is none.
    """
    answer, expected = clean(answer), clean(expected)
    if answer == expected:
        return True
    if len(answer) > LONGEST_ANSWER or not answer:
        return None
    words, expected_words = as_words(answer), as_words(expected)
    if words is not None and expected_words is not None:
        return True if words == expected_words else None
    answer, expected = normalise(answer), normalise(expected)
    based, expected_based = as_based_number(answer), as_based_number(expected)
    if based is not None and expected_based is not None and based[1] != expected_based[1]:
        return None if based[0] is not None and based[0] == expected_based[0] else False
    verdict = verify_mathematics(answer, expected)
    if verdict is not False:
        return verdict
    if words is not None or expected_words is not None:
        return None
    return verify_without_units(answer, expected)


def verify_without_units(answer: str, expected: str) -> bool | None:
    """The verdict on two expressions that math-verify holds different, units, percent signs and words considered."""
    percent = [re.sub(r"\s*\\?%$", "", text) for text in (answer, expected)]
    if (percent[0] == answer) != (percent[1] == expected):
        return verify_mathematics(percent[0], percent[1])
    plain = [TEXT_COMMAND.sub(r" \1 ", text).strip() for text in (answer, expected)]
    units = [match[1].split() if (match := UNITS.search(text)) else [] for text in plain]
    if all(units) and units[0] != units[1]:
        return None  # 2 hours are 120 minutes
    if any(units):
        answer, expected = plain = [UNITS.sub("", text).strip() for text in plain]
        verdict = verify_mathematics(answer, expected)
        if verdict is not False:
            return verdict
    return None if any(map(has_words, plain)) else False


def has_words(text: str) -> bool:
    """Whether a word of three or more letters stands in a formula, other than names of commands and functions."""
    words = re.findall(r"(?<![\\A-Za-z0-9_^{])[A-Za-z]{3,}", text)
    return any(SYMBOL.fullmatch(word) is None for word in words)


def normalise(answer: str) -> str:
    """An answer with numbers in the notation that math-verify reads: 1 7/8, 1.0e-4 and 1.5 million, and one ∅."""
    answer = re.sub(r"\\varnothing\b|∅", r"\\emptyset", answer)
    answer = re.sub(r"^([+-]?\d+)\s+(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", answer)
    answer = re.sub(r"^([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d{1,3})$", r"\1 \\cdot 10^{\2}", answer)
    return NUMBER_WORD.sub(lambda word: rf" \cdot 10^{{{NUMBER_WORDS[(word[1] or word[2]).lower()]}}}", answer)


def as_based_number(answer: str) -> tuple[int | None, int] | None:
    """Value and base of a whole number with its base, such as 52_8 or 1A_{16}; None for anything else.

    The value is None where the digits are none of that base.
    """
    match = re.fullmatch(r"\(?([0-9A-Za-z]+)\)?\s*_\s*\{?\s*(\d{1,3})\s*\}?", answer, re.ASCII)
    if match is None:
        return None
    try:
        return int(match[1], int(match[2])), int(match[2])
    except ValueError:
        return None, int(match[2])


def clean(answer: str) -> str:
    """An answer without the marks around it: spaces, $ and \\$, \\( \\), bold, the full stop of its sentence."""
    answer = re.sub(r"^\\[(\[]|\\[)\]]$", "", answer.replace("\\$", "").strip().rstrip("."))
    return answer.strip(" \t\n*$`").removesuffix(".").strip()


def as_words(answer: str) -> str | None:
    """The words of an answer that is made of words, in lower case ("\\text{June 20}" → "june 20"); else None.

    A formula of letters such as xy is not words: one word has to have three letters, or to stand in \\text{…}.
    """
    plain = re.sub(r"\\[,;:! ]|[~$]", " ", TEXT_COMMAND.sub(r" \1 ", answer))
    plain = " ".join(plain.casefold().split()).strip(" .")
    letters = 2 if TEXT_COMMAND.fullmatch(answer) else 3
    if plain[:1].isalpha() and re.search(rf"[a-z]{{{letters}}}", plain) and WORDS.fullmatch(plain):
        return plain
    return None


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
