"""Conversations and reasoning traces as the text that a DeepSeek-R1 distill was trained on.

The strings are those of the paper's data preparation; white space is part of them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

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


class MalformedRow(ValueError):
    """A record that does not fit its data set's schema."""


def format_openthoughts(sample: Mapping[str, Any], *, empty_starter_code: str = "nothing") -> str:
    """One record of OpenThoughts-114k (config ``metadata``) as R1 text.

    Args:
        sample: the record.
        empty_starter_code: what a starter code of no characters adds after the problem, one of `EMPTY_STARTER_CODE`.

    Raises:
        MalformedRow: a field is missing or not text, the domain is unknown, or ``test_cases`` is not a JSON object.
    """
    return (
        f"{OPENTHOUGHTS_SYSTEM}{USER}{_openthoughts_question(sample, empty_starter_code)}{ASSISTANT}{THINK}\n"
        f"{_text(sample, 'deepseek_reasoning')}\n{END_THINK}\n{_text(sample, 'deepseek_solution')}"
    )


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


def format_lmsys(conversation: Sequence[Mapping[str, Any]]) -> str:
    """One conversation of LMSYS-Chat-1M (a list of ``{"role": …, "content": …}``) as R1 text.

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
    return "".join(parts)


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        kind = "missing" if field not in record else f"a {type(value).__name__}"
        raise MalformedRow(f"field {field!r} is {kind}, expected text")
    return value
