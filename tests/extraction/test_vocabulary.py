"""What is said about the vocabulary before the pass."""

import torch
from reasonscore.vocabulary import vocabulary_report

IDS = {"wait": [5], " Wait": [6], "let": [7], "let me": [7, 8], "me let": [8, 9, 7], "perhaps": [9], "hm": []}


def test_every_spelling_is_shown_with_its_tokens_and_surprises_are_warned_of() -> None:
    tokens = torch.tensor([[5, 0, 7, 8], [8, 9, 7, 6]])
    lines = vocabulary_report(list(IDS), IDS.__getitem__, lambda token: f"t{token}", tokens)
    assert "  wait: 'wait' [5] t5, ' Wait' [6] t6" in lines
    assert "  let me: 'let me' [7 8] t7|t8" in lines
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == 4  # 'let me' is no part of 'me let'
    assert "'let' [7] is part of 'let me' [7 8]" in warnings[0]
    assert "'let' [7] is part of 'me let' [8 9 7]" in warnings[1]
    assert "'perhaps' [9] is part of 'me let' [8 9 7]" in warnings[2]
    assert "'hm' gives no tokens" in warnings[3]
    (absent,) = vocabulary_report(["wait", "let"], IDS.__getitem__, str, tokens[1:, 1:2])[-1:]
    assert absent == "warning: never in the text: 'wait' [5], 'let' [7]"
