"""ReasonScore against loops over positions, written from the definition."""

import math
import random
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

GROUPS = {"ab": [(1, 2), (2,)], "aba": [(1, 2, 1)], "c": [(3,)], "never": [(9, 9)]}


@pytest.fixture
def core(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("extraction/reason_score.py")


def positions_of_word(row: list[int], sequences: list[tuple[int, ...]], left: int, right: int) -> set[int]:
    found = set()
    for sequence in sequences:
        for start in range(len(row)):
            if tuple(row[start : start + len(sequence)]) == sequence:
                for token in range(start, start + len(sequence)):
                    found |= {p for p in range(len(row)) if token - left <= p <= token + right}
    return found


def brute_force_sets(rows: list[list[int]], groups: dict, left: int, right: int, ignored: list[int]) -> list[set]:
    words = [
        {
            (b, p)
            for b, row in enumerate(rows)
            for p in positions_of_word(row, sequences, left, right)
            if row[p] not in ignored
        }
        for sequences in groups.values()
    ]
    positive = set().union(*words)
    everything = {(b, p) for b, row in enumerate(rows) for p in range(len(row)) if row[p] not in ignored}
    return [*words, positive, everything - positive]


@pytest.mark.parametrize("window", [(0, 0), (1, 2), (2, 0), (0, 3), (4, 5), (30, 30)])
@pytest.mark.parametrize("ignored", [[], [0], [1, 3], [0, 1, 2, 3, 4]])
def test_membership_equals_a_loop_over_positions(core: ModuleType, window: tuple[int, int], ignored: list[int]) -> None:
    rng = random.Random(str((window, ignored)))
    for shape in [(4, 12), (1, 7), (3, 2), (2, 1)]:
        rows = [[rng.randrange(5) for _ in range(shape[1])] for _ in range(shape[0])]
        got = core.find_membership(
            torch.tensor(rows), GROUPS, left=window[0], right=window[1], ignored_ids=ignored
        ).sets
        expected = brute_force_sets(rows, GROUPS, *window, ignored)
        assert [{tuple(index) for index in got[:, s].nonzero().tolist()} for s in range(got.shape[1])] == expected


def test_windows_are_cut_at_the_row_and_never_cancel(core: ModuleType) -> None:
    tokens = torch.tensor([[3, 0, 0, 0, 3], [0, 0, 0, 0, 0]])
    sets = core.find_membership(tokens, {"c": [(3,)]}, left=2, right=1).sets
    assert sets[:, 0].int().tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert sets[:, 2].int().tolist() == [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]


def test_matches_are_counted_by_spelling_start(core: ModuleType) -> None:
    tokens = torch.tensor([[1, 2, 1, 2, 1], [3, 3, 0, 1, 2]])
    matches = core.find_membership(tokens, GROUPS, left=1, right=2, ignored_ids=[3]).matches
    assert matches.tolist() == [3 + 3, 2, 2, 0]


def test_spellings_of_one_word_form_one_group(core: ModuleType) -> None:
    ids = {"wait": [5], " wait": [6], "Wait": [5], " Let me": [7, 8], "let me": [9, 8]}
    groups = core.group_spellings(ids, ids.__getitem__)
    assert groups == {"wait": [(5,), (6,)], "let me": [(7, 8), (9, 8)]}


@pytest.mark.parametrize("groups", [GROUPS, {"c": [(3,)]}, {"c": [(3,)], "d": [(4,)]}], ids=len)
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_scores_equal_the_formulas_over_positions(core: ModuleType, groups: dict, alpha: float) -> None:
    rng = random.Random(3)
    rows = [[rng.randrange(6) for _ in range(20)] for _ in range(7)]
    activations = torch.relu(torch.randn(7, 20, 9, generator=torch.Generator().manual_seed(1)))
    activations[:, :, 4] = 0  # a feature that never fires
    sets = brute_force_sets(rows, groups, 1, 2, [0])

    def mean(positions: set, feature: int) -> float:
        return sum(activations[b, p, feature].item() for b, p in positions) / max(len(positions), 1)

    means = [[mean(positions, feature) for positions in sets] for feature in range(9)]
    total_pos, total_neg = sum(m[-2] for m in means), sum(m[-1] for m in means)
    expected = []
    for m in means:
        words = m[:-2]
        shares = [word / (sum(words) + 1e-12) for word in words]
        entropy = 1.0
        if len(words) > 1:
            entropy = -sum(s * math.log(s) for s in shares if s > 0) / math.log(len(words))
        expected.append(m[-2] / (total_pos + 1e-12) * entropy**alpha - m[-1] / (total_neg + 1e-12))

    sums = core.ActivationSums.zeros(len(groups), 9, n_blocks=3)
    for batch in (slice(0, 1), slice(1, 5), slice(5, 7)):
        membership = core.find_membership(torch.tensor(rows[batch]), groups, left=1, right=2, ignored_ids=[0])
        blocks = core.blocks_of_rows(batch.start, batch.stop - batch.start, 7, 3)
        sums.count(membership, blocks)
        for features in (slice(0, 4), slice(4, 9)):
            sums.add(activations[batch, :, features].clone(), membership, blocks, features)
    result = core.reason_scores(sums.by_set, sums.n_positions, alpha=alpha)

    assert result.score.tolist() == pytest.approx(expected, abs=1e-7)
    assert sums.n_positions.tolist() == [len(positions) for positions in sets]
    counted = [(b, p) for b in range(7) for p in range(20) if rows[b][p] != 0]
    for feature in range(9):
        values = [activations[b, p, feature].item() for b, p in counted]
        assert sums.maximum[feature].item() == max(values)
        assert sums.n_active[feature].item() == sum(value > 0 for value in values)


def test_one_word_has_entropy_one_and_a_word_that_never_occurs_lowers_it(core: ModuleType) -> None:
    one = core.reason_scores(torch.tensor([[4.0], [4.0], [1.0]]), torch.tensor([2, 2, 5]), alpha=0.7)
    assert one.entropy.item() == 1
    two = core.reason_scores(torch.tensor([[4.0], [0.0], [4.0], [1.0]]), torch.tensor([2, 0, 2, 5]), alpha=0.7)
    assert two.entropy.item() == pytest.approx(0, abs=1e-9) and two.score.isfinite().all()
