"""What a completion answered, and whether that is right: extraction, and checking by `math-verify` or as plain text."""

import functools
import re
import threading

CHECK_SECONDS = 5  # for reading one expression, and for one comparison
LONGEST_ANSWER = 1000  # characters; what is longer is not read as mathematics

# Words that an answer in LaTeX is wrapped in: \text{even}, \mathrm{cm}.
TEXT_COMMAND = re.compile(r"\\(?:text\w*|mbox|math(?:rm|bf|sf|tt|it)|operatorname)\s*\{([^{}]*)\}")
WORDS = re.compile(r"(?:[a-z]+|\d+)(?:[ ,.:'’&-]+(?:[a-z]+|\d+))*")

# The letter of a choice: "Answer: C", "**Answer:** (C)", "The final answer is $\boxed{\text{C}}$", "the correct option
# is C". The quantifiers are possessive or bounded: a model that writes thousands of spaces, asterisks or repeated words
# must not cost minutes.
MARK = (
    r"""[\s*_$"'`“”‘’(\[{)\]}]|"""
    r"\\(?:[(\[,;:! )\]]|(?:boxed|fbox|text\w*|math\w*|rm|bf|left|right|quad|[bB]ig+[lr]?)\b)"
)
MARKS = rf"(?:{MARK})*+"
LINE_START = r"""(?P<line>^[ \t#>*_"'`(\[$-]*+(?i:(?:the|my|final|correct|right|best)[ \t]++){0,4})?"""
STATED = (
    r"(?<!wrong\s)(?<!incorrect\s)\b(?:answer(?:\s++(?:choice|option|letter))?|"
    r"(?:correct|right|best)\s++(?:choice|option|letter))\b"
    r"(?:\s*+\(?\$?LETTER\b\$?\)?|\s++(?:here|(?:to|for|of|in)(?:\s++[\w'’-]++){1,6}?)\b)?[\s*_]*+"
)
VERB = (
    r"(?P<verb>(?:is|(?:should|would|must|has\s+to|seems\s+to|appears\s+to)(?:\s+(?:\w{1,20}ly|thus|therefore))?\s+be)\b"
    r"[\s*_]*+[:=：]?|[:=：–-])"
)
LEAD = (
    rf"{MARKS}(?i:(?:therefore|thus|hence|clearly|most|likely|probably|presumably|indeed|definitely|certainly|obviously|"
    rf"simply|just|actually|then|to\s+be|the|correct|right|best|option|choice|letter)\b(?::|{MARK})*+){{0,8}}+:?{MARKS}"
)
CAPITAL = r"([A-H])(?!\w|['’]\w)"
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
CHOSEN_LETTER = re.compile(  # "Option C is correct", "choice (C) is the best answer"
    r"\b(?i:option|choice|answer)[\s*_(\[]*+([A-H])[\s*_)\]]*+is\s+(?:clearly\s+|therefore\s+)?(?:the\s+)?(?:correct|right|best)\b"
)
BOXED_LETTER = re.compile(rf"{LEAD}(?:{CAPITAL}|{SMALL})")
AFTER_BOXED_LETTER = re.compile(  # the text of the choice may follow, but D + 1 and C_6H_6 are no letters
    r"\s*(?:[)\]}.,:;*$\\]|$)|\s+\(|\s*[–—]|\s+-+\s+(?:\\text\w*\{)?[^\\\n]*?[A-Za-z]{2}"
)
SECOND_LETTER = re.compile(  # " or C", "/C", ") and (C)", ", C" unless a sentence goes on: ", C is wrong"
    rf"{MARKS}(?:[,;]?{MARKS}(?:(?:and/or|or|and|OR|AND)\b|\\?&|[/+|]){MARKS}([A-H])(?![\w'’])|"
    rf"[,;–-]{MARKS}([A-H])(?=[)\]}}*_$\"'`’ \t]*+(?:$|[,.;/&\n]|or\b|and\b)))",
    re.MULTILINE,
)

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
        # The full stop of a sentence goes, the point of .5 stays.
        answer = lines[-1].lstrip(" *$").rstrip(" *$.") if lines else None
    return answer or None


def last_number(text: str) -> str | None:
    """What the last box holds, else the last number of a text: for models that rarely box their answer."""
    numbers = re.findall(r"-?(?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)", text)
    return last_boxed(text) or (numbers[-1].rstrip(",") if numbers else None)


def last_letter(text: str) -> str | None:
    """The letter that a text states last, as "Answer: X" in the forms models write it or as \\boxed{X}.

    Where a line starts with "Answer:", only such lines and boxes count, not what sentences around them mention.

    Returns "A" to "H" (of which only four are choices); None where no letter is stated, or where the last statement
    names two of them.
    """
    stated = []  # (starts a line or is a box, position, letter)
    last_line = None
    for match in STATED_LETTER.finditer(text):
        starts_line = match["line"] is not None and any(mark in match["verb"] for mark in ":=：")
        position = match.start(match.lastindex)
        # "Answer: B, no. Answer: E" is one line.
        counts = starts_line or (last_line is not None and "\n" not in text[last_line:position])
        last_line = position if counts else None
        stated.append((counts, position, single_letter(match)))
    stated += [(True, match.start(1), single_letter(match)) for match in HEADED_LETTER.finditer(text)]
    stated += [(False, match.start(1), match[1]) for match in CHOSEN_LETTER.finditer(text)]
    # A box counts like a line of its own, but does not make sentences after it mere mentions.
    decisive = any(counts for counts, _, _ in stated)
    for start, content in boxes(text):
        if match := BOXED_LETTER.match(content):
            letter = single_letter(match)
            if letter is None or match[1] is None or AFTER_BOXED_LETTER.match(content, match.end()):
                stated.append((decisive, start, letter))
    return max(stated, key=lambda statement: statement[:2])[2] if stated else None


def single_letter(match: re.Match[str]) -> str | None:
    """The letter of a statement, as a capital; None where another one follows it ("B or C")."""
    letter = match[match.lastindex].upper()
    second = SECOND_LETTER.match(match.string, match.end())
    return None if second and second[second.lastindex] != letter else letter


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
