"""Values of a YAML configuration: read without surprises, and turned into the type that a field is declared with."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from transformer_lens_r1.shared.errors import UserError, did_you_mean, first_line


class _Loader(yaml.SafeLoader):
    """Refuses two equal keys, of which PyYAML keeps the last, and aliases: a few lines of them can mean gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            name = self.peek_event().anchor
            raise yaml.constructor.ConstructorError(None, None, f"write the value out in place of *{name}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands there twice")
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 5e-5 for text, because it has no point.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+e[-+]?\d+$", re.I), list("-+0123456789"))


def read_yaml(text: str, name: str) -> Any:
    """`text` as YAML.

    Raises:
        UserError: `name` is not YAML, or has a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes plain values only
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or first_line(error)
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{name} is not YAML: {problem}{f' (line {mark.line + 1})' if mark else ''}") from error


def coerce(value: Any, expected: Any, name: str) -> Any:
    """`value` as the type `expected`, a type annotation; only harmless conversions are done, like 3 for 3.0.

    Raises:
        UserError: `value` is of another type, or out of its range.
    """
    try:
        return TypeAdapter(expected, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise UserError(f"{name} is {value!r}: {problem[0].lower()}{problem[1:]}") from error


def dotted(section: str, keys: Iterable[Any]) -> list[str]:
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
