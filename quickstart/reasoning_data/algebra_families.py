"""Fractions and equations: the rule that tempts is tried first, and fails."""

import math

from reasoning_data.trace import Trace, Voice, boxed, paragraphs


def fraction_sum(v: Voice) -> Trace:
    b, d = v.some([2, 3, 4, 5, 6, 7, 8, 9, 10, 12], 2)
    a, c = v.number(1, b - 1), v.number(1, d - 1)
    common = math.lcm(b, d)
    top = a * (common // b) + c * (common // d)
    g = math.gcd(top, common)
    answer = f"{top // g}/{common // g}" if common // g > 1 else str(top // g)
    larger = f"{a}/{b}" if a * d >= c * b else f"{c}/{d}"
    tempting = (
        f"Maybe I can add tops and bottoms, which would give {a + c}/{b + d}? {v.contrast()}that lies between the two "
        f"fractions, "
        f"while a sum of positive numbers must be larger than {larger} alone. So that cannot be right."
        if a * d != c * b
        else f"Both fractions are the same size, so the sum must be twice {a}/{b}."
    )
    work = (
        f"The denominators need a common multiple; the least one of {b} and {d} is {common}. Then {a}/{b} becomes "
        f"{a * (common // b)}/{common}, because {a} × {common // b} = {a * (common // b)}, and {c}/{d} becomes "
        f"{c * (common // d)}/{common}, because {c} × {common // d} = {c * (common // d)}. The tops add to "
        f"{a * (common // b)} + {c * (common // d)} = {top}."
    )
    reduce = (
        f"Wait, {top}/{common} is not in lowest terms yet: both are divisible by {g}, which leaves {answer}."
        if g > 1
        else f"{v.check()} {top} and {common} have no common factor, so {top}/{common} is already in lowest terms."
    )
    other = (
        f"{v.second()}cross multiplication gives the top {a} × {d} + {c} × {b} = {a * d + c * b} over {b} × {d} = "
        f"{b * d}, that is "
        f"{a * d + c * b}/{b * d}{'' if math.gcd(a * d + c * b, b * d) == 1 else ', or ' + answer}. {v.agree()}"
    )
    return Trace(
        problem=v.pick(
            f"Compute {a}/{b} + {c}/{d} and give the result in lowest terms.",
            f"One pipe fills {a}/{b} of a tank, another fills {c}/{d} of an equal tank. How many tanks is that "
            f"together, as a "
            f"fraction in lowest terms?",
        ),
        reasoning=paragraphs(v.begin(), tempting, work, reduce, other, f"{v.therefore()}the sum is {answer}."),
        solution=boxed(f"Over the common denominator {common} the sum is {top}/{common}.", answer),
        answer=answer,
        domain="math",
        family="fraction_sum",
    )


def linear_equation(v: Voice) -> Trace:
    x, c = v.number(2, 14), v.number(2, 6)
    a = c + v.number(2, 7)
    b = v.number(3, 40)
    d = (a - c) * x + b
    k, right = a - c, d - b
    name = v.pick("x", "n", "t", "y")
    if v.chance(0.6):
        slip = (
            f"Taking {c}{name} away from both sides and moving the {b} over gives {k}{name} = {d} + {b}, so {k}{name} "
            f"= {d + b}.\n\n"
            f"Wait, the {b} stands on the left with a plus sign, so I must subtract it and not add it: {d} - {b} = "
            f"{right}, and "
            f"{k}{name} = {right}."
        )
    else:
        slip = (
            f"{v.try_out()} collect the terms with {name} on the left: {a} - {c} = {k}, so {k}{name} + {b} = {d}. "
            f"Subtracting {b}, "
            f"{d} - {b} = {right}."
        )
    return Trace(
        problem=v.pick(
            f"Solve {a}{name} + {b} = {c}{name} + {d} for {name}.",
            f"{a} times a number plus {b} equals {c} times the same number plus {d}. What is the number?",
        ),
        reasoning=paragraphs(
            v.begin() + f" The equation is {a}{name} + {b} on one side and {c}{name} + {d} on the other.",
            slip,
            f"Dividing, {right} ÷ {k} = {x}.",
            f"{v.pick('Let me substitute it back.', 'Wait, let me test that in the equation itself.')} On the left {a} "
            f"× {x} + {b} = "
            f"{a * x + b}, on the right {c} × {x} + {d} = {c * x + d}. They are equal.",
            f"But would a neighbour fit too? With {x + 1} the left is {a * (x + 1) + b} and the right "
            f"{c * (x + 1) + d}, so no."
            if v.chance(0.5)
            else "",
            f"{v.therefore()}{name} = {x}.",
        ),
        solution=boxed(f"From {k}{name} = {right} follows {name} = {x}.", x),
        answer=str(x),
        domain="math",
        family="linear_equation",
    )


FAMILIES = (fraction_sum, linear_equation)
