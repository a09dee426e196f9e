"""What is said about the vocabulary before the pass, and which ids are white space."""

from pathlib import Path

import torch
from reasonscore.vocabulary import vocabulary_report, white_space_ids
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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


def test_white_space_is_what_decodes_to_nothing_else(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    found = white_space_ids(tokenizer)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    for text in ("\n\n", " ", " \n", "\t"):
        (token,) = ids(text)
        assert token in found
    assert not set(ids(" a") + ids("Wait.") + tokenizer.all_special_ids) & set(found)
    assert found == [token for token in range(len(tokenizer)) if tokenizer.decode([token]).isspace()]


def test_white_space_is_found_where_a_text_loses_its_first_space() -> None:
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "▁": 2, "▁▁": 3, "▁a": 4, "a": 5}
    model = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(steps)
    assert white_space_ids(PreTrainedTokenizerFast(tokenizer_object=model)) == [1, 2, 3]
