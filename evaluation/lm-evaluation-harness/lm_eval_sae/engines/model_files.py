"""What can be known of a model before its weights are loaded."""

from pathlib import Path
from typing import Any

from lm_eval_sae.errors import UserError

CONFIG_ARGUMENTS = ("revision", "subfolder", "trust_remote_code", "gguf_file")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def load_model_config(pretrained: str, arguments: dict[str, Any]) -> Any:
    """The transformers config of a model, without its weights.

    Raises UserError where there is none, or where a local folder has a config but no weights.
    """
    folder = Path(pretrained, arguments.get("subfolder") or "")
    if folder.is_dir() and not arguments.get("gguf_file") and not any(any(folder.glob(name)) for name in WEIGHTS):
        raise UserError(f"the model folder {folder} holds no weights; expected {' or '.join(WEIGHTS)}")

    import transformers

    kwargs = {key: arguments[key] for key in CONFIG_ARGUMENTS if arguments.get(key) is not None}
    try:
        return transformers.AutoConfig.from_pretrained(pretrained, **kwargs)
    except (OSError, ValueError) as error:
        raise UserError(f"no model at '{pretrained}': {str(error).strip().splitlines()[0]}") from error


def require_chat_template(pretrained: str, arguments: dict[str, Any]) -> None:
    """Loads the tokenizer that HFLM would. Raises UserError where there is none, or it has no chat template."""
    import transformers

    name = str(arguments.get("tokenizer") or pretrained)
    kwargs = {key: arguments[key] for key in CONFIG_ARGUMENTS if arguments.get(key) is not None}
    if arguments.get("tokenizer"):
        kwargs.pop("gguf_file", None)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at '{name}': {str(error).strip().splitlines()[0]}") from error
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of '{name}' has no chat template; leave out --apply_chat_template "
            "(evaluate.sh: CHAT_TEMPLATE=0), or give tokenizer=<one with a template> in --model_args"
        )
