"""From the numbers to a verdict. These rules and thresholds stand here and nowhere else; they are written beside it.

The tokens decide if some strategy recovers at least ENOUGH of what reasoning text does to the feature, with Holm's p
below ALPHA against control tokens, or if (previous, current) token explain at least EXPLAINED of its variance. In both,
the interval must lie above half of the threshold. They do not decide if all intervals lie below the thresholds.

    mixed     the tokens decide, but the feature is more active on its tokens in reasoning text than in ordinary text:
              the AUROC's interval lies above DIFFERENT
    token     the tokens decide, and that is not shown
    context   the tokens do not decide
    unclear   neither: too few texts, nothing to put in, or a feature that reasoning texts do not activate more

The AUROC is of the feature's top tokens if a token decides, and of its top bigrams if longer n-grams or the pair do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from falsification.injection import LENGTH
from falsification.statistics import Estimate

ENOUGH = 0.5
"""Recovered share from which on tokens are enough."""
ALPHA = 0.05
"""Of Holm's adjusted p-values."""
EXPLAINED = 0.5
"""R² from which on tokens explain a feature."""
DIFFERENT = 0.6
"""AUROC above which a feature is more active on the same n-grams in reasoning text."""
THRESHOLDS = {"enough": ENOUGH, "alpha": ALPHA, "explained": EXPLAINED, "different": DIFFERENT}


EXPLAINS = {1: "R² of the token", 2: "R² of the pair"}


def compared_length(by: str) -> int:
    """The length of the n-grams that are compared between the two texts, 1 or 2, for what a verdict is by."""
    return 2 if by == EXPLAINS[2] else min(LENGTH.get(by, 1), 2)


def decide(
    recovered: Mapping[str, Estimate],
    p_adjusted: Mapping[str, float],
    r2: Mapping[int, Estimate],
    auroc: Mapping[int, Estimate],
) -> tuple[str, str]:
    """The verdict, and what it is by: a strategy, or the R² of the token or the pair.

    Args:
        recovered: ρ of each strategy that could be tried, injected positions included.
        p_adjusted: Holm's p of each.
        r2: from the current token (1) and from (previous, current) (2).
        auroc: of the feature's n-grams in the two texts, by their length: 1 and 2.
    """
    defined = {name: rho for name, rho in recovered.items() if not math.isnan(rho.value)}
    enough = [name for name, rho in defined.items() if _reaches(rho, ENOUGH) and p_adjusted[name] < ALPHA]
    by = ""
    if enough:
        # Of several, the one that puts in the shortest n-grams: a token that is enough says more than a pair.
        by = min(enough, key=lambda name: (LENGTH[name], -defined[name].value))
    elif explaining := [n for n, share in r2.items() if _reaches(share, EXPLAINED)]:
        by = EXPLAINS[min(explaining)]
    if by:
        return ("mixed" if auroc[compared_length(by)].low > DIFFERENT else "token"), by
    if defined and all(rho.high < ENOUGH for rho in defined.values()) and r2[2].high < EXPLAINED:
        return "context", max(defined, key=lambda name: defined[name].value)
    return "unclear", ""


def _reaches(estimate: Estimate, threshold: float) -> bool:
    return estimate.value >= threshold and estimate.low >= threshold / 2
