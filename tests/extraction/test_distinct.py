"""Distinct features: clusters against complete linkage by hand, and what picks the best takes one of each."""

import math

import pytest
import torch
from reasonscore.distinct import (
    SIMILAR,
    cosines,
    decoder_clusters,
    distinct_features,
    first_of_cluster,
    similar_features,
)


def directions(*, seed: int, n_groups: int = 12, d_in: int = 8) -> torch.Tensor:
    """Groups of rows that lie more or less near each other, with other norms, in any order."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_groups, d_in, generator=generator)
    rows = centres.repeat(5, 1) + 0.35 * torch.randn(5 * n_groups, d_in, generator=generator)
    rows *= torch.rand(len(rows), 1, generator=generator) * 3 + 0.1
    return rows[torch.randperm(len(rows), generator=generator)]


def complete_linkage(rows: torch.Tensor) -> list[set[int]]:
    """Join the two clusters whose least similar members are the most similar, as long as these are similar."""
    cosine = torch.nn.functional.cosine_similarity(rows[:, None].double(), rows[None].double(), dim=-1).tolist()
    clusters = [{index} for index in range(len(rows))]

    def least(pair: tuple[int, int]) -> float:
        return min(cosine[a][b] for a in clusters[pair[0]] for b in clusters[pair[1]])

    while len(clusters) > 1:
        best = max(((i, j) for j in range(len(clusters)) for i in range(j)), key=least)
        if least(best) < SIMILAR:
            break
        clusters[best[0]] |= clusters.pop(best[1])
    return clusters


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_those_of_complete_linkage_by_hand(seed: int) -> None:
    rows = directions(seed=seed)
    scores = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    clusters = decoder_clusters(scores, rows).tolist()
    by_hand = complete_linkage(rows)
    assert 12 < len(by_hand) < 50  # some joined, some not
    for members in by_hand:
        best = max(members, key=lambda feature: scores[feature].item())
        assert {clusters[feature] for feature in members} == {best}


def test_a_chain_of_similar_features_is_not_one_finding() -> None:
    angles = torch.tensor([0.0, 19.0, 40.0, 59.0]).deg2rad()  # neighbours have a cosine of 0.93, others at most 0.77
    first = first_of_cluster(cosines(torch.stack([angles.cos(), angles.sin()], dim=1)))
    assert first == [0, 0, 2, 2]
    assert first_of_cluster(torch.ones(1, 1)) == [0]


def test_the_best_distinct_features_are_one_of_each_cluster_among_the_thousand_best(
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1500, generator=generator)
    decoder = torch.randn(1500, 64, generator=generator)
    ranked = scores.argsort(descending=True).tolist()
    for copy, original in ((1, 0), (2, 0), (4, 3), (1200, 3)):  # ranks
        decoder[ranked[copy]] = 2.5 * decoder[ranked[original]]
    statistics = {"score": scores, "cluster": decoder_clusters(scores, decoder)}
    assert distinct_features(statistics, 4) == [ranked[rank] for rank in (0, 3, 5, 6)]
    assert capsys.readouterr().out == ""
    assert sum(map(math.isnan, statistics["cluster"].tolist())) == 500
    assert similar_features(statistics, ranked[1]) == [ranked[0], ranked[2]]
    assert similar_features(statistics, ranked[3]) == [ranked[4]] and similar_features(statistics, ranked[1200]) == []

    all_there_are = distinct_features(statistics, 1100)
    assert all_there_are == [feature for rank, feature in enumerate(ranked[:1000]) if rank not in (1, 2, 4)]
    (note,) = capsys.readouterr().out.splitlines()
    assert "the 1,000 best features are 997 distinct ones, --topk asks for 1,100; --keep_similar" in note

    old = {"score": scores}
    assert distinct_features(old, 4) == ranked[:4] and similar_features(old, ranked[0]) == []
