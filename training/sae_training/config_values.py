"""Values of a YAML configuration: read without surprises, and turned into the type that a field is declared with."""

from __future__ import annotations

import types
import typing
from collections.abc import Hashable, Sequence
from typing import Any

import yaml

from transformer_lens_r1.shared.errors import UserError, did_you_mean, first_line


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; this loader names the key instead."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands there twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, name: str) -> Any:
    """`text` as YAML.

    Raises:
        UserError: `name` is not YAML, or has a key twice.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader: it makes plain values only
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or first_line(error)
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"{name} is not YAML: {problem}{place}") from error


def coerce(value: Any, expected: Any, name: str) -> Any:
    """`value` as the type `expected`, a type annotation.

    Only harmless conversions are done: 3 for 3.0, and numbers that YAML reads as text, such as 5e-5.

    Raises:
        UserError: `value` is of another type.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        # Exact types come first, so that `true` stays a bool where an int would do as well.
        for option in sorted(arguments, key=lambda option: option is not type(value)):
            try:
                return coerce(value, option, name)
            except UserError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif origin in (list, tuple):
        if isinstance(value, list | tuple):
            return origin(coerce(item, arguments[0], f"{name}[{index}]") for index, item in enumerate(value))
    elif origin is dict:
        if isinstance(value, dict):
            return value
    elif expected is type(None):
        if value is None:
            return None
    elif expected in (int, float):
        number = _number(value)
        if number is not None and (expected is float or number == int(number)):
            return expected(number)
    elif isinstance(value, expected):
        return value
    raise UserError(f"{name} is {value!r}, expected {_describe(expected)}")


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    finite = isinstance(value, int) or (isinstance(value, float) and abs(value) < float("inf"))
    return value if finite else None


def _describe(expected: Any) -> str:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is typing.Literal:
        return one_of(arguments).removeprefix("expected ")
    if origin in (list, tuple):
        return f"a list of {_describe(arguments[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(expected, "a section of keys")


def one_of(names: typing.Iterable[Any]) -> str:
    """The end of an error message that lists what is possible."""
    return f"expected one of {', '.join(map(str, names))}"


def dotted(section: str, keys: typing.Iterable[Any]) -> list[str]:
    """`keys` as dotted names under `section`."""
    return [f"{section}.{key}" for key in keys]


def refuse_unknown(given: Sequence[Any], known: Sequence[str]) -> None:
    """Raise `UserError` naming every given key that is not known, each with the known one nearest to it."""
    unknown = [str(key) for key in given if key not in known]
    if not unknown:
        return
    # The right name may be one section up or down: `l1_coefficient` for `sae.l1_coefficient`.
    by_last_part = {name.rpartition(".")[2]: name for name in known}
    guesses = []
    for key in unknown:
        guess = by_last_part.get(key.rpartition(".")[2])
        guesses.append(f"{key}{f'; did you mean {guess!r}?' if guess else did_you_mean(key, known)}")
    raise UserError(f"unknown key{'s' if len(unknown) > 1 else ''} in the config: {', '.join(guesses)}")
