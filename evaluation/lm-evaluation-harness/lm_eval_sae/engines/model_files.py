"""What can be known of a model before its weights are loaded."""

from collections.abc import Mapping
from typing import Any

from lm_eval_sae.engines.arguments import in_one_line

CONFIG_ARGUMENTS = ("revision", "subfolder", "trust_remote_code", "gguf_file")


def load_model_config(pretrained: str, arguments: Mapping[str, Any]) -> Any:
    """The transformers config of a model, without its weights. Raises UserError if there is none."""
    import transformers

    kwargs = {key: arguments[key] for key in CONFIG_ARGUMENTS if arguments.get(key) is not None}
    with in_one_line(f"no model at '{pretrained}'"):
        return transformers.AutoConfig.from_pretrained(pretrained, **kwargs)
