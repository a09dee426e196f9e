"""What a completion answered, and whether that is right: extraction, and checking by `math-verify` or as plain text."""

import functools
import re
import threading

CHECK_SECONDS = 5  # for reading one expression, and for one comparison
LONGEST_ANSWER = 1000  # characters; what is longer is not read as mathematics

# Words that an answer in LaTeX is wrapped in: \text{even}, \mathrm{cm}.
TEXT_COMMAND = re.compile(r"\\(?:text\w*|mbox|math(?:rm|bf|sf|tt|it)|operatorname)\s*\{([^{}]*)\}")
WORDS = re.compile(r"(?:[a-z]+|\d+)(?:[ ,.:'’&-]+(?:[a-z]+|\d+))*")

# "Answer: C", "**Answer:** (C)", "The final answer is $\boxed{\text{C}}$", "the correct option is C". The quantifiers
# are possessive: a model that writes thousands of spaces or asterisks must not cost minutes.
STATED = r"\b(?:answer(?:\s+(?:choice|option|letter))?|(?:correct|right|best)\s+(?:choice|option|letter))\b[\s*_]*+"
VERB = r"(?:(?:is|(?:should|would|must|has\s+to)\s+be)\b|[:=：–-])?[\s*_:]*+"
FILLER = r"(?:(?:therefore|thus|clearly|most|likely|the|correct|right|option|choice|letter)\b[\s*_:]*+)*+"
WRAPPING = r"""(?:[\s*_$"'`“”‘(\[{]|\\[(\[,;!]|\\(?:boxed|fbox|text\w*|math\w*|rm|bf|left|[bB]ig+l?)\b)*+"""
CAPITAL = r"([A-H])(?!\w|['’]\w)"
SMALL = r"([a-h])(?=[\W_]*$)"  # "a" is also an article, so a small letter has to end its line
CHOSEN_LETTER = re.compile(  # "Option C is correct", "choice (C) is the best answer"
    r"\b(?i:option|choice|answer)[\s*_(\[]*+([A-H])[\s*_)\]]*+is\s+(?:clearly\s+|therefore\s+)?(?:the\s+)?(?:correct|right|best)\b"
)
STATED_LETTER = re.compile(rf"(?i:{STATED}{VERB}{FILLER}){WRAPPING}(?:{CAPITAL}|{SMALL})", re.MULTILINE)
BOXED_LETTER = re.compile(rf"{WRAPPING}(?:{CAPITAL}(?=\s*(?:[)\]}}.,:;*$\\]|$))|{SMALL})")


def boxes(text: str) -> list[tuple[int, str]]:
    """(position, content) of every complete \\boxed{…} or \\fbox{…}, nested braces included; no empty ones."""
    found, open_braces = [], []  # of each brace that is open, where the content of its box begins, None for another's
    for brace in re.finditer(r"\\(?:boxed|fbox)\s*+\{|\\.|[{}]", text, re.DOTALL):
        if brace.group() == "{":
            open_braces.append(None)
        elif brace.group() == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (content := text[start : brace.start()].strip()):
                found.append((start, content))
        elif brace.group().endswith("{") and len(brace.group()) > 2:  # \{ is part of a formula
            open_braces.append(brace.end())
    return sorted(found)


def last_boxed(text: str) -> str | None:
    """What the last complete box of a text holds; None without one."""
    found = boxes(text)
    return found[-1][1] if found else None


def final_answer(text: str) -> str | None:
    """What the last box holds, else the line after the last "Answer:"; None where there is neither."""
    answer = last_boxed(text)
    if answer is None:
        lines = re.findall(r"(?i)answer\s*+(?:is)?\s*+:\**+\s*+([^\n]+)", text)
        answer = lines[-1].strip(" *$.") if lines else None
    return answer or None


def last_number(text: str) -> str | None:
    """What the last box holds, else the last number of a text: for models that rarely box their answer."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return last_boxed(text) or (numbers[-1].rstrip(",") if numbers else None)


def last_letter(text: str) -> str | None:
    """The letter that a text states last, as "Answer: X" in the forms models write it or as \\boxed{X}.

    Returns "A" to "H" (of which only four are choices); None where no letter is stated.
    """
    stated = [
        (match.start(match.lastindex), match[match.lastindex])
        for pattern in (STATED_LETTER, CHOSEN_LETTER)
        for match in pattern.finditer(text)
    ]
    for position, content in boxes(text):
        if match := BOXED_LETTER.match(content):
            stated.append((position, match[match.lastindex]))
    return max(stated)[1].upper() if stated else None


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
    lists for sets. Words are compared as words, without regard to case; words that differ may still mean the same.

    Returns:
        None where that cannot be decided: one of the two cannot be read, words differ, or it takes too long. The
        limit of time works in the main thread only; elsewhere there is none.
    """
    answer, expected = clean(answer), clean(expected)
    if answer == expected:
        return True
    if len(answer) > LONGEST_ANSWER or not answer:
        return None
    words, expected_words = as_words(answer), as_words(expected)
    if words is not None and expected_words is not None:
        return True if words == expected_words else None
    verdict = verify_mathematics(answer, expected)
    if verdict is False and (words is not None or expected_words is not None):
        return None
    return verdict


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
