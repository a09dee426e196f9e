"""Whether what lies on the disk was made by the same run: one answer for every stage."""

import json
from collections.abc import Mapping
from typing import Any

from transformer_lens_r1.shared.errors import UserError

LONGEST = 120
"""Characters of a value that a message shows; a longer one, and a hash, is only named."""


def check_same_run(what: object, saved: Mapping[str, Any], current: Mapping[str, Any], *, remedy: str) -> None:
    """Refuse to continue, replace or reuse the result of another run.

    Args:
        what: the file or folder that is there.
        saved: what it was made with, by names that the user knows: settings, and hashes of the contents read.
        current: the same of the run that is starting.
        remedy: what to do if they differ.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    difference = first_difference(saved, current)
    if difference is not None:
        raise UserError(f"{what} belongs to another run: {difference}; {remedy}")


def first_difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """The first setting in which two runs differ, in words; None if they agree.

    >>> first_difference({"alpha": 0.5, "sae": {"width": 8}}, {"alpha": 0.5, "sae": {"width": 16}})
    'sae.width is 8 there and 16 here'
    """
    # As JSON gives them back: tuples are lists, and keys are text.
    there, here = (_flat(json.loads(json.dumps(values, default=str))) for values in (saved, current))
    for name in dict.fromkeys([*here, *there]):
        if there.get(name) != here.get(name):
            shown = [json.dumps(values.get(name), ensure_ascii=False) for values in (there, here)]
            if "sha256" in name or max(map(len, shown)) > LONGEST:
                return f"{name} is not the same"
            return f"{name} is {shown[0]} there and {shown[1]} here"
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
