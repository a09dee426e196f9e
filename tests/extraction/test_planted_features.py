"""Features made by hand on a small model: they are what they are said to be, and the test finds it out."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def benchmark_script(load_script_for_module: Callable[[str], ModuleType]) -> ModuleType:
    return load_script_for_module("benchmarks/planted_features.py")


@pytest.fixture(scope="module")
def planted(benchmark_script: ModuleType) -> ModuleType:
    """The modules of benchmarks/planted, as the script imports them."""
    import planted.features
    import planted.model

    return planted


@pytest.mark.parametrize("seed", [1000, 1001])
def test_planted_features_fire_exactly_on_what_they_are_named_for(planted: ModuleType, seed: int) -> None:
    repetition = planted.features.draw_repetition(seed, n_rows=30)
    vocabulary, first = repetition.vocabulary, {}
    for text in (repetition.reasoning, repetition.ordinary):
        fires = (repetition.encode(text) > 0).tolist()
        for row, found in zip(text.tolist(), fires, strict=True):
            assert not any(found[0])
            for t in range(1, len(row)):
                truth = [
                    row[t] == vocabulary.lone,
                    row[t] in vocabulary.three,
                    row[t] == vocabulary.right and row[t - 1] == vocabulary.left,
                    t > 3 and row[t - 3] == vocabulary.stop,
                    row[0] == planted.texts.THINK,
                ]
                assert found[t][: len(truth)] == truth
                first |= {feature: True for feature, value in enumerate(truth) if value}
    assert len(first) == len(planted.features.FEATURES)


def test_activations_equal_a_loop_over_tokens(planted: ModuleType) -> None:
    repetition = planted.features.draw_repetition(1002, n_rows=30)
    weights, bias = (getattr(repetition.sae, name).double().numpy() for name in ("W_enc", "b_enc"))
    for text in (repetition.reasoning[:5], repetition.ordinary[:5]):
        for row, found in zip(text.tolist(), repetition.encode(text).numpy(), strict=True):
            residual = planted.model.residual_by_definition(row, repetition.table)
            expected = np.maximum(residual @ weights + bias, 0)
            assert np.abs(found - expected)[1:].max() < 1e-5


def test_controls_fire_as_often_in_either_text_and_as_strongly_as_what_they_are_matched_to(planted: ModuleType) -> None:
    repetition = planted.features.draw_repetition(1003)
    n = len(planted.features.FEATURES)
    for text in (repetition.reasoning, repetition.ordinary):
        rates = (repetition.encode(text) > 0).double().mean(dim=(0, 1))
        assert rates[n:].tolist() == pytest.approx(rates[:n].tolist(), abs=2e-3)
    both = repetition.encode(torch.cat([repetition.reasoning, repetition.ordinary])).double().sum(dim=(0, 1))
    assert both[n:].tolist() == pytest.approx(both[:n].tolist(), rel=1e-4)


def test_a_seed_decides_texts_and_activations(planted: ModuleType) -> None:
    first, again, other = (planted.features.draw_repetition(seed, n_rows=20) for seed in (1004, 1004, 1005))
    assert torch.equal(first.reasoning, again.reasoning) and not torch.equal(first.reasoning, other.reasoning)
    assert torch.equal(first.encode(first.ordinary), again.encode(again.ordinary))


def test_verdicts_of_a_repetition_are_the_planted_truth(benchmark_script: ModuleType, planted: ModuleType) -> None:
    findings = benchmark_script.examine(1006)
    features = planted.features.FEATURES
    assert [finding.verdict for finding in findings[: len(features)]] == [feature.verdict for feature in features]
    assert findings[2].by in ("bigram_before", "inject_bigram")
    assert "token" not in {finding.verdict for finding in findings[len(features) :]}
