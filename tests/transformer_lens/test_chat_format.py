"""The R1 text is, to the character, what the data preparation of the paper prescribes (tests/fixtures/prompts.json).

That of another model is what its chat template gives.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from random_checkpoints import QWEN3_TEMPLATE
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from transformer_lens_r1 import MalformedRow, UserError, format_lmsys, format_openthoughts
from transformer_lens_r1.chat_format import writes_format


@pytest.fixture(scope="module")
def prompts(fixtures_dir: Path) -> dict[str, Any]:
    return json.loads((fixtures_dir / "prompts.json").read_text(encoding="utf-8"))


def openthoughts_row(domain: str, **changes: Any) -> dict[str, Any]:
    row = {
        "problem": "What is {x}?", "deepseek_reasoning": "Wait,\n so.", "deepseek_solution": " \\boxed{4}\n",
        "domain": domain, "test_cases": None, "starter_code": None,
    }  # fmt: skip
    return {**row, **changes}


@pytest.mark.parametrize("domain", ["math", "puzzle", "biology", "chemistry", "physics"])
def test_openthoughts_by_domain(prompts: dict[str, Any], domain: str) -> None:
    spec = prompts["openthoughts"]
    user = spec["user_by_domain"][domain].replace("{problem}", "What is {x}?")
    expected = f"{spec['system']}<｜User｜>{user}<｜Assistant｜><think>\nWait,\n so.\n</think>\n \\boxed{{4}}\n"
    assert format_openthoughts(openthoughts_row(domain)) == expected


@pytest.mark.parametrize(
    ("test_cases", "starter", "kind"),
    [
        ('{"fn_name": "f", "inputs": []}', "def f():", "code_with_fn_name"),
        ('{"fn_name": "f"}', None, "code_with_fn_name"),
        ('{"fn_name": null}', "def f():", "code_without_fn_name"),
        ('{"inputs": ["1"]}', "", "code_without_fn_name"),
        # more digits than Python converts: the test cases are those of competitions in programming
        ('{"fn_name": "f", "inputs": [1' + "0" * 5000 + "]}", None, "code_with_fn_name"),
    ],
)
def test_openthoughts_code(prompts: dict[str, Any], test_cases: str, starter: str | None, kind: str) -> None:
    spec = prompts["openthoughts"]
    user = spec["user_by_domain"][kind].replace("{problem}", "What is {x}?")
    if starter:
        user += spec["user_by_domain"]["code_then_if_starter_code"].replace("{starter_code}", starter)
    text = format_openthoughts(openthoughts_row("code", test_cases=test_cases, starter_code=starter))
    assert text == f"{spec['system']}<｜User｜>{user}<｜Assistant｜><think>\nWait,\n so.\n</think>\n \\boxed{{4}}\n"


@pytest.mark.parametrize(
    "changes",
    [{"domain": "cooking"}, {"problem": None}, {"deepseek_reasoning": 3}, {"domain": "code", "test_cases": "{"},
     {"domain": "code", "test_cases": "[1]"}, {"domain": "code", "test_cases": None}, {"domain": None},
     {"domain": "code", "test_cases": "{}", "starter_code": 3}, {"domain": "code", "test_cases": "[" * 100_000}],
)  # fmt: skip
def test_malformed_openthoughts_rows_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedRow):
        format_openthoughts(openthoughts_row(**{"domain": "math", **changes}))


def test_a_missing_field_is_named() -> None:
    with pytest.raises(MalformedRow, match="field 'problem' is missing"):
        format_openthoughts({"domain": "math"})


def test_lmsys_conversations() -> None:
    system, user = {"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi"}
    assistant = {"role": "assistant", "content": "Hello!"}
    assert format_lmsys([user, assistant]) == "<｜User｜>Hi<｜Assistant｜>Hello!"
    assert (
        format_lmsys([system, user, assistant, user])
        == "Be brief. <｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>Hi"
    )
    assert (
        format_lmsys([user, assistant, user, assistant])
        == "<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Hello!"
    )


def test_empty_fields_are_text_like_any_other() -> None:
    empty = {"role": "assistant", "content": ""}
    assert format_lmsys([{"role": "user", "content": ""}, empty, empty]) == (
        "<｜User｜><｜Assistant｜><｜end▁of▁sentence｜><｜Assistant｜>"
    )
    text = format_openthoughts(openthoughts_row("puzzle", problem="", deepseek_reasoning="", deepseek_solution=""))
    assert text.endswith("thinking process.\n<｜User｜><｜Assistant｜><think>\n\n</think>\n")


@pytest.mark.parametrize(
    "conversation", ["Hi", None, [], ["Hi"], [{"role": "tool", "content": "x"}], [{"role": "user", "content": None}]]
)
def test_malformed_conversations_are_named(conversation: Any) -> None:
    with pytest.raises(MalformedRow):
        format_lmsys(conversation)


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    """With a chat template that gives R1 text."""
    return AutoTokenizer.from_pretrained(tiny_llama)


def test_thoughts_stand_in_the_models_own_format(prompts: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template, tokenizer.eos_token = QWEN3_TEMPLATE, "<|im_end|>"
    own = writes_format(tokenizer, "model")
    assert format_openthoughts(openthoughts_row("puzzle"), tokenizer=own) == (
        f"<|im_start|>system\n{prompts['openthoughts']['system']}<|im_end|>\n"
        "<|im_start|>user\nWhat is {x}?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nWait,\n so.\n</think>\n\n \\boxed{4}\n"
    )
    with pytest.raises(MalformedRow, match="'deepseek_reasoning' is missing"):
        format_openthoughts({"problem": "x", "domain": "puzzle"}, tokenizer=own)


def test_a_template_for_r1_text_gives_it_without_bos_and_last_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
    for conversation in ([user, assistant], [user, assistant, user], [user, assistant, user, assistant]):
        assert format_lmsys(conversation, tokenizer=tokenizer) == format_lmsys(conversation)


def test_a_template_that_drops_thoughts_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content.split('</think>')[-1] + eos_token }}{% endfor %}"
    with pytest.raises(MalformedRow, match="leaves the reasoning out"):
        format_openthoughts(openthoughts_row("puzzle"), tokenizer=tokenizer)


def test_a_template_that_writes_the_date_gives_the_same_text_every_day(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}{{ eos_token }}"
    assert format_lmsys([{"role": "user", "content": "Hi"}], tokenizer=tokenizer) == "26 Jul 2024"


def test_a_model_without_a_chat_template_has_no_format_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    assert writes_format(tokenizer, "r1") is None
    with pytest.raises(UserError, match="has no chat template"):
        writes_format(tokenizer, "model")
