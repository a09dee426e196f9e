"""How answers are written: marks, words, numbers, units, times, sets and intervals, read from LaTeX or plain text."""

import re

# Words that an answer in LaTeX is wrapped in: \text{even}, \mathrm{cm}.
TEXT_COMMAND = re.compile(r"\\(?:text\w*|mbox|math(?:rm|bf|sf|tt|it)|operatorname)\s*\{([^{}]*)\}")
WORDS = re.compile(r"(?:[a-z]+|\d+)(?:[ ,.:'’&-]+(?:[a-z]+|\d+))*")
SPACE = r"(?:\\[,;:! ]|~)"

NUMBER_WORDS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
NUMBER_WORD = re.compile(
    rf"(?i)(?<=\d)\s*{SPACE}?\s*" + r"(?:\\text\{{\s*({0})\s*\}}|({0})\b)".format("|".join(NUMBER_WORDS))
)
# 12\,345, 1 000 000 and 12{,}345, but not the fraction of 1 125/200.
GROUPED = re.compile(
    rf"(?<![\d.,^_])\d{{1,3}}(?:(?:{SPACE}|[ \u00a0\u2009\u202f]|\{{,\}})\d{{3}})+(?!\d|\s*/|{SPACE}\d|\{{,\}}\d)"
)
# Words that change the number beside them, unless `normalise` has made a power of ten of them.
VALUE_WORD = re.compile(
    rf"(?i)\b(?:dozens?|half|halves|(?:third|quarter|fourth|fifth|sixth|eighth|tenth)s|"
    rf"(?:hundredth|thousandth|millionth|billionth)s?|(?:{'|'.join(NUMBER_WORDS)})s?|"
    r"squared|cubed|double|triple|twice|negative|minus|not)\b"
)
UNEQUAL = re.compile(r"\\n(?:eq?|ot)(?![a-zA-Z])|≠|!=")
COMPARED = re.compile(r"[<>≤≥]|\\(?:[lg](?:eq?|t)|leqslant|geqslant)(?![a-zA-Z])")

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
    rf"(?<=[\d}})])\s*+(?:{SPACE}\s*+)?+"
    rf"((?:{UNIT}|[mgJNVWCL](?=\s*/))(?:(?:\s*/\s*|\s+per\s+|\s+)(?:{UNIT}|[smhgJNVWCLK](?:\^\{{?\d\}}?|[²³])?))*)$"
)
LONE_LETTER = re.compile(r"(?<=\d)\s++([mgshLJNVW])$")  # beside a unit on the other side it is one too: 5 m, 5 cm
TEXT_AT_END = re.compile(  # marks of `stated_units` around what stands in \text{…}
    r"(?<![\s/·.])((?:[\s/·.]*+\x01[^\x01\x02]*+\x02(?:\s*+\^\s*+\{?-?\d\}?)?)++)[\s.]*+$"
)
SAME_UNIT = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "kilometer": "km",
    "kilometre": "km", "meter": "m", "metre": "m", "inch": "in", "inches": "in", "foot": "ft", "feet": "ft",
    "yard": "yd", "mile": "mi", "gram": "g", "kilogram": "kg", "milligram": "mg", "liter": "L", "litre": "L", "l": "L",
    "milliliter": "mL", "millilitre": "mL", "ml": "mL", "second": "s", "sec": "s", "minute": "min", "hour": "h",
    "hr": "h", "pound": "lb", "ounce": "oz", "deg": "degree", "rad": "radian", "mph": "mi/h", "kph": "km/h",
    "usd": "dollar", "people": "person",
}  # fmt: skip

CLOCK = re.compile(r"(?i)(\d{1,2}):(\d{2})(?:\s*([ap])\.?\s?m\.?)?")
BRACKETS = {"(": ")", "[": "]", "{": "}"}
OR = re.compile(r"\\(?:text\w*|mbox|mathrm)\s*\{\s*or\s*\}|\bor\b|\\(?:lor|vee)(?![a-zA-Z])")
VARIABLE = re.compile(r"[A-Za-z]|\\[a-z]+")

# What is spelt like a word but is mathematics.
FUNCTIONS = "(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|exp|sqrt|max|min|gcd|lcm|mod|det|infty"
GREEK = "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|sigma|omega|phi|psi|rho|tau"
SYMBOL = re.compile(f"{FUNCTIONS}|{GREEK}", re.IGNORECASE)


def clean(answer: str) -> str:
    """An answer without the marks around it: spaces, $ and \\$, \\( \\), bold, the full stop of its sentence."""
    answer = re.sub(r"^\\[(\[]|\\[)\]]$", "", answer.replace("\\$", "").strip().rstrip("."))
    return answer.strip(" \t\n*$`").removesuffix(".").strip()


def unwrap(answer: str) -> str:
    """An answer with the words of its \\text{…} in the open."""
    return TEXT_COMMAND.sub(r" \1 ", answer).replace(" ^", "^").strip()


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


def has_words(text: str) -> bool:
    """Whether a word of three or more letters stands in a formula, other than names of commands and functions."""
    words = re.findall(r"(?<![\\A-Za-z0-9_^{])[A-Za-z]{3,}", text)
    return any(SYMBOL.fullmatch(word) is None for word in words)


def normalise(answer: str) -> str:
    """An answer in the notation that math-verify reads.

    Upright i and e, and \\text{(1,2)} without a word in it, lose their marks. Numbers such as 1 7/8, 1.0e-4, 12\\,345
    and 1.5 million, one ∅, one sign of degrees, and "x < 1 or x \\ge 2" as a union of intervals.
    """
    # math-verify takes 4i for a complex number, 4 i for a variable.
    answer = re.sub(r"([A-Za-z]?)\\math(?:rm|bf|it|sf)\{([ie])\}", lambda m: f"{m[1]}{' ' * len(m[1])}{m[2]}", answer)
    answer = re.sub(r"\\text\{([^{}A-Za-z\\]*)\}", r"\1", answer)
    answer = re.sub(r"\\varnothing\b|∅", r"\\emptyset", answer)
    answer = re.sub(r"(?<!\s)\s*+°", r"^\\circ", answer)
    answer = re.sub(r"^([+-]?\d+)\s+(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", answer)
    answer = re.sub(r"^([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d{1,3})$", r"\1 \\cdot 10^{\2}", answer)
    answer = GROUPED.sub(lambda number: re.sub(r"\D", "", number[0]), answer)
    answer = NUMBER_WORD.sub(lambda word: rf" \cdot 10^{{{NUMBER_WORDS[(word[1] or word[2]).lower()]}}}", answer)
    return as_union(answer) or answer


def as_union(answer: str) -> str | None:
    """Inequalities in one variable joined by "or", as a union of intervals; None for anything else.

    x \\le -2 \\text{ or } x > 3 → (-\\infty,-2] \\cup (3,\\infty)
    """
    pieces = OR.split(answer)
    if len(pieces) < 2:
        return None
    intervals, variables = [], set()
    for piece in pieces:
        sides = [side.strip(" $,") for side in COMPARED.split(piece)]
        signs = [sign.strip("\\") for sign in COMPARED.findall(piece)]
        if not all(sides) or (len(sides), place := variable_place(sides)) not in {(2, 0), (2, 1), (3, 1)}:
            return None
        closed = [sign in "≤≥" or "e" in sign for sign in signs]
        upward = [sign[0] in "<≤l" for sign in signs]
        if len(set(upward)) > 1:
            return None
        variables.add(sides[place])
        if not upward[0]:  # 3 > x is x < 3
            sides, closed, place = sides[::-1], closed[::-1], len(sides) - 1 - place
        low = "(-\\infty" if place == 0 else f"{'[' if closed[0] else '('}{sides[0]}"
        high = "\\infty)" if place == len(sides) - 1 else f"{sides[-1]}{']' if closed[-1] else ')'}"
        intervals.append(f"{low},{high}")
    return r" \cup ".join(intervals) if len(variables) == 1 else None


def variable_place(sides: list[str]) -> int | None:
    """Which side of inequalities is the variable alone; None where none is."""
    return next((i for i, side in enumerate(sides) if VARIABLE.fullmatch(side)), None)


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


def as_clock(answer: str) -> tuple[int, bool] | None:
    """A time of day such as 6:48 PM, 11\\text{:}00 or \\text{6:00}: its minutes, and whether AM or PM is stated."""
    match = CLOCK.fullmatch(re.sub(r"\s*:\s*", ":", unwrap(re.sub(SPACE, " ", answer)).strip()))
    if match is None:
        return None
    hours, minutes, half = int(match[1]), int(match[2]), (match[3] or "").lower()
    return (hours % 12 + 12 * (half == "p") if half else hours) * 60 + minutes, bool(half)


def stated_units(answer: str) -> str:
    """The unit at the end of an answer, in one spelling: 15\\text{ cm}^2 → "cm^2", \\$5 → "dollar"; "" without one.

    Every word of a \\text{…} after a formula counts as a unit, "apples" too. `answer` is not cleaned: a lone dollar
    sign is a unit, not a mark around it.
    """
    text = re.sub(r"(?<!\s)\s*+(?:\^\s*+)?(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z])|°)", r"\\text{ degree }", answer)
    text = NUMBER_WORD.sub("", text).replace("\\$", "").strip(" \t\n*$`.")
    marked = TEXT_COMMAND.sub("\x01\\1\x02", re.sub(SPACE, " ", text))
    if match := TEXT_AT_END.search(marked):
        unit = re.sub("[\x01\x02]", " ", match[1])
        number = re.match(r"[\s\d.,:/+-]*", unit).end()
        if match.start() == 0 and not re.search(r"\d", unit[:number]):
            return ""  # no number stands before these words
        unit = unit[number:]
    elif match := UNITS.search(unwrap(text)) or LONE_LETTER.search(text):
        unit = match[1]
    else:
        return "dollar" if answer.count("$") % 2 else ""
    unit = re.sub(r"\bper\b", "/", unit.replace("²", "^2").replace("³", "^3"))
    if not re.fullmatch(r"[A-Za-zμ\s./·^{}\d-]*", unit):
        return ""
    return spelt_alike(re.findall(r"[A-Za-zμ]+|\^\s*\{?-?\d|/", unit))


def spelt_alike(tokens: list[str]) -> str:
    """A unit from its words, powers and slashes, in one spelling: ["square", "inches"] → "in^2"."""
    powers = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
    parts: list[str] = []
    power = ""
    for token in tokens:
        word = token if len(token) < 3 else token.casefold()
        if token == "/":
            parts.append("/")
        elif token[0] == "^":
            parts.append("^" + token.strip("^ {"))
        elif word in powers:
            power = powers[word]
        elif not (word in ("C", "celsius") and parts[-1:] == [" degree"]):
            single = word.removesuffix("s") if len(word) > 3 else word
            parts.append(f" {SAME_UNIT.get(word, SAME_UNIT.get(single, single))}{power}")
            power = ""
    return re.sub(r"\s*/\s*", "/", "".join(parts)).strip()


def value_words(answer: str) -> set[str]:
    """The words of an answer that change its number, such as dozen, hundredths and squared, and a ≠ or a leading <."""
    plain = unwrap(answer)
    words = {word.casefold().removesuffix("s") for word in VALUE_WORD.findall(plain)}
    if UNEQUAL.search(plain):
        words.add("≠")
    if compared := COMPARED.match(plain):
        words.add(compared[0])
    return words


def grouping(answer: str) -> str | None:
    """How an answer groups several values: "tuple" (1,2), "set" \\{1,2\\}, "list" 1,2; None where it does not."""
    text = re.sub(r"\\(?:left|right|[bB]ig+[lr]?)(?![a-zA-Z])|\\(?=[{}])|\s", "", unwrap(answer))
    open_brackets: list[str] = []
    outside = first = None  # where a comma stands outside all brackets; where the first bracket closes
    inside = False  # whether a comma stands in the first bracket alone
    for i, character in enumerate(text):
        if character in BRACKETS:
            open_brackets.append(character)
        elif character in ")]}" and open_brackets:
            open_brackets.pop()
            if not open_brackets and first is None:
                first = i
        elif character == ",":
            if not open_brackets:
                outside = i
            inside = inside or len(open_brackets) == 1
    if outside is not None:
        return "list"
    if inside and first == len(text) - 1:
        return {"(": "tuple" if text.endswith(")") else None, "{": "set"}.get(text[0])
    return None
