"""Puzzles whose solution is found by trying cases, by elimination or by keeping track of a state."""

import itertools

from reasoning_data.trace import PEOPLE, Trace, Voice, paragraphs


def knights_and_knaves(v: Voice) -> Trace:
    a, b = v.some(PEOPLE, 2)
    forms = {
        "{o} is a knave": lambda me, other: not other,
        "{o} is a knight": lambda me, other: other,
        "{o} and I are of the same kind": lambda me, other: me == other,
        "{o} and I are of different kinds": lambda me, other: me != other,
        "at least one of us is a knave": lambda me, other: not (me and other),
        "we are both knaves": lambda me, other: not me and not other,
        "I am a knight or {o} is a knave": lambda me, other: me or not other,
    }
    worlds = list(itertools.product([True, False], repeat=2))
    while True:
        said_a, said_b = v.pick(*forms), v.pick(*forms)
        fits = [(x, y) for x, y in worlds if forms[said_a](x, y) == x and forms[said_b](y, x) == y]
        if len(fits) == 1:
            break
    kind = {True: "knight", False: "knave"}
    quote_a, quote_b = (said[0].upper() + said[1:] for said in (said_a.format(o=b), said_b.format(o=a)))
    cases = []
    for x, y in v.some(worlds, 4):
        lead = v.pick(
            "Perhaps", "Maybe", "Let me suppose", "What if", *["Alternatively, suppose"] * (2 if cases else 0)
        )
        end = "?" if lead == "What if" else "."
        text = f"{lead} {a} is a {kind[x]} and {b} a {kind[y]}{end} "
        for name, quote, truth, honest in ((a, quote_a, forms[said_a](x, y), x), (b, quote_b, forms[said_b](y, x), y)):
            if truth != honest:
                text += (
                    f'Then what {name} says, "{quote}", would be {"true" if truth else "false"}. '
                    f"{v.contrast()}a {kind[honest]} {'never lies' if honest else 'always lies'}, so this case is out."
                )
                break
        else:
            text += (
                f"Then what {a} says is {'true' if x else 'false'}, as it must be for a {kind[x]}, and what {b} says "
                f"is "
                f"{'true' if y else 'false'}, as it must be for a {kind[y]}. This case stands."
            )
        cases.append(text)
    x, y = fits[0]
    answer = f"{a} is a {kind[x]} and {b} is a {kind[y]}"
    return Trace(
        problem=f'On an island knights always tell the truth and knaves always lie. {a} says: "{quote_a}." {b} says: '
        f'"{quote_b}." What is each of them?',
        reasoning=paragraphs(
            v.begin() + " There are only four cases, so I can go through them all.",
            *cases,
            f"{v.check()} Four cases, three contradictions, one left. Good.",
            f"{v.therefore()}{answer}.",
        ),
        solution=f"Only one of the four cases is free of contradiction: **{answer}**.",
        answer=answer,
        domain="puzzle",
        family="knights_and_knaves",
    )


def ordering(v: Voice) -> Trace:
    count = v.number(4, 5)
    people = v.some(PEOPLE, count)
    more, most = v.pick(("taller", "tallest"), ("older", "oldest"), ("faster", "fastest"), ("stronger", "strongest"))
    clues = [(people[i], people[i + 1]) for i in range(count - 1)]
    extra = tuple(sorted(v.some(range(count), 2)))
    if extra[1] - extra[0] > 1:
        clues.append((people[extra[0]], people[extra[1]]))
    clues = v.some(clues, len(clues))
    place = v.number(2, count - 1)
    left, steps, given = list(people), [], list(clues)
    listed = v.some(people, count)
    for position in range(place):
        rivals = [p for p in listed if p in left]
        beaten = {low: high for high, low in given if high in left}
        wrong = next((p for p in rivals if p in beaten), None)
        top = left[0]
        if wrong and v.chance(0.7):
            steps.append(
                f"{v.pick('Maybe', 'Perhaps')} {wrong} is number {position + 1}? {v.contrast()}{beaten[wrong]} is "
                f"{more} than {wrong}, so no."
            )
        steps.append(
            f"Nobody who is left is {more} than {top}, and each of the others has someone above: {top} is number "
            f"{position + 1}."
        )
        left.remove(top)
    ranked = [p for p in itertools.permutations(people) if all(p.index(h) < p.index(low) for h, low in clues)]
    assert ranked == [tuple(people)]
    return Trace(
        problem=" ".join(f"{h} is {more} than {low}." for h, low in clues)
        + f" Who is number {place}, counted from the {most}?",
        reasoning=paragraphs(
            v.begin() + f" The people are {', '.join(listed)}.",
            *steps,
            f"{v.check()} The whole order would be {', '.join(people)}. I go through the clues: "
            + ", ".join(f"{h} before {low}" for h, low in clues)
            + ". All of them hold.",
            f"Another way: I can count from the other end, where {people[-1]} is last."
            f" Then {people[place - 1]} is number {count - place + 1} from below, and {count} + 1 - "
            f"{count - place + 1} = {place}."
            if v.chance(0.6)
            else "",
            f"{v.therefore()}it is {people[place - 1]}.",
        ),
        solution=f"The order is {', '.join(people)}, so number {place} is **{people[place - 1]}**.",
        answer=people[place - 1],
        domain="puzzle",
        family="ordering",
    )


def swaps(v: Voice) -> Trace:
    count = v.number(3, 5)
    people = v.some(PEOPLE, count)
    things = v.some(
        ["red ball", "blue ball", "green ball", "novel", "violin", "compass", "umbrella", "map", "lantern"], count
    )
    moves = [tuple(v.some(range(count), 2)) for _ in range(v.number(3, 6))]
    state, lines = list(things), []
    for i, j in moves:
        state[i], state[j] = state[j], state[i]
        lines.append(f"{people[i]} and {people[j]} swap: {people[i]} has the {state[i]}, {people[j]} the {state[j]}.")
    asked = v.number(0, count - 1)
    holder, back = asked, []
    for i, j in reversed(moves):
        before = j if holder == i else i if holder == j else holder
        if before != holder:
            back.append(f"before the swap of {people[i]} and {people[j]} it was with {people[before]}")
        holder = before
    assert things[holder] == state[asked]
    backwards = (", ".join(back) + f". {people[holder]} began with the {things[holder]}") if back else "it never moved"
    return Trace(
        problem=", ".join(f"{p} has the {t}" for p, t in zip(people, things, strict=True))
        + ". Then "
        + ", then ".join(f"{people[i]} and {people[j]} swap what they hold" for i, j in moves)
        + f". What does {people[asked]} hold in the end?",
        reasoning=paragraphs(
            v.begin() + f" {v.try_out()} write down the state after every swap.",
            "\n".join(lines),
            f"But was {people[asked]} in the last swap at all? "
            f"{'Yes.' if asked in moves[-1] else 'No, so nothing changed there.'}",
            f"{v.second()}I follow the thing in {people[asked]}'s hands backwards: {backwards}. "
            f"{v.agree() if v.chance(0.3) else 'It fits.'}",
            f"{v.therefore()}{people[asked]} holds the {state[asked]}.",
        ),
        solution=f"In the end {people[asked]} holds the **{state[asked]}**.",
        answer=state[asked],
        domain="puzzle",
        family="swaps",
    )


def number_sequence(v: Voice) -> Trace:
    kind = v.pick("quadratic", "affine", "sums")
    if kind == "quadratic":
        first, gap, grow = v.number(1, 12), v.number(1, 6), v.number(2, 5)
        terms = [first]
        for i in range(6):
            terms.append(terms[-1] + gap + grow * i)
        gaps = [y - x for x, y in itertools.pairwise(terms)]
        rule = (
            f"{v.hmm()}the differences {', '.join(map(str, gaps[:5]))} grow by {grow} each time. The next difference "
            f"is {gaps[4]} + {grow} = "
            f"{gaps[5]}, and {terms[5]} + {gaps[5]} = {terms[6]}."
        )
    elif kind == "affine":
        first, factor, plus = v.number(1, 6), v.number(2, 3), v.number(1, 7)
        terms = [first]
        for _ in range(6):
            terms.append(terms[-1] * factor + plus)
        rule = (
            f"{v.hmm()}each term is a little more than {factor} times the one before: {factor} × {terms[1]} = "
            f"{factor * terms[1]}, and "
            f"{terms[2]} is {plus} more; {factor} × {terms[2]} = {factor * terms[2]}, and {terms[3]} is {plus} more. "
            f"So the next is {factor} × "
            f"{terms[5]} + {plus} = {terms[6]}."
        )
    else:
        terms = [v.number(1, 5), v.number(3, 9)]
        for _ in range(5):
            terms.append(terms[-1] + terms[-2])
        rule = (
            f"{v.hmm()}every term might be the sum of the two before it: {terms[0]} + {terms[1]} = {terms[2]} and "
            f"{terms[1]} + {terms[2]} = "
            f"{terms[3]}. It holds on to the end: {terms[3]} + {terms[4]} = {terms[5]}. So the next is {terms[4]} + "
            f"{terms[5]} = {terms[6]}."
        )
    one, two = terms[2] - terms[1], terms[3] - terms[2]
    constant = (
        f"Maybe the differences are all equal? {terms[2]} - {terms[1]} = {one}, {v.pick('but', 'however')} {terms[3]} "
        f"- {terms[2]} = {two}, so no."
        if one != two
        else f"Maybe the differences are all equal? {terms[2]} - {terms[1]} = {one}, but {terms[5]} - {terms[4]} = "
        f"{terms[5] - terms[4]}, so no."
    )
    doubling = (
        f"Perhaps each term is twice the one before? 2 × {terms[3]} = {2 * terms[3]}. But the next term is {terms[4]}, "
        f"so that fails."
        if 2 * terms[3] != terms[4]
        else ""
    )
    return Trace(
        problem=v.pick("What comes next in ", "Find the next number of ")
        + ", ".join(map(str, terms[:6]))
        + v.pick(", ...?", ", ?"),
        reasoning=paragraphs(
            v.begin(),
            constant,
            doubling,
            rule,
            f"{v.check()} The same rule must give the terms that I was told, and it does so for {terms[4]} and "
            f"{terms[5]}.",
            f"{v.therefore()}the next number is {terms[6]}.",
        ),
        solution=f"The next number is **{terms[6]}**.",
        answer=str(terms[6]),
        domain="puzzle",
        family="number_sequence",
    )


WORDS = (
    "strawberry", "mississippi", "bookkeeper", "assessment", "committee", "banana", "parallel", "engineering",
    "possession", "abracadabra", "nonsense", "character", "refrigerator", "occurrence", "successful", "referee",
    "tattoo", "entertainment",
)  # fmt: skip


def letters(v: Voice) -> Trace:
    words = v.some(WORDS, v.number(2, 3))
    letter = v.pick(*sorted({c for c in "".join(words) if "".join(words).count(c) > 2}))
    counts = [w.count(letter) for w in words]
    spelled = "\n".join(
        f"{w}: {'-'.join(w)}. "
        + (
            f'"{letter}" stands at place {", ".join(str(i + 1) for i, c in enumerate(w) if c == letter)}'
            if n
            else f'there is no "{letter}"'
        )
        + f": {n}."
        for w, n in zip(words, counts, strict=True)
    )
    total = sum(counts)
    without = ["".join(c for c in w if c != letter) for w in words]
    return Trace(
        problem=f'How many times does the letter "{letter}" occur in "{" ".join(words)}"?',
        reasoning=paragraphs(
            v.begin()
            + f" At a glance, maybe {max(1, total - 1)}. But a glance easily misses doubled letters, so let me spell "
            f"the words out.",
            spelled,
            f"Together {' + '.join(map(str, counts))} = {total}."
            + (f" So not {max(1, total - 1)}." if total > 1 else ""),
            f'{v.second()}without any "{letter}" the words are {", ".join(without)}, with '
            f"{' + '.join(str(len(w)) for w in without)} = "
            f"{sum(map(len, without))} letters instead of {sum(map(len, words))}, and {sum(map(len, words))} - "
            f"{sum(map(len, without))} = "
            f"{total}. {v.agree()}",
            f"{v.therefore()}it occurs {total} times.",
        ),
        solution=f'The letter "{letter}" occurs **{total}** times.',
        answer=str(total),
        domain="puzzle",
        family="letters",
    )


def brackets(v: Voice) -> Trace:
    pairs = {"(": ")", "[": "]", "{": "}", "<": ">"}
    stack: list[str] = []
    text, lines = [], []
    length = v.number(7, 13)
    while len(text) < length or not stack:
        if stack and v.chance(0.42):
            opened = stack.pop()
            text.append(pairs[opened])
            lines.append(f"{pairs[opened]} closes {opened}; open: {' '.join(stack) or 'none'}")
        else:
            stack.append(v.pick(*pairs))
            text.append(stack[-1])
            lines.append(f"{stack[-1]} opens; open: {' '.join(stack)}")
    closing = " ".join(pairs[c] for c in reversed(stack))
    opened, closed = sum(c in pairs for c in text), sum(c not in pairs for c in text)
    same_order = " ".join(pairs[c] for c in stack)
    order = (
        f"Maybe I should close them as they were opened, {same_order}. However, the one opened last must be closed "
        f"first, so I read the "
        f"list from the end: {closing}."
        if same_order != closing
        else f"The one opened last must be closed first, which gives {closing}."
    )
    return Trace(
        problem=f"Complete the sequence so that all brackets are closed properly: {' '.join(text)}",
        reasoning=paragraphs(
            v.begin() + " I keep a list of the brackets that are open.",
            "\n".join(lines),
            order,
            f"{v.check()} There are {opened} opening and {closed} closing brackets, so {opened} - {closed} = "
            f"{opened - closed} are missing, and "
            f"I have written {len(stack)}.",
            f"{v.therefore()}the sequence ends with {closing}",
        ),
        solution=f"**{closing}**",
        answer=closing,
        domain="puzzle",
        family="brackets",
    )


FAMILIES = (knights_and_knaves, ordering, swaps, number_sequence, letters, brackets)
