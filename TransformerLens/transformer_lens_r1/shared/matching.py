"""Features that are no reasoning features, to compare reasoning features with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def match_features(
    score: Tensor, frequency: Tensor, maximum: Tensor, *, features: Sequence[int], n_matched: int
) -> dict[int, list[int]]:
    """For each feature the nearest others that fire and are no reasoning features.

    These have at most the median ReasonScore of the features that fire. The distance of two features is
    |Δ ln firing frequency| + |Δ ln maximal activation|. No control is used twice: features choose in turn, one at a
    time, so that the first does not take the best for all of its own.

    Args:
        score: ReasonScore, [d_sae].
        frequency: share of positions at which each feature fires, [d_sae].
        maximum: maximal activations in folded units, [d_sae].
        features: that need controls.
        n_matched: how many each.

    Raises:
        UserError: there are too few, or one of the features never fires.
    """
    import torch

    fires = (frequency > 0) & (maximum > 0)
    if dead := [feature for feature in features if not fires[feature]]:
        raise UserError(
            f"feature {dead[0]} never fires in the scored text, so that no other can be matched: leave it out"
        )
    free = fires & (score <= score[fires].median())
    free[list(features)] = False
    if free.sum() < n_matched * len(features):
        raise UserError(
            f"{n_matched} matched controls for each of {len(features)} features need {n_matched * len(features)} "
            f"features that fire and are no reasoning features; the scores have {int(free.sum())}: ask for fewer"
        )
    place = torch.stack([frequency.double().log(), maximum.double().log()])  # [2, d_sae]
    controls: dict[int, list[int]] = {feature: [] for feature in features}
    for _ in range(n_matched):
        for feature, chosen in controls.items():
            distance = (place - place[:, [feature]]).abs().sum(dim=0)
            nearest = int(distance.where(free, torch.inf).argmin())
            free[nearest] = False
            chosen.append(nearest)
    return controls
