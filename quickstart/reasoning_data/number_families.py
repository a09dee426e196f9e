"""Problems about numbers alone, each solved twice or checked by substitution."""

import math

from reasoning_data.trace import Trace, Voice, boxed, paragraphs


def multiplication(v: Voice) -> Trace:
    a, b = v.number(12, 98), v.number(3, 9) * 10 + v.number(2, 8)
    tens, ones = b // 10 * 10, b % 10
    product, partial = a * b, a * ones
    wrong = partial + v.pick(-10, 10, -20)
    slip = v.chance(0.6)
    shown = wrong if slip else partial
    split = (
        f"{v.try_out()} split {b} into {tens} and {ones}. Then {a} × {tens} = {a * tens}, and {a} × {ones} = {shown}. "
        f"Adding the two, {a * tens} + {shown} = {a * tens + shown}."
    )
    check = (
        f"{v.check()} {a} × {ones} is {a // 10 * 10} × {ones} = {a // 10 * 10 * ones} and {a % 10} × {ones} = "
        f"{a % 10 * ones}, so {a // 10 * 10 * ones} + {a % 10 * ones} = {partial}"
    )
    check += f", not {wrong}. The sum is then {a * tens} + {partial} = {product}." if slip else ". Yes, that holds."
    up = (b // 10 + 1) * 10
    other = (
        f"{v.second()}{b} is {up} - {up - b}, so I can take {a} × {up} = {a * up} and remove {a} × {up - b} = "
        f"{a * (up - b)}. That leaves {a * up} - {a * (up - b)} = {product}. {v.agree()}"
    )
    return Trace(
        problem=v.pick(
            f"Compute {a} × {b} without a calculator.",
            f"What is the product of {a} and {b}?",
            f"A hall has {a} rows of {b} seats. How many seats are there in all?",
        ),
        reasoning=paragraphs(
            v.begin() + f" I need {a} × {b}.", split, check, other, f"{v.therefore()}{a} × {b} = {product}."
        ),
        solution=boxed(f"Splitting {b} into {tens} and {ones}: {a * tens} + {partial} = {product}.", product),
        answer=str(product),
        domain="math",
        family="multiplication",
    )


def greatest_common_divisor(v: Voice) -> Trace:
    g = v.number(4, 18)
    x, y = v.pick((5, 8), (7, 9), (4, 9), (7, 12), (9, 16), (11, 14), (13, 8), (15, 11), (17, 6))
    a, b = sorted((g * x, g * y), reverse=True)
    small = next(d for d in range(2, g + 1) if g % d == 0)
    if small < g:
        guess = (
            f"Perhaps it is simply {small}, since {a} ÷ {small} = {a // small} and {b} ÷ {small} = {b // small}. "
            f"{v.contrast()}a common divisor need not be the greatest one: {a // small} and {b // small} still share "
            f"the "
            f"factor {g // small}."
        )
    else:
        guess = (
            f"Perhaps the smaller number itself divides the larger one? {b} × {a // b} = {a // b * b}, which is not "
            f"{a}. "
            f"But a smaller divisor may well do it."
        )
    steps, m, n = [], a, b
    while n:
        steps.append(f"{m} = {m // n} × {n} + {m % n}")
        m, n = n, m % n
    euclid = f"{v.hmm()}Euclid's algorithm is safer. I divide and keep the remainder:\n" + "\n".join(steps)
    check = (
        f"The last divisor before the remainder 0 is {g}. {v.check()} {a} ÷ {g} = {a // g} and {b} ÷ {g} = {b // g}, "
        f"and "
        f"{a // g} and {b // g} have no common factor."
    )
    divisors = [d for d in range(1, b + 1) if b % d == 0]
    other = (
        f"{v.second()}the divisors of {b} are {', '.join(map(str, divisors))}, and the largest of them that divides "
        f"{a} "
        f"is {max(d for d in divisors if a % d == 0)}. {v.agree()}"
    )
    asked = v.pick(
        f"Find the greatest common divisor of {a} and {b}.",
        f"Two ropes of {a} cm and {b} cm are to be cut into equal pieces, as long as possible, with nothing left over. "
        f"How many centimetres long is each piece?",
    )
    return Trace(
        problem=asked,
        reasoning=paragraphs(v.begin(), guess, euclid, check, other, f"{v.therefore()}the answer is {g}."),
        solution=boxed(f"By Euclid's algorithm the greatest common divisor of {a} and {b} is {g}.", g),
        answer=str(g),
        domain="math",
        family="greatest_common_divisor",
    )


PRIMES = [p for p in range(2, 200) if all(p % d for d in range(2, p))]


def factorisation(v: Voice) -> Trace:
    p, q = sorted(v.some([p for p in PRIMES if 7 <= p <= 47], 2))
    n = p * q
    tries = []
    for d in [d for d in PRIMES if d < p]:
        if d in (2, 5):
            tries.append(f"{n} ends in {n % 10}, so {d} does not divide it.")
        else:
            lead = v.pick("Perhaps", "Maybe", "What about", "Let me try")
            tries.append(f"{lead} {d}? {d} × {n // d} = {n // d * d}, and {n} - {n // d * d} = {n % d}, so no.")
    found = f"Next is {p}: {p} × {q} = {n}. There it is."
    root = math.isqrt(n)
    bound = (
        f"{v.hmm()}how far would I have to go? {root} × {root} = {root * root} and {root + 1} × {root + 1} = "
        f"{(root + 1) ** 2}, so primes up to {root} are enough."
    )
    prime = f"{v.check()} Is {q} prime too? None of {', '.join(str(d) for d in PRIMES if d * d <= q)} divides it. Yes."
    other = f"{v.second()}{q - 1} × {p} = {(q - 1) * p}, and one more {p} makes {(q - 1) * p} + {p} = {n}. {v.agree()}"
    return Trace(
        problem=v.pick(
            f"What is the largest prime factor of {n}?", f"Write {n} as a product of primes and give the larger one."
        ),
        reasoning=paragraphs(
            v.begin(),
            bound,
            " ".join(tries),
            found,
            prime,
            other,
            f"{v.therefore()}{n} = {p} × {q}, and the answer is {q}.",
        ),
        solution=boxed(f"{n} = {p} × {q}, and both are prime.", q),
        answer=str(q),
        domain="math",
        family="factorisation",
    )


def arithmetic_series(v: Voice) -> Trace:
    first, step, count = v.number(1, 20), v.number(2, 9), v.number(8, 25)
    last = first + step * (count - 1)
    total = sum(range(first, last + 1, step))
    wrong = (first + last) * (count - 1)
    slip = (
        f"How many terms are there? {last} - {first} = {last - first}, and {last - first} ÷ {step} = {count - 1}, so "
        f"maybe "
        f"{count - 1} terms.\n\nWait, that counts the gaps and not the terms: from {first} to {first + step} is one "
        f"gap and "
        f"already two terms. So there are {count - 1} + 1 = {count} terms."
    )
    formula = (
        f"First and last together make {first} + {last} = {first + last}. With {count} terms, twice the sum is {count} "
        f"× "
        f"{first + last} = {count * (first + last)}, and half of that is {total}."
    )
    middle = f"With {count - 1} terms I would have had half of {wrong}, which is too small." if v.chance(0.4) else ""
    other = (
        f"{v.second()}take {first} out of every term, {count} × {first} = {count * first}. What remains is {step} "
        f"times "
        f"0 + 1 + ... + {count - 1}, and that sum is {count * (count - 1) // 2}, so {step} × "
        f"{count * (count - 1) // 2} = "
        f"{step * count * (count - 1) // 2}. Together {count * first} + {step * count * (count - 1) // 2} = {total}. "
        f"{v.agree()}"
    )
    return Trace(
        problem=v.pick(
            f"Find the sum {first} + {first + step} + {first + 2 * step} + ... + {last}.",
            f"A path is tiled in rows: the first row has {first} tiles, each further row {step} more, and the last row "
            f"has "
            f"{last}. How many tiles are there?",
        ),
        reasoning=paragraphs(v.begin(), slip, formula, middle, other, f"{v.therefore()}the sum is {total}."),
        solution=boxed(f"There are {count} terms with mean ({first} + {last})/2, so the sum is {total}.", total),
        answer=str(total),
        domain="math",
        family="arithmetic_series",
    )


def remainders(v: Voice) -> Trace:
    p, q = sorted(v.some([5, 7, 8, 9, 11, 13], 2))
    if math.gcd(p, q) > 1:
        p, q = 7, 11
    n = v.number(q + 1, p * q - 1)
    r, s = n % p, n % q
    candidates = list(range(s, n + 1, q))
    lines = [
        f"{c}: {c} - {c // p * p} = {c % p}, so the remainder is {c % p}" + (", which fits." if c % p == r else ", no.")
        for c in candidates
    ]
    return Trace(
        problem=v.pick(
            f"Find the smallest positive whole number that leaves remainder {r} when divided by {p} and remainder {s} "
            f"when "
            f"divided by {q}.",
            f"A box of beads: in bags of {p} there are {r} left over, in bags of {q} there are {s} left over. What is "
            f"the "
            f"smallest possible number of beads, if there are more than {s}?",
        )
        if n > s > 0
        else f"Find the smallest number above {s} that leaves remainder {r} on division by {p} and {s} on division by "
        f"{q}.",
        reasoning=paragraphs(
            v.begin(),
            f"{v.try_out()} list the numbers with remainder {s} modulo {q}, because there are fewer of those, and test "
            f"each one "
            f"modulo {p}.",
            "\n".join(lines),
            f"{v.check()} {n // p} × {p} + {r} = {n} and {n // q} × {q} + {s} = {n}. Both conditions hold.",
            f"But could a smaller one exist? The list started at {s} and skipped nothing, so no. The next one would "
            f"come only "
            f"{p} × {q} = {p * q} later.",
            f"{v.therefore()}the number is {n}.",
        ),
        solution=boxed(f"Testing {', '.join(map(str, candidates))} modulo {p}, the first that fits is {n}.", n),
        answer=str(n),
        domain="math",
        family="remainders",
    )


def inclusion_exclusion(v: Voice) -> Trace:
    a, b = v.pick((2, 3), (3, 4), (2, 5), (3, 5), (4, 6), (4, 5), (5, 6), (6, 9), (3, 7), (6, 8))
    n = v.number(40, 200)
    lcm = math.lcm(a, b)
    count = sum(1 for i in range(1, n + 1) if i % a == 0 or i % b == 0)
    period = sum(1 for i in range(1, lcm + 1) if i % a == 0 or i % b == 0)
    rest = sum(1 for i in range(n // lcm * lcm + 1, n + 1) if i % a == 0 or i % b == 0)
    naive = n // a + n // b
    wrong_lcm = (
        f"Maybe the doubly counted ones are the multiples of {a} × {b} = {a * b}. Hmm, no: {lcm} is already a multiple "
        f"of both. "
        if lcm != a * b
        else ""
    )
    return Trace(
        problem=f"How many whole numbers from 1 to {n} are divisible by {a} or by {b}"
        + v.pick("?", " (or both)?", ", possibly by both?"),
        reasoning=paragraphs(
            v.begin(),
            f"There are {n // a} multiples of {a} up to {n}, because {a} × {n // a} = {a * (n // a)}, and {n // b} "
            f"multiples of {b}, "
            f"because {b} × {n // b} = {b * (n // b)}. Together {n // a} + {n // b} = {naive}.",
            f"{v.contrast()}this counts some numbers twice. {wrong_lcm}A number divisible by both {a} and {b} is a "
            f"multiple of {lcm}, "
            f"and there are {n // lcm} of those. So the count is {naive} - {n // lcm} = {count}.",
            f"{v.second()}the pattern repeats every {lcm} numbers, and each full stretch holds {period} such numbers. "
            f"There are "
            f"{n // lcm} full stretches, {n // lcm} × {period} = {n // lcm * period}, and the numbers after "
            f"{n // lcm * lcm} add {rest}: "
            f"{n // lcm * period} + {rest} = {count}. {v.agree()}",
            f"{v.therefore()}there are {count} such numbers.",
        ),
        solution=boxed(f"{n // a} + {n // b} - {n // lcm} = {count}.", count),
        answer=str(count),
        domain="math",
        family="inclusion_exclusion",
    )


FAMILIES = (
    multiplication,
    greatest_common_divisor,
    factorisation,
    arithmetic_series,
    remainders,
    inclusion_exclusion,
)
