"""ReasonScore against loops over positions, written from the definition."""

import itertools
import random

import pytest
import torch
from brute_force import parts_of_positions, reason_scores, sets_of_positions
from hypothesis import given, settings
from hypothesis import strategies as st
from reasonscore import score as core
from reasonscore.one_pass import float32_encoder_share
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from transformer_lens_r1.shared.ranks import Ranks

GROUPS = {"ab": [(1, 2), (2,)], "aba": [(1, 2, 1)], "c": [(3,)], "never": [(9, 9)]}


def test_matches_are_counted_by_spelling_start() -> None:
    tokens = torch.tensor([[1, 2, 1, 2, 1], [3, 3, 0, 1, 2]])
    matches = core.find_membership(tokens, GROUPS, left=1, right=2, ignored_ids=[3]).matches
    assert matches.tolist() == [3 + 3, 2, 2, 0]


def test_spellings_of_one_word_form_one_group() -> None:
    ids = {"wait": [5], " wait": [6], "Wait": [5], " Let me": [7, 8], "let me": [9, 8]}
    groups = core.group_spellings(ids, ids.__getitem__)
    assert groups == {"wait": [(5,), (6,)], "let me": [(7, 8), (9, 8)]}


def sums_of(
    activations: torch.Tensor,
    rows: list[list[int]],
    groups: dict,
    *,
    window: tuple[int, int],
    ignored: list[int],
    batches: list[int],
    cut: int,
    white_space: list[int] = (),
    n_blocks: int = 64,
) -> object:
    """The sums of the batches that end at the given rows, with the features in two blocks."""
    n_rows, n_features = len(rows), activations.shape[-1]
    sums = core.ActivationSums.zeros(len(groups), n_features, n_blocks=min(n_blocks, n_rows))
    start = 0
    for stop in batches:
        membership = core.find_membership(
            torch.tensor(rows[start:stop]),
            groups,
            left=window[0],
            right=window[1],
            ignored_ids=ignored,
            white_space_ids=white_space,
        )
        blocks = core.blocks_of_rows(start, stop - start, n_rows, n_blocks)
        sums.count(membership, blocks)
        for features in (slice(0, cut), slice(cut, n_features)):
            if features.stop > features.start:
                sums.add(activations[start:stop, :, features].clone(), membership, blocks, features)
        start = stop
    return sums


@st.composite
def cases(draw: st.DrawFn) -> dict:
    """A text of few distinct ids, so that words overlap, words of one to three tokens, some of which never occur."""
    n_rows, length = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    ids = st.integers(0, 4)
    sequences = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
    groups = draw(st.lists(sequences, min_size=1, max_size=4))
    ends = draw(st.sets(st.integers(1, n_rows)))
    return {
        "rows": draw(st.lists(st.lists(ids, min_size=length, max_size=length), min_size=n_rows, max_size=n_rows)),
        "groups": {f"word {index}": found for index, found in enumerate(groups)},
        "window": draw(st.tuples(st.integers(0, 14), st.integers(0, 14))),
        "ignored": draw(st.one_of(st.lists(ids, unique=True, max_size=2), st.just([0, 1, 2, 3, 4]))),
        "white_space": draw(st.lists(ids, unique=True, max_size=2)),
        "batches": sorted(ends | {n_rows}),
        "cut": draw(st.integers(0, 5)),
        "n_blocks": draw(st.sampled_from([1, 2, 3, 64])),
        "alpha": draw(st.sampled_from([0.0, 0.7, 1.0, 2.5])),
        "seed": draw(st.integers(0, 2**31)),
    }


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(case=cases())
def test_scores_equal_a_loop_over_positions(case: dict) -> None:
    alpha, seed = case.pop("alpha"), case.pop("seed")
    shape = (len(case["rows"]), len(case["rows"][0]), 5)
    activations = torch.relu(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    activations[:, :, 3] = 0  # a feature that never fires
    sets = sets_of_positions(case["rows"], case["groups"], *case["window"], case["ignored"])
    sums = sums_of(activations, **case)
    scores = core.reason_scores(sums.by_set, sums.n_positions, alpha=alpha).score
    assert scores.tolist() == pytest.approx(reason_scores(activations, sets, alpha), abs=1e-7)
    assert sums.n_positions.tolist() == [len(positions) for positions in sets]
    counted = sets[-2] | sets[-1]
    parts = parts_of_positions(case["rows"], case["groups"], *case["window"], case["ignored"], case["white_space"])
    assert sorted(itertools.chain(*parts.values())) == sorted(sets[-2])  # each position of P is in one part
    assert sums.shares.keys() == parts.keys()
    for name, positions in parts.items():
        of_part, of_all = (sum(activations[b, p] for b, p in places) for places in (positions, sets[-2]))
        expected = (torch.zeros(5) + of_part) / (torch.zeros(5) + of_all)
        assert sums.shares[name].tolist() == pytest.approx(expected.tolist(), abs=1e-6, nan_ok=True)
    for feature in range(5):
        values = [activations[b, p, feature].item() for b, p in counted]
        assert sums.maximum[feature].item() == max(values, default=0)
        assert sums.n_active[feature].item() == sum(value > 0 for value in values)


def test_each_block_holds_the_sums_of_its_own_rows() -> None:
    rng = random.Random(5)
    rows = [[rng.randrange(5) for _ in range(9)] for _ in range(11)]
    activations = torch.relu(torch.randn(11, 9, 5, generator=torch.Generator().manual_seed(2)))
    options = {"groups": GROUPS, "window": (1, 2), "ignored": [0], "cut": 2}
    sums = sums_of(activations, rows, batches=[1, 6, 11], n_blocks=4, **options)
    sizes = []
    for block in range(4):
        own = [row for row in range(11) if row * 4 // 11 == block]
        part = sums_of(activations[own], [rows[row] for row in own], batches=[len(own)], n_blocks=1, **options)
        torch.testing.assert_close(sums.by_block[block], part.by_set, rtol=1e-6, atol=1e-6)
        assert sums.positions_by_block[block].tolist() == part.n_positions.tolist()
        sizes.append(len(own))
    assert sum(sizes) == 11 and max(sizes) - min(sizes) <= 1


def test_a_part_of_the_features_can_be_added_up_over_ranks() -> None:
    """gloo reduces the memory of a tensor as it lies: a view of some columns would be added up wrongly."""
    sums = core.ActivationSums.zeros(3, 20, n_blocks=4)
    part = sums.of_features(slice(5, 9))
    assert part.by_block.shape == (4, 5, 4) and part.by_block.is_contiguous()
    with pytest.raises(ValueError, match="contiguous"):
        Ranks(rank=0, size=2).add(sums.by_block[..., 5:9])


def test_published_windows_leave_every_reasoning_position_in_one_part() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, (40, 12), generator=generator)
    windows = {"left": 3, "right": 2, "white_space_ids": [4], "published_windows": True}
    sets = core.find_membership(tokens, GROUPS, **windows).sets
    reasoning, parts = sets[:, len(GROUPS)], sets[:, -4:]
    assert parts.any(dim=(0, 2)).all() and torch.equal(parts.sum(dim=1), reasoning.long())


def test_a_float32_encoder_takes_nearly_half_of_the_papers_pass_on_an_h100() -> None:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=20, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256,
    )  # fmt: skip
    with torch.device("meta"), torch.no_grad():
        llm = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
        with FlopCounterMode(display=False) as counter:  # without the mask that saves half of attention, 2 %
            llm.base_model(torch.zeros(1, 1024, dtype=torch.int64))
    forward = counter.get_total_flops() / 1024 / 989.4e12  # seconds per token
    encode = 2 * 4096 * 65536 / 66.9e12
    assert encode / forward == pytest.approx(0.88, abs=0.01)
    assert float32_encoder_share(llm, 65536, 1024) == pytest.approx(encode / (forward + encode), rel=0.02)
