"""Word problems: shopping, percentages, speed, rectangles, ages, dates and work shared out."""

from reasoning_data.trace import PEOPLE, Trace, Voice, boxed, paragraphs

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def shopping(v: Voice) -> Trace:
    name = v.pick(*PEOPLE)
    things = v.some(["notebooks", "pens", "mugs", "candles", "tickets", "plants", "lamps", "scarves"], 2)
    (m, p), (n, q) = (v.number(3, 9), v.number(4, 19)), (v.number(2, 6), v.number(5, 29))
    cost = m * p + n * q
    paid = (cost // 50 + v.number(1, 2)) * 50
    change = paid - cost
    wrong = m * p + v.pick(-3, 2, 5)
    slip = v.chance(0.5)
    first = f"The {things[0]} cost {m} × {p} = {wrong if slip else m * p}."
    check = f"{v.check()} {m} × {p}: I can count {', '.join(str(p * i) for i in range(1, m + 1))}. " + (
        f"So it is {m} × {p} = {m * p}, not {wrong}." if slip else "Yes, that is right."
    )
    return Trace(
        problem=f"{name} buys {m} {things[0]} at {p} euros each and {n} {things[1]} at {q} euros each, and pays with "
        f"{paid} euros. " + v.pick("How much change is there?", f"How many euros does {name} get back?"),
        reasoning=paragraphs(
            v.begin(),
            f"{first} {check}",
            f"The {things[1]} cost {n} × {q} = {n * q}. Together {m * p} + {n * q} = {cost}.",
            f"But the question asks for the change and not for the cost, so {paid} - {cost} = {change}.",
            f"{v.second()}pay for one thing after the other: {paid} - {m * p} = {paid - m * p}, then {paid - m * p} - "
            f"{n * q} = "
            f"{change}. {v.agree()}",
            f"{v.therefore()}{name} gets {change} euros back.",
        ),
        solution=boxed(
            f"The cost is {m * p} + {n * q} = {cost} euros, so the change is {paid} - {cost} = {change} euros.", change
        ),
        answer=str(change),
        domain="math",
        family="shopping",
    )


def up_and_down(v: Voice) -> Trace:
    percent = v.pick(10, 20, 25, 30, 40, 50)
    price = v.number(1, 12) * 400
    rise = price * percent // 100
    high = price + rise
    fall = high * percent // 100
    end = high - fall
    thing = v.pick("bicycle", "laptop", "sofa", "camera", "coat", "piano lesson course")
    return Trace(
        problem=f"The price of a {thing} is {price}. It is raised by {percent} percent and later lowered by {percent} "
        f"percent. " + v.pick("What is the price in the end?", "What does it cost then?"),
        reasoning=paragraphs(
            v.begin(),
            f"Maybe the two changes cancel, and the price is {price} again. {v.hmm()}let me compute it and see.",
            f"{percent} percent of {price} is {rise}, so after the rise it costs {price} + {rise} = {high}.",
            f"{v.contrast()}the second {percent} percent are taken from {high} and not from {price}. They amount to "
            f"{fall}, and "
            f"{high} - {fall} = {end}.",
            f"{v.second()}raising multiplies by {100 + percent}/100 and lowering by {100 - percent}/100. Indeed "
            f"{100 + percent} × "
            f"{100 - percent} = {(100 + percent) * (100 - percent)}, and {price} ÷ 10000 × "
            f"{(100 + percent) * (100 - percent)} = {end}. "
            f"{v.agree()}",
            f"{v.therefore()}the price ends at {end}, which is {price} - {end} = {price - end} below where it began.",
        ),
        solution=boxed(f"After the rise {high}, after the fall {high} - {fall} = {end}.", end),
        answer=str(end),
        domain="math",
        family="up_and_down",
    )


def mean_speed(v: Voice) -> Trace:
    slow, fast = v.pick(
        (20, 30), (30, 60), (40, 60), (60, 90), (12, 24), (10, 15), (30, 45), (40, 120), (24, 48), (15, 60)
    )
    factor = v.number(1, 4)
    distance = fast * slow // _gcd(fast, slow) * factor
    there, back = distance // slow, distance // fast
    total, hours = 2 * distance, there + back
    while total % hours:  # keeps every number in the text whole
        distance *= 3
        there, back, total = there * 3, back * 3, total * 3
        hours = there + back
        if distance > 100_000:
            return mean_speed(v)
    mean = total // hours
    half = (slow + fast) / 2
    name = v.pick(*PEOPLE)
    return Trace(
        problem=f"{name} rides {distance} km to a lake at {slow} km per hour and comes back the same way at {fast} km "
        f"per hour. What "
        "is the mean speed over the whole trip, in km per hour?",
        reasoning=paragraphs(
            v.begin(),
            f"Perhaps it is just halfway between the two speeds, {half:g}. However, {name} spends more hours on the "
            f"slow way, so the "
            f"slow speed should count for more. {v.hmm()}then the answer must be below {half:g}.",
            f"Let me count hours. There: {distance} ÷ {slow} = {there}. Back: {distance} ÷ {fast} = {back}. Together "
            f"{there} + {back} = "
            f"{hours}.",
            f"The whole way is 2 × {distance} = {total} km, so the mean speed is {total} ÷ {hours} = {mean}.",
            f"{v.check()} In {hours} hours at {mean} km per hour one gets {hours} × {mean} = {hours * mean} km, as it "
            f"should be.",
            f"{v.second()}the mean speed of equal distances is 2 × {slow} × {fast} over {slow} + {fast} = "
            f"{slow + fast}, and "
            f"{2 * slow * fast} ÷ {slow + fast} = {mean}. {v.agree()}",
            f"{v.therefore()}the mean speed is {mean} km per hour.",
        ),
        solution=boxed(f"{total} km in {hours} hours make {mean} km per hour.", mean),
        answer=str(mean),
        domain="physics",
        family="mean_speed",
    )


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


def rectangle(v: Voice) -> Trace:
    short = v.number(3, 15)
    long = short + v.number(2, 9)
    half, area = short + long, short * long
    tries = v.some([s for s in range(max(1, short - 4), half // 2 + 1) if s != short], min(2, half // 2 - 1))
    guesses = " ".join(
        f"{v.pick('Perhaps', 'Maybe')} the sides are {s} and {half - s}? Then {s} × {half - s} = {s * (half - s)}, too "
        f"{'small' if s * (half - s) < area else 'large'}."
        for s in tries
    )
    return Trace(
        problem=f"A rectangular {v.pick('garden', 'field', 'floor', 'sheet of metal')} has perimeter {2 * half} m and "
        f"area {area} square "
        "metres. How many metres long is its longer side?",
        reasoning=paragraphs(
            v.begin(),
            f"Half the perimeter is {2 * half} ÷ 2 = {half}, so the two sides add to {half}, and their product is "
            f"{area}.",
            guesses + " The closer the sides are to each other, the larger the product.",
            f"{v.hmm()}try {short} and {long}: {short} + {long} = {half} and {short} × {long} = {area}. Both hold.",
            f"{v.second()}the square of the difference is {half} × {half} - 4 × {area} = {half * half - 4 * area}, so "
            f"the difference is "
            f"{long - short}, and the longer side is half of {half} + {long - short} = {2 * long}, which is {long}. "
            f"{v.agree()}",
            f"But it asks for the longer side, not the shorter one. {v.therefore()}the answer is {long}.",
        ),
        solution=boxed(f"The sides add to {half} and multiply to {area}: they are {short} m and {long} m.", long),
        answer=str(long),
        domain="math",
        family="rectangle",
    )


def ages(v: Voice) -> Trace:
    old, young = v.some(PEOPLE, 2)
    times, age, later = v.number(2, 5), v.number(4, 15), v.number(3, 12)
    total = (times + 1) * age + 2 * later
    wrong_total = total - later
    mistake = (
        f"In {later} years they are together {total}, so maybe today they are together {total} - {later} = "
        f"{wrong_total}.\n\nWait, both "
        f"of them grow older, so I must take {later} away twice: 2 × {later} = {2 * later}, and {total} - {2 * later} "
        f"= {total - 2 * later}."
    )
    return Trace(
        problem=f"{old} is {times} times as old as {young}. In {later} years their ages will add up to {total}. How "
        f"old is " + v.pick(f"{young} now?", f"{young} today, in years?"),
        reasoning=paragraphs(
            v.begin(),
            mistake,
            f"If {young} counts as one part, {old} is {times} parts, together {times} + 1 = {times + 1} parts. So one "
            f"part is "
            f"{total - 2 * later} ÷ {times + 1} = {age}.",
            f"Let me test it: {young} is {age} and {old} is {times} × {age} = {times * age}. In {later} years they are "
            f"{age} + {later} = "
            f"{age + later} and {times * age} + {later} = {times * age + later}, together {age + later} + "
            f"{times * age + later} = {total}. "
            "That fits.",
            f"However, is it the only solution? If {young} were a year older, the total would be {times + 1} more, so "
            f"yes."
            if v.chance(0.6)
            else "",
            f"{v.therefore()}{young} is {age}.",
        ),
        solution=boxed(f"Today the ages add to {total - 2 * later}, which is {times + 1} parts of {age}.", age),
        answer=str(age),
        domain="math",
        family="ages",
    )


def weekday(v: Voice) -> Trace:
    start, days = v.number(0, 6), v.number(30, 400)
    weeks, rest = divmod(days, 7)
    end = WEEKDAYS[(start + rest) % 7]
    short = WEEKDAYS[(start + rest - 1) % 7]
    walk = [WEEKDAYS[(start + i) % 7] for i in range(rest + 1)]
    back = 7 - rest
    if rest:
        count = f"stepping forward from {walk[0]} {rest} times I pass {', '.join(walk[1:])}."
        slip = (
            f"If I counted {walk[0]} itself as the first of the {rest} days, I would land on {short}. But day 1 is the "
            f"day after, so "
            f"that would be one too few."
        )
    else:
        count, slip = f"nothing is left over, so it is {end} again.", ""
    return Trace(
        problem=f"Today is {WEEKDAYS[start]}. "
        + v.pick(
            f"Which day of the week is it in {days} days?",
            f"A parcel arrives {days} days from now. On which day of the week?",
        ),
        reasoning=paragraphs(
            v.begin(),
            f"Weeks do not matter, only what is left over. {weeks} × 7 = {weeks * 7}, and {days} - {weeks * 7} = "
            f"{rest}.",
            f"{v.hmm()}{count}",
            slip,
            f"{v.second()}{weeks + 1} weeks are {weeks + 1} × 7 = {(weeks + 1) * 7} days, which is {(weeks + 1) * 7} - "
            f"{days} = {back} too "
            f"many. Going back {back} from {WEEKDAYS[start]} gives {end}. {v.agree() if v.chance(0.4) else 'It fits.'}",
            f"{v.therefore()}it is a {end}.",
        ),
        solution=f"{days} = {weeks} × 7 + {rest}, so the weekday moves on by {rest}: **{end}**.",
        answer=end,
        domain="puzzle",
        family="weekday",
    )


def shared_work(v: Voice) -> Trace:
    a, b = v.pick(
        (3, 6),
        (4, 12),
        (6, 12),
        (10, 15),
        (6, 3),
        (12, 24),
        (20, 30),
        (20, 5),
        (18, 9),
        (30, 15),
        (21, 28),
        (40, 60),
        (24, 8),
    )
    both = a * b // (a + b)
    common = a * b // _gcd(a, b)
    one, two = v.some(PEOPLE, 2)
    task = v.pick("paint a fence", "fill a pool", "sort the archive", "weed a field", "copy a manuscript")
    return Trace(
        problem=f"{one} needs {a} hours to {task}, {two} needs {b} hours. How many hours do they need together?",
        reasoning=paragraphs(
            v.begin(),
            f"Maybe the mean of {a} and {b}? Wait, that cannot be: {one if a < b else two} alone needs only "
            f"{min(a, b)} hours, and help "
            "makes it faster and not slower.",
            f"{v.try_out()} cut the work into {common} equal pieces, because both {a} and {b} divide {common}. Per "
            f"hour {one} does "
            f"{common} ÷ {a} = {common // a} pieces and {two} does {common} ÷ {b} = {common // b}. Together that is "
            f"{common // a} + "
            f"{common // b} = {common // a + common // b} pieces per hour.",
            f"All the pieces take {common} ÷ {common // a + common // b} = {both} hours.",
            f"{v.second()}in {both} hours {one} does {both} × {common // a} = {both * (common // a)} pieces and {two} "
            f"{both} × "
            f"{common // b} = {both * (common // b)}, and {both * (common // a)} + {both * (common // b)} = {common}. "
            f"It fits.",
            f"{v.therefore()}they need {both} hours.",
        ),
        solution=boxed(
            f"Together they do {common // a + common // b} of {common} pieces per hour, so {both} hours.", both
        ),
        answer=str(both),
        domain="math",
        family="shared_work",
    )


FAMILIES = (shopping, up_and_down, mean_speed, rectangle, ages, weekday, shared_work)
