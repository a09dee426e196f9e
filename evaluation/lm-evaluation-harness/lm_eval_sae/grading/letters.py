"""Which letter a completion of a multiple-choice question states."""

import re
from typing import NamedTuple

from lm_eval_sae.grading.answers import boxes

THINK_END = "</think>"  # what stands before it is reasoning, what follows is the answer
LETTERS = "ABCD"

# The letter of a choice: "Answer: C", "**Answer:** (C)", "The final answer is $\boxed{\text{C}}$", "the correct option
# is C". The quantifiers are possessive or bounded: a model that writes thousands of spaces, asterisks or repeated words
# must not cost minutes.
MARK = (
    r"""[\s*_$"'`“”‘’(\[{)\]}]|"""
    r"\\(?:[(\[,;:! )\]]|(?:boxed|framebox|fbox|text\w*|math\w*|rm|bf|left|right|quad|[bB]ig+[lr]?)\b)"
)
MARKS = rf"(?:{MARK})*+"
LINE_START = r"""(?P<line>^[ \t#>*_"'`(\[$-]*+(?i:(?:the|my|final|correct|right|best)[ \t]++){0,4})?"""
STATED = (
    r"(?<!wrong\s)(?<!incorrect\s)(?<![^\W_])(?:answer(?:\s++(?:choice|option|letter))?|"
    r"(?:correct|right|best|final)\s++(?:choice|option|letter|selection)|my\s++(?:choice|pick|selection))(?![^\W_])"
    r"(?:\s*+\(?\$?LETTER\b\$?\)?|\s++(?:here|(?:to|for|of|in)(?:\s++[\w'’-]++){1,6}?)\b)?[\s*_]*+"
)
VERB = (
    r"(?P<verb>(?:is|(?:should|would|must|has\s+to|seems\s+to|appears\s+to)(?:\s+(?:\w{1,20}ly|thus|therefore))?\s+be)\b"
    r"[\s*_]*+[:=：]?|[:=：–—-])"
)
LEAD = (
    rf"{MARKS}(?i:(?:therefore|thus|hence|clearly|most|likely|probably|presumably|indeed|definitely|certainly|obviously|"
    r"simply|just|actually|then|to\s+be|the|correct|right|best|option|choice|letter|either|both|between)\b"
    rf"(?::|{MARK})*+){{0,8}}+:?{MARKS}"
)
CAPITAL = r"([A-H])(?![^\W_]|_+\{?[^\W_]|['’]\w)"  # _C_ is a letter in italics, C_6 is not
SMALL = r"([a-h])(?=[\W_]*$)"  # "a" is also an article, so a small letter has to end its line
REFUSED = (  # "answer: A is wrong", "the answer is B (10 eV) can be excluded"
    r"""(?![ \t*_$"'`’)\]}]*+(?:\([^()\n]{0,80}\)[ \t]*+)?"""
    r"(?i:fails|cannot|(?:ca|is|was|does|did|wo)n['’]t|does\s+not|"
    r"(?:is|was|seems|appears|looks|proves|(?:can|could|must|should|would)\s+be|has\s+been)"
    r"(?:\s+(?:to\s+be|thus|therefore|then|hence|also|\w{1,20}ly))*+\s+(?:not|wrong|incorrect|false|invalid|impossible|"
    r"excluded|eliminated|rejected|discarded|dismissed|ruled\s+out|out|inconsistent))\b)"
)
STATED_LETTER = re.compile(
    rf"{LINE_START}(?i:{STATED}{VERB}){LEAD}(?:{CAPITAL}{REFUSED}|{SMALL})",
    re.MULTILINE,
)
# A heading of its own: "### Answer", and the letter in the line below it.
HEADED_LETTER = re.compile(
    r"^[ \t#>*_]*+(?i:(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?answer)[ \t*_]*+\n"
    rf"{LEAD}{CAPITAL}(?=[)\]*_$}}.:]|\s*$)",
    re.MULTILINE,
)
VERDICT = r"(?:is|must\s+be)\s+(?:clearly\s+|therefore\s+|thus\s+|indeed\s+)?(?:the\s+)?(?:correct|right|best|answer)\b"
CHOSEN_LETTERS = (
    # "Option C is correct", "choice (C) is the best answer"
    re.compile(rf"\b(?i:option|choice|answer)[\s*_(\[]*+([A-H])[\s*_)\]]*+{VERDICT}"),
    # "So C is correct", but not "theory C is correct" or "if C is correct"
    re.compile(
        r"(?:^|[.!?:;,]\s|\b(?i:so|thus|hence|therefore|only|conclude\s+that)\b,?\s)"
        rf"[ \t*_(\[>]*+([A-H])[ \t*_)\]]*+{VERDICT}",
        re.MULTILINE,
    ),
    # "I choose C"
    re.compile(
        r"\bI(?:['’](?:ll|d|ve)|\s++(?:would|will|shall|should|must|have|therefore|thus|now))*+\s++"
        rf"(?:choose|chose|pick|select|picked|selected|chosen|go\s+with)\s{LEAD}{CAPITAL}{REFUSED}"
    ),
    # "Therefore, (C).": the letter has to end its line
    re.compile(
        r"\b(?i:therefore|thus|hence|consequently|finally|conclusion|so)\b[ \t*_]*+(?:[,:]|(?=[(\[*$]))[ \t*_]*+"
        r"(?i:(?:the\s+)?(?:option|choice|answer|letter)\b)?[ \t*_$(\[]*+"
        r"([A-H])(?=[ \t*_$)\]]*+[.!]?[ \t*_]*+$)",
        re.MULTILINE,
    ),
)
BOXED_LETTER = re.compile(rf"{LEAD}(?:{CAPITAL}|{SMALL})")
NAMED = re.compile(r"(?i:option|choice|letter)[\W_]*$")  # before a letter: "option C", whatever follows
# What may follow a letter of a choice. "A photon", "D-glucose", "C=O" and "C vs D" begin with none, or not clearly.
CLEAR = re.compile(
    r"""(?:[)\]}*_$"'`’”]|\\[)\]])++(?!-\w)|"""
    r"[ \t]*+(?:$|[.,;:!?，。：](?![^\W_])|\\(?:[\\,;:! ]|q?quad\b|text\w*\{\s*(?:[(.,:;)]|[–—-]+\s)))|"
    r"[ \t]++\\?[(\[{]|"
    # The text of the choice follows a dash, but D - 1 is none.
    r"(?:[ \t]++[–—]++\s*+|[–—]++\s)\S|(?:[ \t]++-++\s*+|-++\s)(?:\\text\w*\{)?[^\\\n]{0,200}?[A-Za-z]{2}|"
    r"[ \t]++(?:because|since|as|due\s+to|given\s+that|which|where|based\s+on|but|rather\s+than|instead|thus|therefore|"
    rf"{VERDICT})\b",
    re.MULTILINE,
)
SECOND_LETTER = re.compile(  # " or C", "/C", ") and (C)", ", C" unless a sentence goes on: ", C is wrong"
    rf"{MARKS}(?:[,;]?{MARKS}(?:(?:and/or|or|and|OR|AND)\b|\\?&|[/+|]){MARKS}([A-H])(?![\w'’])|"
    rf"[,;–-]{MARKS}([A-H])(?=[)\]}}*_$\"'`’ \t]*+(?:$|[,.;/&\n]|or\b|and\b)))",
    re.MULTILINE,
)
# A line that is a choice: "**C**", "(C)", "Option C.", "C) 10 eV"; "C. elegans" is none.
CHOICE_LINE = re.compile(
    r"""[ \t#>*_$"'`“‘]*+(?i:(?:(?:my|the|final|correct)[ \t]++){0,3}"""
    r"""(?:(?:answer|option|choice|letter)\b[ \t*_]*+){1,2}+)?"""
    rf"""(?:[ \t*_$"'`“‘(\[{{]|\\(?:[(\[]|(?:text\w*|math\w*)\{{))*+([{LETTERS}])"""
    r"""(?:(?P<alone>(?:[ \t*_$"'`”’)\]}.!]|\\[)\]])*+$)|"""
    r"""[*_]*+(?:[)\]:]|\.(?![ \t*_]*+[a-z]))[*_)\]]*+[ \t]++(?P<text>\S.*))"""
)
RULED_OUT = re.compile(
    r"(?i)\b(?:not|\w+n['’]t|cannot|wrong|incorrect|false|invalid|impossible|unlikely|too|fails?|violates?|"
    r"excluded?|eliminated?|rejected|ruled)\b"
)


class Statement(NamedTuple):
    """One place where a text says what it answers."""

    decisive: bool
    """Whether it is a line "Answer: …" or a box, rather than a mention in a sentence."""

    position: int
    """Of the letter, in characters."""

    letter: str | None
    """Its letter, as a capital; None where it names two, or may be no letter at all ("Answer: A photon")."""

    clear: bool
    """Whether it speaks of choices at all; "Answer: B or C" does."""


def last_letter(text: str, *, finished: bool = True) -> str | None:
    """The letter that a text states last, as "Answer: X" in the forms models write it, as \\boxed{X} or as X alone.

    What follows the last </think> is looked at first, and what stands before it only where that states nothing. Where
    a line starts with "Answer:", only such lines and boxes count, not what sentences around them mention.

    Args:
        text: a completion.
        finished: whether it ended by itself: the last line of one that was cut off may be the start of a word.

    Returns:
        "A" to "H" (of which only four are choices); None where no letter is stated, where the last statement names two
        of them, and where its letter may belong to a text such as "A photon".
    """
    reasoning, _, conclusion = text.rpartition(THINK_END)
    statement = last_statement(conclusion, alone=finished) or last_statement(reasoning, alone=False)
    return statement.letter if statement else None


def last_statement(text: str, *, alone: bool) -> Statement | None:
    """The statement that decides what a text answers; None where it states nothing.

    alone: whether its first or last line may be an answer without a word such as "answer" beside it.
    """
    stated: list[Statement] = []
    last_line = None
    for match in STATED_LETTER.finditer(text):
        starts_line = match["line"] is not None and any(mark in match["verb"] for mark in ":=：")
        position = match.start(match.lastindex)
        # "Answer: B, no. Answer: E" is one line.
        counts = starts_line or (last_line is not None and "\n" not in text[last_line:position])
        last_line = position if counts else None
        stated.append(read(match, match.end("verb"), counts))
    stated += [read(match, match.start(1), True) for match in HEADED_LETTER.finditer(text)]
    for pattern in CHOSEN_LETTERS:
        stated += [read(match, match.start(), False) for match in pattern.finditer(text)]
    # What may be no letter does not make a mention of everything else.
    decisive = any(statement.decisive and statement.clear for statement in stated)
    if not decisive:
        stated = [statement._replace(decisive=False) for statement in stated]
    # A box counts like a line of its own, but does not make sentences after it mere mentions.
    for start, content in boxes(text):
        if match := BOXED_LETTER.match(content):
            statement = read(match, 0, decisive)
            if statement.clear:
                stated.append(statement._replace(position=start))
    if alone and (choice := choice_line(text)):
        match, position = choice
        if match["alone"] is not None or not stated:
            stated.append(Statement(decisive, position, match[1], True))
    return max(stated, key=lambda statement: statement[:2]) if stated else None


def read(match: re.Match[str], start: int, decisive: bool) -> Statement:
    """The statement of a match whose last group is a letter; `start` is where the words before the letter begin."""
    text, position, end = match.string, match.start(match.lastindex), match.end(match.lastindex)
    letter = match[match.lastindex].upper()
    second = SECOND_LETTER.match(text, end)
    if second:
        return Statement(decisive, position, letter if second[second.lastindex] == letter else None, True)
    clear = bool(match[match.lastindex].islower() or CLEAR.match(text, end) or NAMED.search(text[start:position]))
    return Statement(decisive, position, letter if clear else None, clear)


def choice_line(text: str) -> tuple[re.Match[str], int] | None:
    """The first or last line of a text, if it is a choice, and where it begins; None where lines name several."""
    lines = [line for line in re.finditer(r"[^\n]+", text) if not line[0].isspace()]
    matches = [(match, line.start()) for line in lines if (match := CHOICE_LINE.match(line[0].rstrip()))]
    if not matches or len({match[1] for match, _ in matches}) > 1:
        return None
    for match, start in reversed(matches):
        stands = start in (lines[0].start(), lines[-1].start())
        if stands and not (match["text"] and RULED_OUT.search(match["text"])):
            return match, start
    return None
