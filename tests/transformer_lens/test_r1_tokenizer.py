"""A vocabulary with the special tokens of R1: every kind of record survives it, and each tag is one token."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from transformer_lens_r1 import format_lmsys, format_openthoughts, load_model, load_tokenizer

TAGS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]
QUESTION = {"role": "user", "content": "Wie groß ist 17 × 6?\n\tBitte kurz. "}
ANSWER = {"role": "assistant", "content": " <b>102</b>, “denke ich” 🤔\n"}
RECORD = {
    "problem": "  What is $\\frac{1}{2}$ of ½?\r\n", "deepseek_reasoning": "Wait,\n\n so <i>…</i>.",
    "deepseek_solution": " \\boxed{\\frac14}\n", "test_cases": None, "starter_code": None,
}  # fmt: skip
CODE = {**RECORD, "domain": "code", "starter_code": "def f(x):\n    ", "test_cases": json.dumps({"fn_name": "f"})}

RECORDS = {
    **{domain: format_openthoughts({**RECORD, "domain": domain})
       for domain in ("math", "puzzle", "biology", "chemistry", "physics")},
    "code with function name and starter code": format_openthoughts(CODE),
    "code with stdin": format_openthoughts({**CODE, "test_cases": "{}", "starter_code": None}),
    "conversation that ends on the assistant": format_lmsys([QUESTION, ANSWER, QUESTION, ANSWER]),
    "conversation that ends on the user": format_lmsys([QUESTION, ANSWER, QUESTION]),
    "conversation with a system message": format_lmsys([{"role": "system", "content": "Be brief."}, QUESTION, ANSWER]),
    "conversation with empty messages": format_lmsys([{**QUESTION, "content": ""}, {**ANSWER, "content": ""}]),
}  # fmt: skip


@pytest.fixture(scope="module")
def r1_folder(tmp_path_factory: pytest.TempPathFactory, fixtures_dir: Path) -> Path:
    """A byte-level BPE like the distills', which puts bos in front by itself and has its eos for pad, with a model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(RECORDS.values(), trainer)
    tokenizer.add_special_tokens([*TAGS[:2], "<|finetune_right_pad_id|>"])
    tokenizer.add_tokens(TAGS[2:])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{TAGS[0]} $A", special_tokens=[(TAGS[0], tokenizer.token_to_id(TAGS[0]))]
    )
    folder = tmp_path_factory.mktemp("r1")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=TAGS[0], eos_token=TAGS[1], pad_token=TAGS[1],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, bos_token_id=tokenizer.token_to_id(TAGS[0]),
            eos_token_id=tokenizer.token_to_id(TAGS[1]),
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tokenizer(r1_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(r1_folder)


@pytest.mark.parametrize("kind", RECORDS)
def test_every_kind_of_record_comes_back_to_the_character(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    text = RECORDS[kind]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    for tag in TAGS:
        assert ids.count(tokenizer.convert_tokens_to_ids(tag)) == text.count(tag)
    assert any(tag in text for tag in TAGS)


def test_pad_is_a_token_of_the_vocabulary_that_no_record_holds(
    r1_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    size = load_model(r1_folder).cfg.d_vocab
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert tokenizer.pad_token_id < size == len(tokenizer)
    for text in RECORDS.values():
        assert tokenizer.pad_token_id not in tokenizer(text).input_ids


def test_a_vocabulary_without_the_tags_is_said_once_and_takes_them_as_text(
    smollm2: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"  # a name that nothing has been said of
    folder.symlink_to(smollm2)
    for _ in range(2):
        tokenizer = load_tokenizer(folder)
    load_model(folder, n_layers=1)
    said = "".join(capfd.readouterr())
    assert said.count("note:") == 1 and f"the vocabulary of {folder} has no <｜" in said
    assert len(tokenizer("</think>", add_special_tokens=False).input_ids) > 1
