"""School physics, with the usual wrong turns."""

from math import gcd

from reasoning_data.trace import Trace, Voice, boxed, paragraphs


def acceleration(v: Voice) -> Trace:
    u, a, t = v.number(0, 12), v.pick(2, 4, 6, 8), v.number(3, 12)
    end = u + a * t
    way = u * t + a * t * t // 2
    thing = v.pick("car", "train", "cyclist", "sledge", "lift", "rocket model")
    return Trace(
        problem=f"A {thing} moves at {u} m/s and then speeds up by {a} m/s every second for {t} seconds. How many "
        f"metres does it cover "
        "while speeding up?",
        reasoning=paragraphs(
            v.begin(),
            f"The speed at the end is {u} + {a} × {t} = {end} m/s. Maybe the way is {end} × {t} = {end * t} m? "
            f"{v.contrast()}it moves that "
            f"fast only at the very end, so {end * t} is too much.",
            f"The mean speed counts, and as the speed grows evenly it is halfway between {u} and {end}: half of {u} + "
            f"{end} = {u + end} is "
            f"{(u + end) / 2:g}. Then {(u + end) / 2:g} × {t} = {way} m.",
            f"{v.second()}without speeding up it would cover {u} × {t} = {u * t} m, and the speeding up adds half of "
            f"{a} × {t} × {t} = "
            f"{a * t * t}, which is {a * t * t // 2}. Together {u * t} + {a * t * t // 2} = {way}. {v.agree()}",
            f"{v.therefore()}it covers {way} metres.",
        ),
        solution=boxed(f"The mean speed is {(u + end) / 2:g} m/s, for {t} s: {way} m.", way),
        answer=str(way),
        domain="physics",
        family="acceleration",
    )


def resistors(v: Voice) -> Trace:
    r, s = v.pick(
        (3, 6), (4, 12), (10, 15), (20, 30), (6, 12), (20, 5), (30, 60), (12, 36), (40, 60), (9, 18), (42, 21), (24, 8)
    )
    both = r * s // (r + s)
    volts = r * s // gcd(r, s) * v.number(1, 12)  # whole currents in the branches
    current = volts // both
    return Trace(
        problem=f"Resistors of {r} ohm and {s} ohm are connected in parallel to {volts} volts. How many amperes flow "
        f"in total?",
        reasoning=paragraphs(
            v.begin(),
            f"Perhaps I add the resistances, {r} + {s} = {r + s} ohm? Wait, that is the rule for resistors in series. "
            f"In parallel the current "
            "has two ways to go, so the resistance is smaller than either one.",
            f"The parallel resistance is {r} × {s} = {r * s} divided by {r + s}: {r * s} ÷ {r + s} = {both} ohm. By "
            f"Ohm's law the current is "
            f"{volts} ÷ {both} = {current} A.",
            f"{v.second()}each branch has the full {volts} volts, so the currents are {volts} ÷ {r} = {volts // r} and "
            f"{volts} ÷ {s} = "
            f"{volts // s}, and {volts // r} + {volts // s} = {current}. {v.agree()}",
            f"{v.therefore()}{current} amperes flow.",
        ),
        solution=boxed(
            f"The parallel resistance is {both} ohm, so the current is {volts} ÷ {both} = {current} A.", current
        ),
        answer=str(current),
        domain="physics",
        family="resistors",
    )


def density(v: Voice) -> Trace:
    metal, rho = v.pick(("aluminium", 2.7), ("iron", 7.8), ("copper", 8.9), ("lead", 11.3), ("tin", 7.3), ("zinc", 7.1))
    a, b, c = v.number(2, 9), v.number(2, 9), v.number(1, 5) * 10
    volume = a * b * c
    tenths = round(rho * 10) * volume
    mass = tenths // 10
    return Trace(
        problem=f"A block of {metal} measures {a} cm by {b} cm by {c} cm. The density of {metal} is {rho} g per cubic "
        f"centimetre. What is its "
        "mass in grams?",
        reasoning=paragraphs(
            v.begin(),
            f"The volume is {a} × {b} × {c}. {a} × {b} = {a * b}, and {a * b} × {c} = {volume} cubic centimetres.",
            f"Maybe mass is volume divided by density? {v.hmm()}the units decide: grams per cubic centimetre times "
            f"cubic centimetres gives "
            "grams. So I multiply.",
            f"{volume} × {rho} = {mass}. {v.check()} {volume} × {int(rho)} = {volume * int(rho)}, and {volume} × "
            f"{round(rho - int(rho), 1)} = "
            f"{mass - volume * int(rho)}, together {volume * int(rho)} + {mass - volume * int(rho)} = {mass}.",
            f"But is the size plausible? The same volume of water would have {volume} g, and {metal} is {rho} times as "
            f"dense, so yes.",
            f"{v.therefore()}the mass is {mass} g.",
        ),
        solution=boxed(f"{volume} cubic centimetres at {rho} g each: {mass} g.", mass),
        answer=str(mass),
        domain="physics",
        family="density",
    )


FAMILIES = (acceleration, resistors, density)
