"""What the stages of this project share: models in TransformerLens, the R1 chat format, tokenising, files, errors.

Importing the package costs nothing: the names below load their module, and with it torch and TransformerLens,
when they are first used, so that a script can refuse a wrong flag at once.
"""

import importlib
from typing import Any

_HOMES = {
    "load_config": "loading",
    "load_model": "loading",
    "load_tokenizer": "loading",
    "hook_layer": "loading",
    "residual_stream": "forward",
    "R1_DISTILLS": "architectures",
    "register_r1_distills": "registration",
    "format_lmsys": "chat_format",
    "format_openthoughts": "chat_format",
    "MalformedRow": "chat_format",
    "tokenize_and_concatenate": "tokenising",
    "UserError": "shared.errors",
}
__all__ = list(_HOMES)  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transformer_lens_r1' has no attribute {name!r}")
    return getattr(importlib.import_module(f"transformer_lens_r1.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
