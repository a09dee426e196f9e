"""From the numbers to a verdict. These rules and thresholds stand here and nowhere else; they are written beside it.

    token     some strategy recovers at least ENOUGH of what reasoning text does to the feature (Holm's p below ALPHA
              against control tokens), and the n-gram that was put in is no more active in reasoning text than elsewhere
    mixed     tokens recover as much, but the same n-gram is more active in reasoning text
    context   no strategy recovers ENOUGH, with confidence, and the tokens explain less than EXPLAINED of the variance
    unclear   neither: too few texts, no tokens to put in, or a feature that is no more active on reasoning texts

"More active in reasoning text": the lower end of the AUROC's interval is above DIFFERENT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from falsification.injection import LENGTH
from falsification.statistics import Estimate

ENOUGH = 0.5
"""Recovered share from which on tokens are enough; its interval must then lie above half of it."""
ALPHA = 0.05
"""Of Holm's adjusted p-values."""
EXPLAINED = 0.5
"""R² from (previous, current) token, from which on the tokens decide."""
DIFFERENT = 0.6
"""AUROC above which the same n-gram is more active in reasoning text."""
THRESHOLDS = {"enough": ENOUGH, "alpha": ALPHA, "explained": EXPLAINED, "different": DIFFERENT}


def decide(
    recovered: Mapping[str, Estimate], p_adjusted: Mapping[str, float], r2: float, auroc: Mapping[int, Estimate]
) -> tuple[str, str]:
    """The verdict, and the strategy that it is by.

    Args:
        recovered: ρ of each strategy that could be tried, injected positions included.
        p_adjusted: Holm's p of each.
        r2: R² from (previous, current) token.
        auroc: of the feature's n-grams in the two texts, by their length: 1 and 2.
    """
    defined = {name: rho for name, rho in recovered.items() if not math.isnan(rho.value)}
    enough = [
        name
        for name, rho in defined.items()
        if rho.value >= ENOUGH and rho.low >= ENOUGH / 2 and p_adjusted[name] < ALPHA
    ]
    if enough:
        # Of several, the one that puts in the shortest n-grams: a token that is enough says more than a pair.
        by = min(enough, key=lambda name: (LENGTH[name], -defined[name].value))
        return ("mixed" if auroc[min(LENGTH[by], 2)].low > DIFFERENT else "token"), by
    if defined and all(rho.high < ENOUGH for rho in defined.values()) and not r2 >= EXPLAINED:
        return "context", max(defined, key=lambda name: defined[name].value)
    return "unclear", ""
