"""Conversations and reasoning traces as the text that a DeepSeek-R1 distill, or another chat model, was trained on.

The strings are those of the paper's data preparation; white space is part of them. Another model's are those of its
own chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
END_THINK = "</think>"

OPENTHOUGHTS_SYSTEM = (
    "\nYour role as an assistant involves thoroughly exploring questions through a systematic long thinking process"
    "\nbefore providing the final precise and accurate solutions. This requires engaging in a comprehensive cycle of"
    "\nanalysis, summarizing, exploration, reassessment, reflection, backtracing, and iteration to develop"
    " well-considered"
    "\nthinking process.\n"
)
MATH_INSTRUCTION = "Return your final response within \\boxed{}. "
CODE_WITH_STDIN = (
    "Generate an executable Python function generated from the given prompt. The function should take stdin as input"
    " and print the output. Simply call the function after the definition."
)
CODE_WITH_FUNCTION_NAME = (
    "Generate an executable Python function generated from the given prompt. Return the function body without"
    " invoking it at the final solution."
)
PLAIN_DOMAINS = ("puzzle", "biology", "chemistry", "physics")
DOMAINS = ("code", "math", *PLAIN_DOMAINS)
EMPTY_STARTER_CODE = ("nothing", "newline")
CHAT_FORMATS = ("r1", "model")
# Llama 3.2's template writes today's date unless it is given one, and rows would be others tomorrow: its own default.
DATE = "26 Jul 2024"


class MalformedRow(ValueError):
    """A record that does not fit its data set's schema."""


def format_openthoughts(
    sample: Mapping[str, Any],
    *,
    empty_starter_code: str = "nothing",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """One record of OpenThoughts-114k (config ``metadata``) as R1 text, or in the format of another model.

    Args:
        sample: the record.
        empty_starter_code: what a starter code of no characters adds after the problem, one of `EMPTY_STARTER_CODE`.
        tokenizer: of the other model; the same messages go through its chat template.

    Raises:
        MalformedRow: a field is missing or not text, the domain is unknown, ``test_cases`` is not a JSON object, or the
            chat template leaves the reasoning out.
    """
    question = _openthoughts_question(sample, empty_starter_code)
    reasoning, solution = _text(sample, "deepseek_reasoning"), _text(sample, "deepseek_solution")
    answer = f"{THINK}\n{reasoning}\n{END_THINK}\n{solution}"
    if tokenizer is None:
        return f"{OPENTHOUGHTS_SYSTEM}{USER}{question}{ASSISTANT}{answer}"
    roles = {"system": OPENTHOUGHTS_SYSTEM, "user": question, "assistant": answer}
    text = _by_template([{"role": role, "content": content} for role, content in roles.items()], tokenizer)
    if reasoning.strip() not in text:  # R1's own does, as it is made for the next question of a conversation
        raise MalformedRow("the chat template of the model leaves the reasoning out")
    return text


def is_of_another_domain(sample: Mapping[str, Any], domains: Sequence[str]) -> bool:
    """Whether a record is of a known domain that was not asked for; one of an unknown domain is malformed instead."""
    return sample.get("domain") in DOMAINS and sample["domain"] not in domains


def _openthoughts_question(sample: Mapping[str, Any], empty_starter_code: str) -> str:
    problem, domain = _text(sample, "problem"), _text(sample, "domain")
    if domain == "math":
        return MATH_INSTRUCTION + problem
    if domain == "code":
        instruction = CODE_WITH_FUNCTION_NAME if _has_function_name(sample) else CODE_WITH_STDIN
        starter_code = None if sample.get("starter_code") is None else _text(sample, "starter_code")
        has_line = starter_code == "" and empty_starter_code == "newline"
        return instruction + problem + (f"\n{starter_code}" if starter_code or has_line else "")
    if domain in PLAIN_DOMAINS:
        return problem
    raise MalformedRow(f"unknown domain {domain!r}, expected one of {', '.join(DOMAINS)}")


def _has_function_name(sample: Mapping[str, Any]) -> bool:
    try:
        # Test cases hold whole numbers of thousands of digits, which Python refuses to read as such.
        test_cases = json.loads(_text(sample, "test_cases"), parse_int=float)
    except (json.JSONDecodeError, RecursionError) as error:
        raise MalformedRow(f"field 'test_cases' is not JSON: {error}") from None
    if not isinstance(test_cases, dict):
        raise MalformedRow(f"field 'test_cases' holds a {type(test_cases).__name__}, expected a JSON object")
    return bool(test_cases.get("fn_name"))


def format_lmsys(conversation: Sequence[Mapping[str, Any]], *, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """One conversation of LMSYS-Chat-1M (a list of ``{"role": …, "content": …}``) as R1 text.

    Args:
        conversation: the messages.
        tokenizer: of another model, whose chat template makes the text instead.

    Raises:
        MalformedRow: not a list of messages, or a message with an unknown role or without text.
    """
    if not isinstance(conversation, list | tuple) or not conversation:
        raise MalformedRow(f"expected a list of messages, got {type(conversation).__name__}")
    parts: list[str] = []
    for position, message in enumerate(conversation):
        if not isinstance(message, Mapping):
            raise MalformedRow(f"message {position} is a {type(message).__name__}, expected role and content")
        role, content = message.get("role"), _text(message, "content")
        if role == "system":
            parts.append(content)
        elif role == "user":
            parts.append(USER + content)
        elif role == "assistant":
            last = position == len(conversation) - 1
            parts.append(ASSISTANT + content + ("" if last else EOS))
        else:
            raise MalformedRow(f"unknown role {role!r}, expected system, user or assistant")
    return "".join(parts) if tokenizer is None else _by_template(conversation, tokenizer)


def _by_template(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Messages in a model's own format, like R1 text without bos and without the eos that is put between documents."""
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, date_string=DATE)
    except TemplateError as error:  # roles that do not alternate, no messages at all
        raise MalformedRow(f"the chat template of the model refuses it: {error}") from error
    text = text.removeprefix(tokenizer.bos_token or "")
    without_eos, _, rest = text.rpartition(tokenizer.eos_token)
    return text if rest.strip() else without_eos


def writes_format(tokenizer: PreTrainedTokenizerBase, chat_format: str) -> PreTrainedTokenizerBase | None:
    """What `format_openthoughts` and `format_lmsys` take as ``tokenizer`` for one of `CHAT_FORMATS`.

    Raises:
        UserError: the model is to have its own format, and has none.
    """
    if chat_format == "r1":
        return None
    if not tokenizer.chat_template or tokenizer.eos_token is None:
        raise UserError(
            f"--chat_format model: the tokenizer of {tokenizer.name_or_path} has no chat template, or no eos; take "
            "--chat_format r1, or the model's variant for chats"
        )
    return tokenizer


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        kind = "missing" if field not in record else f"a {type(value).__name__}"
        raise MalformedRow(f"field {field!r} is {kind}, expected text")
    return value
