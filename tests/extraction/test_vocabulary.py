"""What is said about the vocabulary before the pass."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

IDS = {"wait": [5], " Wait": [6], "let": [7], "let me": [7, 8], "perhaps": [9], "hm": []}


@pytest.fixture
def vocabulary(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("extraction/vocabulary.py")


def test_every_spelling_is_shown_with_its_tokens_and_surprises_are_warned_of(vocabulary: ModuleType) -> None:
    tokens = torch.tensor([[5, 0, 7, 8], [0, 6, 0, 0]])
    lines = vocabulary.vocabulary_report(list(IDS), IDS.__getitem__, lambda token: f"t{token}", tokens)
    assert "  wait: 'wait' [5] t5, ' Wait' [6] t6" in lines
    assert "  let me: 'let me' [7 8] t7|t8" in lines
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == 3
    assert "'let' [7] is part of 'let me' [7 8]" in warnings[0]
    assert "'hm' gives no tokens" in warnings[1]
    assert warnings[2] == "warning: never in the text: 'perhaps' [9]"


def test_a_sequence_is_found_only_where_it_is_contiguous(vocabulary: ModuleType) -> None:
    assert vocabulary.contains((1, 2, 3), (2, 3)) and vocabulary.contains((4,), (4,))
    assert not vocabulary.contains((1, 2, 3), (1, 3)) and not vocabulary.contains((2,), (2, 2))
