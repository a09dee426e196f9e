"""Which letter a completion of a multiple-choice question states.

A letter is read only if it is clear that it is one: what is not ("Answer: A photon", "Answer: B or C") is left to a
judge, or undecided.
"""

import re

from lm_eval_sae.grading.extraction import boxes

THINK_END = "</think>"  # what stands before it is reasoning, what follows is the answer
LETTERS = "ABCD"

# What may stand around a letter. Quantifiers are possessive or bounded: a model that writes thousands of spaces or
# asterisks must not cost minutes.
MARKS = r"""(?:[\s*_$"'`“”(\[{]|\\(?:[(\[]|(?:boxed|fbox|framebox|text\w*|math\w*)\b))*+"""
LEAD = rf"{MARKS}(?:(?i:option|choice|letter)\b{MARKS})?+"
CAPITAL = r"([A-H])(?![^\W_]|['’]\w)"
CLEAR = (  # the letter ends its line, or the text of its choice follows: "C) 10 eV", "C. Its mass", "C, because"
    r"""(?=(?:[*_$"'`”)\]}.!]|\\[)\]])*+$|"""
    r"""[*_]*+[)\]][*_.:]*+\s+(?!(?:or|and|is|was|can|cannot|fails)\b)|[*_]*+[.:][*_]*+\s+(?![a-z])|"""
    r"""[)*_$}\]]*+(?:[,;]\s+(?!(?:or|and)\b)[a-z]|[.,;:!][*_$}]*+\s*+$))"""
)
SMALL = r"([a-h])(?=[)\]}*_$.]*+$)"  # "a" is also an article, so a small letter has to end its line
NAMED = (
    r"(?<!(?i:wrong) )(?<!(?i:incorrect) )(?<![^\W_])"
    r"(?i:answer(?:\s+(?:choice|option|letter))?|(?:correct|right|best|final)\s+(?:option|choice))"
)
# "Answer: C", "**Answer:** (C)", "### Final answer = $\boxed{C}$"
LINE = re.compile(
    rf"{NAMED}[\s*_]{{0,9}}(?:(?i:is)\s*+)?[:：=][*_]*+{LEAD}(?:{CAPITAL}({CLEAR})?|{SMALL})", re.MULTILINE
)
# "The answer is C.", "the correct option should therefore be **C**"
SENTENCE = re.compile(
    rf"{NAMED}(?:\s+(?:to|here)\b[^.:\n]{{0,60}}?)?[\s*_]{{1,9}}(?i:is|(?:would|should|must)\s+(?:\w+\s+)?be)\b"
    r"(?:\s+(?i:therefore|thus|clearly|indeed|the|option|choice|most|likely|probably|either|both)\b){0,3}+"
    rf"{LEAD}{CAPITAL}({CLEAR})?",
    re.MULTILINE,
)
CHOSEN = re.compile(  # "Therefore, option C is correct."
    rf"\b(?i:option|choice)\b{MARKS}([A-H])[\s*_)\]]*+is\s+(?:the\s+)?(?:correct|right|best)\b"
)
BOXED = re.compile(rf"{LEAD}{CAPITAL}({CLEAR})", re.MULTILINE)
ALONE = re.compile(rf"[#>]*+{MARKS}(?i:(?:answer|option|choice)\b)?{MARKS}([{LETTERS}])[*_$\"'`”’)\]}}.!\\\s]*+")
MENTIONED = re.compile(rf"\b[{LETTERS}]\b")


def last_letter(text: str, *, finished: bool = True) -> str | None:
    """The letter that a text states last, as "Answer: X" in the forms models write it, as \\boxed{X} or as X alone.

    What follows the last </think> is looked at first, and what stands before it only if that mentions no letter.
    Lines "Answer: X" and boxes count before sentences that mention an answer.

    Args:
        text: a completion.
        finished: whether it ended by itself: the last line of one that was cut off may be the start of a word.

    Returns:
        "A" to "H" (of which only four are choices); None if no letter is stated, or the last one may be no letter.
    """
    reasoning, _, conclusion = text.rpartition(THINK_END)
    found = stated(conclusion, alone=finished)
    if not found and not MENTIONED.search(conclusion):
        found = stated(reasoning, alone=False)
    return found[-1][1] if found else None


def stated(text: str, *, alone: bool) -> list[tuple[int, str | None]]:
    """(position, letter) of the statements that count, in order; None for what may be no letter.

    Args:
        text: to read.
        alone: whether the last line may be an answer without a word such as "answer" beside it.
    """
    found = [(line.start(), letter_of(line)) for line in LINE.finditer(text)]
    found += [(start, match[1]) for start, content in boxes(text) if (match := BOXED.match(content))]
    if not found:
        found = [(sentence.start(), letter_of(sentence)) for sentence in SENTENCE.finditer(text)]
        found += [(sentence.start(), sentence[1]) for sentence in CHOSEN.finditer(text)]
    if alone and (match := ALONE.fullmatch(text.rstrip().rpartition("\n")[2])):
        found.append((len(text), match[1]))
    return sorted(found, key=lambda statement: statement[0])


def letter_of(match: re.Match[str]) -> str | None:
    """The letter of a statement; None if it is not clear that it is one."""
    if match[1] is None:
        return match[3].upper()
    return match[1] if match[2] is not None else None
