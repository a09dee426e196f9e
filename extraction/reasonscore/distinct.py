"""Distinct features: of features that nearly coincide, the best stands for all.

Several of the best features may be one and the same detector. So the best ones are put into clusters by complete
linkage: any two features of a cluster have decoder directions with a cosine of `SIMILAR` or more.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from reasonscore.score import rank_features

SIMILAR = 0.9
N_BEST = 1000
"""Features that are compared, the best by ReasonScore."""


def first_of_cluster(similarity: Tensor) -> list[int]:
    """For each of n features, the position of the first one of its cluster, which is its own if it is the first.

    Args:
        similarity: [n, n], symmetric; cosines or correlations.
    """
    if len(similarity) < 2:
        return list(range(len(similarity)))
    distance = (1 - similarity.double()).clamp(min=0).numpy()
    labels = fcluster(linkage(squareform(distance, checks=False), "complete"), 1 - SIMILAR, "distance").tolist()
    return [labels.index(label) for label in labels]


def cosines(directions: Tensor) -> Tensor:
    """Between any two rows of [n, d_in], float32 on the CPU."""
    unit = torch.nn.functional.normalize(directions.float().cpu(), dim=1)
    return unit @ unit.T


def decoder_clusters(scores: Tensor, decoder: Tensor) -> Tensor:
    """Each feature's cluster, by the index of the best feature in it, as float32 [d_sae]; NaN beyond the `N_BEST` best.

    Args:
        scores: ReasonScore, [d_sae].
        decoder: the SAE's decoder rows, [d_sae, d_in].
    """
    best = rank_features(scores.float())[:N_BEST]
    first = first_of_cluster(cosines(decoder[best.to(decoder.device)]))
    clusters = torch.full(scores.shape, float("nan"))
    clusters[best] = best[first].float()
    return clusters


def distinct_features(statistics: Mapping[str, Tensor], topk: int) -> list[int]:
    """The best features, one of each cluster, best first; if there are fewer than asked for, a line says so.

    Args:
        statistics: `SavedScores.statistics`. Without `cluster` among them every feature counts as distinct.
        topk: how many.
    """
    ranked = rank_features(statistics["score"]).tolist()
    if "cluster" not in statistics:
        return ranked[:topk]
    cluster = statistics["cluster"].tolist()
    distinct = [feature for feature in ranked if cluster[feature] == feature]
    if len(distinct) < topk:
        print(
            f"note: the {min(N_BEST, len(ranked)):,} best features are {len(distinct):,} distinct ones, --topk asks "
            f"for {topk:,}; --keep_similar takes features that nearly coincide too"
        )
    return distinct[:topk]
