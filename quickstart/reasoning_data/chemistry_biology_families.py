"""School chemistry and biology, with the usual wrong turns."""

from math import gcd

from reasoning_data.trace import Trace, Voice, boxed, paragraphs

MASSES = {"H": 1, "C": 12, "N": 14, "O": 16, "Na": 23, "Mg": 24, "S": 32, "Cl": 35.5, "K": 39, "Ca": 40, "Fe": 56}
COMPOUNDS = {
    "glucose C6H12O6": {"C": 6, "H": 12, "O": 6}, "sulfuric acid H2SO4": {"H": 2, "S": 1, "O": 4},
    "calcium carbonate CaCO3": {"Ca": 1, "C": 1, "O": 3}, "ammonia NH3": {"N": 1, "H": 3},
    "sodium hydroxide NaOH": {"Na": 1, "O": 1, "H": 1}, "magnesium oxide MgO": {"Mg": 1, "O": 1},
    "ethanol C2H6O": {"C": 2, "H": 6, "O": 1}, "iron oxide Fe2O3": {"Fe": 2, "O": 3}, "methane CH4": {"C": 1, "H": 4},
    "calcium hydroxide Ca(OH)2": {"Ca": 1, "O": 2, "H": 2}, "magnesium chloride MgCl2": {"Mg": 1, "Cl": 2},
    "ammonium nitrate NH4NO3": {"N": 2, "H": 4, "O": 3}, "potassium carbonate K2CO3": {"K": 2, "C": 1, "O": 3},
}  # fmt: skip


def molar_mass(v: Voice) -> Trace:
    name = v.pick(*COMPOUNDS)
    atoms = COMPOUNDS[name]
    parts = {e: MASSES[e] * n for e, n in atoms.items()}
    total = round(sum(parts.values()))
    moles = v.number(2, 12)
    grams = total * moles
    skipped = next((e for e, n in atoms.items() if n > 1), next(iter(atoms)))
    single = total - parts[skipped] + MASSES[skipped]
    slip = (
        f"Maybe I can just add one of each element, which gives {single:g}? Wait, the formula has {atoms[skipped]} "
        f"atoms of {skipped}, "
        f"so that is too little."
        if atoms[skipped] > 1 and sum(n > 1 for n in atoms.values()) == 1
        else "Perhaps the indices matter: the number behind an element says how many of its atoms there are."
    )
    return Trace(
        problem=f"How many moles are {grams} g of {name}? Use the atomic masses "
        + ", ".join(f"{e} {MASSES[e]:g}" for e in atoms)
        + ".",
        reasoning=paragraphs(
            v.begin() + " First I need the molar mass.",
            slip,
            "\n".join(f"{e}: {n} × {MASSES[e]:g} = {parts[e]:g}" for e, n in atoms.items()),
            f"Together {' + '.join(f'{m:g}' for m in parts.values())} = {total} g per mole.",
            f"However, the question gives grams and asks for moles, so I divide: {grams} ÷ {total} = {moles}.",
            f"{v.check()} {moles} × {total} = {grams}. Yes.",
            f"{v.therefore()}it is {moles} moles.",
        ),
        solution=boxed(f"The molar mass is {total} g per mole, and {grams} ÷ {total} = {moles}.", moles),
        answer=str(moles),
        domain="chemistry",
        family="molar_mass",
    )


def combustion(v: Voice) -> Trace:
    c = v.number(1, 16)
    h = 2 * c + 2 if v.chance(0.6) or c == 1 else 2 * c
    formula = f"C{c if c > 1 else ''}H{h}"
    quarter = 4 * c + h  # twice the number of oxygen atoms needed, over two
    doubled = quarter % 4 != 0
    k = 2 if doubled else 1
    oxygen, water = k * quarter // 4, k * h // 2
    halves = (
        f"Oxygen atoms needed on the right: 2 × {c} + {h // 2} = {2 * c + h // 2}, so {(2 * c + h // 2) / 2:g} "
        f"molecules of O2. Hmm, half a "
        f"molecule is not allowed. But I can double everything: 2 {formula}, {oxygen} O2, {2 * c} CO2, {water} H2O."
        if doubled
        else f"Oxygen atoms needed on the right: 2 × {c} + {h // 2} = {2 * c + h // 2}, and every O2 brings two, so "
        f"{2 * c + h // 2} ÷ 2 = "
        f"{oxygen}."
    )
    asked, answer = v.pick(("O2", oxygen), ("CO2", k * c), ("H2O", water))
    return Trace(
        problem=f"Balance the combustion of {formula} in oxygen with the smallest whole numbers: {formula} + O2 gives "
        f"CO2 + H2O. What is the "
        f"number in front of {asked}?",
        reasoning=paragraphs(
            v.begin(),
            f"Carbon first: {c} C on the left, so {c} CO2 on the right. Hydrogen: {h} ÷ 2 = {h // 2}, so {h // 2} H2O.",
            f"Perhaps I should leave oxygen to the end, because it stands alone in O2. {halves}",
            f"{v.check()} Carbon: {k} × {c} = {k * c} on both sides. Hydrogen: {k} × {h} = {k * h} on the left and 2 × "
            f"{water} = {2 * water} on "
            f"the right. Oxygen: 2 × {oxygen} = {2 * oxygen} on the left, and 2 × {k * c} + {water} = "
            f"{2 * k * c + water} on the right.",
            f"{v.contrast()}are the numbers the smallest possible? {k}, {oxygen}, {k * c} and {water} have no common "
            f"factor, so they are."
            if gcd(gcd(k, oxygen), gcd(k * c, water)) == 1
            else "",
            f"{v.therefore()}the number in front of {asked} is {answer}.",
        ),
        solution=boxed(f"{k if k > 1 else ''} {formula} + {oxygen} O2 → {k * c} CO2 + {water} H2O".strip(), answer),
        answer=str(answer),
        domain="chemistry",
        family="combustion",
    )


def dilution(v: Voice) -> Trace:
    strong = v.pick(2, 4, 5, 6, 8, 10)
    factor = v.pick(2, 4, 5, 8, 10, 20)
    take = v.number(2, 20) * 5
    final = take * factor
    weak = strong / factor
    return Trace(
        problem=f"{take} ml of hydrochloric acid of {strong} mol per litre are to be diluted to {weak:g} mol per "
        f"litre. How many millilitres of "
        "water must be added?",
        reasoning=paragraphs(
            v.begin(),
            f"The amount of acid stays the same while the volume grows. The concentration falls by the factor "
            f"{factor}, because {weak:g} × "
            f"{factor} = {strong}, so the volume must grow by the same factor: {take} × {factor} = {final} ml.",
            f"So maybe the answer is {final}? Wait, that is the volume of the whole solution, and {take} ml of it are "
            f"there already. The water is "
            f"{final} - {take} = {final - take} ml.",
            f"{v.second()}the amounts must agree. Before: {take} × {strong} = {take * strong} millimoles. After: "
            f"{final} × {weak:g} = "
            f"{take * strong} millimoles. {v.agree()}",
            f"{v.therefore()}one adds {final - take} ml of water.",
        ),
        solution=boxed(
            f"The final volume is {final} ml, so {final} - {take} = {final - take} ml of water are added.", final - take
        ),
        answer=str(final - take),
        domain="chemistry",
        family="dilution",
    )


def inheritance(v: Voice) -> Trace:
    letter, strong, weak = v.pick(
        ("A", "purple flowers", "white flowers"), ("B", "brown eyes", "blue eyes"), ("T", "tall stems", "short stems"),
        ("R", "round seeds", "wrinkled seeds"), ("G", "green pods", "yellow pods"),
    )  # fmt: skip
    low = letter.lower()
    one, two = v.pick((letter + low, letter + low), (letter + low, low + low), (letter + low, letter + letter))
    cells = ["".join(sorted(x + y)) for x in one for y in two]
    count = v.number(5, 60) * 4
    recessive = cells.count(low + low)
    dominant = count // 4 * (4 - recessive)
    carriers = sum(c == letter + low for c in cells)
    naive = (
        f"Maybe half of them, since there are two kinds? {v.contrast()}{letter} is dominant, so {letter}{low} also "
        f"shows {strong}, and the two kinds "
        "need not be equally frequent."
    )
    return Trace(
        problem=f"{letter} ({strong}) is dominant over {low} ({weak}). Plants or animals with {one} and {two} have "
        f"{count} offspring. How many of them "
        f"are expected to show {strong}?",
        reasoning=paragraphs(
            v.begin(),
            naive,
            f"Let me fill in the square. From {one} come {one[0]} and {one[1]}, from {two} come {two[0]} and {two[1]}. "
            f"The four cells are "
            f"{', '.join(cells)}.",
            f"{recessive} of 4 cells are {low}{low} and show {weak}; the other {4 - recessive} show {strong}. So of "
            f"{count} offspring I expect "
            f"{count} ÷ 4 × {4 - recessive} = {dominant}.",
            f"{v.second()}{count} ÷ 4 × {recessive} = {count - dominant} should show {weak}, and {count} - "
            f"{count - dominant} = {dominant}. {v.agree()}",
            f"Another thing I could be asked is the number of carriers, {letter}{low}: {count} ÷ 4 × {carriers} = "
            f"{count // 4 * carriers}. That is a "
            "different question."
            if v.chance(0.5)
            else "",
            f"{v.therefore()}about {dominant} show {strong}.",
        ),
        solution=boxed(f"{4 - recessive} of the 4 cells carry {letter}: {dominant} of {count}.", dominant),
        answer=str(dominant),
        domain="biology",
        family="inheritance",
    )


def doubling(v: Voice) -> Trace:
    start, minutes, times = v.number(1, 12) * 50, v.pick(15, 20, 30, 40), v.number(3, 8)
    total = start * 2**times
    span = minutes * times
    chain, values = start, []
    for _ in range(times):
        chain *= 2
        values.append(str(chain))
    return Trace(
        problem=f"A culture of {start} bacteria doubles every {minutes} minutes. How many are there after {span} "
        f"minutes?",
        reasoning=paragraphs(
            v.begin(),
            f"Perhaps they grow by {start} every {minutes} minutes, which would give {start} + {times} × {start} = "
            f"{start + times * start}. However, "
            "doubling means that the new ones divide as well, so the growth is faster than that.",
            f"{span} ÷ {minutes} = {times}, so there are {times} doublings. Starting from {start}: "
            f"{', '.join(values)}.",
            f"{v.second()}{times} doublings multiply by {' × '.join(['2'] * times)} = {2**times}, and {start} × "
            f"{2**times} = {total}. {v.agree()}",
            f"Wait, did I double once too often? After {minutes} minutes there are {values[0]}, that is one doubling, "
            f"so after {span} minutes it is "
            f"{times}. Good.",
            f"{v.therefore()}there are {total} bacteria.",
        ),
        solution=boxed(f"{times} doublings: {start} × {2**times} = {total}.", total),
        answer=str(total),
        domain="biology",
        family="doubling",
    )


def base_pairs(v: Voice) -> Trace:
    strand = "".join(v.pick("A", "C", "G", "T") for _ in range(v.number(12, 24)))
    partner = strand.translate(str.maketrans("ACGT", "TGCA"))
    at, cg = sum(c in "AT" for c in strand), sum(c in "CG" for c in strand)
    bonds = 2 * at + 3 * cg
    n = len(strand)
    return Trace(
        problem=f"One strand of a piece of DNA reads {strand}. A pairs with T by 2 hydrogen bonds, C with G by 3. How "
        f"many hydrogen bonds hold the two "
        "strands together?",
        reasoning=paragraphs(
            v.begin(),
            f"The other strand is {partner}, read in the same direction as it lies.",
            f"Maybe I can take 2 bonds for each of the {n} pairs, 2 × {n} = {2 * n}? {v.contrast()}pairs of C and G "
            f"have one more, so that is only a lower "
            "bound.",
            f"A: {strand.count('A')}, T: {strand.count('T')}, C: {strand.count('C')}, G: {strand.count('G')}. So "
            f"{strand.count('A')} + "
            f"{strand.count('T')} = {at} pairs with 2 bonds and {strand.count('C')} + {strand.count('G')} = {cg} pairs "
            f"with 3. {v.check()} {at} + {cg} = {n}, "
            "which is the length of the strand.",
            f"2 × {at} + 3 × {cg} = {bonds}.",
            f"{v.second()}{2 * n} + {cg} = {bonds}, one extra for each C or G. {v.agree()}",
            f"{v.therefore()}there are {bonds} hydrogen bonds.",
        ),
        solution=boxed(f"{at} pairs with 2 bonds and {cg} with 3: {bonds}.", bonds),
        answer=str(bonds),
        domain="biology",
        family="base_pairs",
    )


FAMILIES = (molar_mass, combustion, dilution, inheritance, doubling, base_pairs)
