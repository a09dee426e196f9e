"""What can be known of a model before its weights are loaded."""

from collections.abc import Mapping
from typing import Any

from lm_eval_sae.engines.arguments import in_one_line

CONFIG_ARGUMENTS = ("revision", "subfolder", "trust_remote_code", "gguf_file")


def load_model_config(pretrained: str, arguments: Mapping[str, Any]) -> Any:
    """The transformers config of a model, without its weights. Raises UserError if there is none."""
    import transformers

    with in_one_line(f"no model at '{pretrained}'"):
        return transformers.AutoConfig.from_pretrained(pretrained, **_where(arguments))


def load_tokenizer(pretrained: str, arguments: Mapping[str, Any]) -> Any:
    """The tokenizer that a model's arguments name, else its own. Raises UserError if there is none."""
    import transformers

    name = str(arguments.get("tokenizer") or pretrained)
    with in_one_line(f"no tokenizer at '{name}'"):
        return transformers.AutoTokenizer.from_pretrained(name, **_where(arguments))


def _where(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: arguments[key] for key in CONFIG_ARGUMENTS if arguments.get(key) is not None}
