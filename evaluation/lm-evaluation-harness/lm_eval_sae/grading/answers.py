"""Whether two answers mean the same, by math-verify and lm-eval's own normalisers.

Both leave out more than they should, so they decide only what they can be trusted with: math-verify takes 5 km for
5 m, 52_9 for 52_8 and a pair for a set. Words, units, bases and brackets are therefore compared first.
"""

import functools
import re
from typing import NamedTuple

from lm_eval.tasks.hendrycks_math.utils import is_equiv
from lm_eval.tasks.minerva_math.utils import REMOVED_EXPRESSIONS, normalize_final_answer

from lm_eval_sae.grading.mathematics import verify_mathematics

LONGEST_ANSWER = 1000  # characters; what is longer is not read as mathematics

NOTATION = [
    # Forms that math-verify misreads, and the same in a form that it reads.
    (r"\\math(?:rm|bf|it|sf)\{([ie])\}", r"\1"),  # 3+4\mathrm{i}
    (r"\\varnothing\b|∅", r"\\emptyset"),
    (r"(?<=\d)(?:\\[,;:! ]|[ ~\u00a0\u2009\u202f]|\{,\})(?=\d{3}(?![\d/]))", ""),  # 12\,345
    (r"^([+-]?\d+)\s+(\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),  # 1 7/8 is no 17/8
    (r"^([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d{1,3})$", r"\1 \\cdot 10^{\2}"),
    # Signs that are units.
    (r"\s*(?:\^\s*)?(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z])|°)", r"\\text{ degree }"),
    (r"\s*\\?%", r"\\text{ percent }"),
    (r"^(-?)\\?\$([^$]*)$", r"\1\2\\text{ dollar}"),
    (r"(?i)\b(?:square|sq\.?)\s+([a-z]+)", r"\1^2"),
    (r"^\\text\w*\{\s*\(?([A-Z])\)?\s*\}$", r"\1"),  # \text{(C)}
    (r"\\text\w*\{([^{}A-Za-z]*)\}", r"\1"),
]
NOTATION = [(re.compile(pattern), replacement) for pattern, replacement in NOTATION]

TEXT = re.compile(r"\\(?:text\w*|mbox|math(?:rm|bf|sf|tt|it)|operatorname)\s*\{([^{}]*)\}")
UNITS = {"percent", *(word.removesuffix("s") for word in REMOVED_EXPRESSIONS if word.isalpha())}
BARE_UNIT = re.compile(
    rf"(?<=[\d}}) ])(?<![\\^_])({'|'.join(sorted(UNITS, key=len, reverse=True))})s?(?![A-Za-z])"
    r"|(?<=\d )[mgshLJNVW](?=$|/)"
)
MARKED = re.compile("\x01([^\x02]+)\x02(?:\\s*\\^\\s*\\{?(-?\\d)\\}?)?")  # a word of a \text{…}, with its power
UNIT_AT_END = re.compile(rf"(?:[\s~/.·]|\\[,;:! ]|{MARKED.pattern})+$")
BARE_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}|(?<=\s)or(?=\s)")
IN_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ ,.'’-]+(?:[A-Za-z]+|\d+))*")
JOINED = re.compile(r"[\s,]*\\text\w*\{[\s,]*(?:or|and)\s*\}\s*")
COMPARED = re.compile(r"[<>≤≥]|\\(?:[lg](?:eq?|t)|leqslant|geqslant)(?![a-zA-Z])")
# Words that change the number before them: 5 dozen is no 5.
VALUE_WORD = re.compile(
    r"dozen|hal(?:f|ves|ve)|quarter|(?:hundred|thousand|[mb]illion|trillion|ten|third|fourth|fifth|sixth|eighth)(?:th)?|"
    r"squared|cubed|double|triple|twice|negative|minus|not|no|or|and"
)
UNEQUAL = re.compile(rf"\\n(?:eq?|ot)(?![a-zA-Z])|≠|!=|^\s*(?:{COMPARED.pattern})")
BASED = re.compile(r"\(?([0-9A-Za-z]+)\)?\s*_\s*\{?\s*(\d{1,3})\s*\}?", re.ASCII)
SPACING = re.compile(r"\\(?:left|right|[bB]ig+[lr]?)(?![a-zA-Z])|\\(?=[{}])|\s")
TUPLE = re.compile(r"\((?:[^()]|\([^()]*\))*\)")


class Reading(NamedTuple):
    """An answer in parts: 15\\text{ cm}^2 is the mathematics "15" with the unit ("cm^2",)."""

    mathematics: str
    unit: tuple[str, ...]
    """Words after the mathematics in one spelling, with their powers."""
    words: tuple[str, ...]
    """Words within the mathematics, or all of an answer in words."""


@functools.lru_cache(maxsize=65536)  # the repeats of a question give few different answers
def check(answer: str, expected: str) -> bool | None:
    """Whether two answers mean the same: \\frac{1}{2} = 0.5, {1,2} = {2,1}, 12\\text{ cm} = 12, 50\\% = 50 or 0.5.

    A unit or a base that only one side states is a matter of notation.

    Returns:
        None if that cannot be decided: words or units differ, a word such as "dozen" or a ≠ stands on one side alone,
        an ordered pair may be a list (1,2 without brackets), or neither library can read them in time.
    """
    if clean(answer) == clean(expected):
        return True
    found, gold = read(answer), read(expected)
    if not clean(answer) or len(answer) > LONGEST_ANSWER or found.words != gold.words:
        return None
    unit = found.unit or gold.unit
    same_unit = found.unit == gold.unit
    if not same_unit and ((found.unit and gold.unit) or any(map(VALUE_WORD.fullmatch, unit))):
        return None  # 2 hours are 120 minutes, and 5 dozen are 60
    pair = (found.mathematics, gold.mathematics)
    if pair[0] == pair[1]:
        return True
    if not all(pair) or len(set(map(bool, map(UNEQUAL.search, pair)))) > 1:
        return None
    based = [BASED.fullmatch(text) for text in pair]
    if any(based):
        return same_based_number(pair, {match[2] for match in based if match})
    verdict = verify_mathematics(*pair)
    if verdict is not True and not same_unit and unit == ("percent",):
        hundredths = [rf"\frac{{{r.mathematics}}}{{100}}" if r.unit else r.mathematics for r in (found, gold)]
        verdict = verify_mathematics(*hundredths) or verdict
    if verdict or normalisers_agree(*pair):
        return same_grouping(*pair)
    known = same_unit or UNITS.issuperset(word.partition("^")[0] for word in unit)
    return False if verdict is False and known and not found.words and ":" not in answer + expected else None


def clean(answer: str) -> str:
    """An answer without the marks around it: spaces, \\( \\), $ $, bold, the full stop of its sentence."""
    answer = re.sub(r"^\\[(\[]|\\[)\]]$", "", answer.strip(" \t\n*`").rstrip("."))
    if answer.startswith("$") and answer.endswith("$"):
        answer = answer.strip("$")
    return answer.strip(" \t\n*`").removesuffix(".").strip()


def read(answer: str) -> Reading:
    """The parts of an answer, in the notation that math-verify reads."""
    text = clean(answer)
    for pattern, replacement in NOTATION:
        text = pattern.sub(replacement, text)
    if not COMPARED.search(text):
        text = JOINED.sub(", ", text)  # x=1\text{ or }x=2
    text = TEXT.sub(lambda match: " " + re.sub("[A-Za-zμ]+", "\x01\\g<0>\x02", match[1]), text)
    text = BARE_UNIT.sub("\x01\\g<0>\x02", text)
    end = UNIT_AT_END.search(text)
    unit = tuple(f"{one_spelling(word)}{power and '^'}{power}" for word, power in MARKED.findall(end[0] if end else ""))
    mathematics = re.sub("[\x01\x02]", "", text[: end.start()] if unit else text).strip().removesuffix(".")
    words = tuple(one_spelling(word) for word in BARE_WORD.findall(mathematics))
    if "\x01" in text[: end.start() if unit else None] or not mathematics or IN_WORDS.fullmatch(mathematics):
        # Not mathematics and a unit, but words: their order counts.
        words = tuple(map(one_spelling, re.findall(r"[A-Za-zμ]+|\d+", re.sub("[\x01\x02]", "", text))))
        return Reading("".join(words), (), words)
    return Reading(mathematics, unit, words)


def one_spelling(word: str) -> str:
    """A word in lower case, in the singular."""
    return word.casefold().removesuffix("s") if len(word) > 3 else word.casefold()


def same_based_number(pair: tuple[str, str], bases: set[str]) -> bool | None:
    """The verdict on two numbers of which one or both state a base; None for two bases, as 42_{10} is 52_8."""
    if len(bases) > 1:
        return None
    digits = [(match[1] if (match := BASED.fullmatch(text)) else text).lstrip("0").casefold() for text in pair]
    return digits[0] == digits[1]


def same_grouping(answer: str, expected: str) -> bool | None:
    """The verdict on two expressions that math-verify holds equal, which takes tuples and lists for sets."""
    groupings = {grouping(answer), grouping(expected)}
    if groupings == {"tuple", "set"}:
        return False
    return None if groupings == {"tuple", "list"} else True


def grouping(answer: str) -> str:
    """How an answer groups several values: "tuple" (1,2), "set" \\{1,2\\}, "list" 1,2; "" for one value."""
    text = SPACING.sub("", answer).rpartition("=")[2]
    if "," not in text:
        return ""
    if text[0] == "{" and text[-1] == "}":
        return "set"
    return "tuple" if TUPLE.fullmatch(text) else "list"


def normalisers_agree(answer: str, expected: str) -> bool:
    """Whether Hendrycks' or Minerva's normaliser makes two answers one text, without losing a part of either."""
    if re.search(r"=|\\overline|\\l?dots|\d[\s,]+\d", f"{answer} and {expected}"):
        return False  # they would make 5 of x=4,y=5, and 12 of 1 2
    if is_equiv(answer, expected):
        return True
    letters = [re.findall("[A-Za-z0-9]", text) for text in (answer, expected)]
    return letters[0] == letters[1] and normalize_final_answer(answer) == normalize_final_answer(expected)


def is_number(text: str) -> bool:
    """Whether a text is a whole number in digits, with or without a sign and commas between thousands."""
    return re.fullmatch(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)", text.strip()) is not None


def strings_agree(answer: str, expected: str) -> bool:
    """The plain string rule: equal as written, whole numbers without commas and leading zeros (073 = 73)."""

    def normalised(text: str) -> str:
        return str(int(text.replace(",", ""))) if is_number(text) and len(text) < LONGEST_ANSWER else text.strip()

    return normalised(answer) == normalised(expected)
