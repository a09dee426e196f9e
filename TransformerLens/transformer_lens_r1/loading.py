"""Models and tokenizers: any checkpoint of the Llama or Qwen2 architecture, from the Hub or from a folder.

torch, transformers and TransformerLens, seconds to import, are imported by the functions that need them.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.errors import UserError, first_line

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
HOOK_PATTERN = re.compile(r"blocks\.(\d+)\.hook_resid_post")


def load_config(
    name_or_path: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The checkpoint's configuration, checked: a few kilobytes that tell width and depth before any weights load.

    Raises:
        UserError: no such checkpoint, a folder without weights, or another architecture than Llama and Qwen2.
    """
    from transformers import AutoConfig

    folder = _checkpoint_folder(name_or_path)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise UserError(f"model folder {folder} has no config.json: expected a checkpoint that transformers wrote")
        if not any(True for pattern in WEIGHT_PATTERNS for _ in folder.glob(pattern)):
            raise UserError(
                f"model folder {folder} has no weights: expected *.safetensors beside its config.json; "
                "download the checkpoint again or give its Hub id"
            )
    try:
        config = AutoConfig.from_pretrained(str(name_or_path), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model {name_or_path}: {first_line(error)}") from error
    names = config.architectures or [type(config).__name__]
    if not any(name in ARCHITECTURES for name in names):
        raise UserError(
            f"model {name_or_path} is of architecture {', '.join(names)}; supported are {', '.join(ARCHITECTURES)}"
        )
    return config


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = "float32",
    n_layers: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> TransformerBridge:
    """A checkpoint of the Llama or Qwen2 architecture as a TransformerLens model with TransformerLens' hook names.

    Nothing is folded or centred: logits and ``blocks.L.hook_resid_post`` are those of transformers.

    Args:
        name_or_path: Hub id or local folder.
        device: where the weights go.
        dtype: the weights' number format, as a torch dtype or its name (``"bfloat16"``).
        n_layers: load only the first ``n_layers`` layers. Residual streams up to there are the full model's;
            logits and losses of such a model mean nothing.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: let code in the model's repository run.
        tokenizer: what `load_tokenizer` gave, where the caller has it already.

    Raises:
        UserError: see `load_config`; or ``n_layers`` is more than the model has.
    """
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    config = load_config(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    if n_layers is not None:
        config = _first_layers(config, n_layers)
    # Two libraries report tensors of the layers that were left out on purpose as a possible mistake.
    with quiet("transformers.modeling_utils", "transformers.utils.loading_report"):
        hf_model = AutoModelForCausalLM.from_pretrained(
            str(name_or_path),
            config=config,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            attn_implementation="eager",
        )
    hf_model.to(device).eval().requires_grad_(False)
    if tokenizer is None:
        tokenizer = load_tokenizer(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    model = TransformerBridge.boot_transformers(
        str(name_or_path), hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
    )
    model.eval()
    # The bridge may have loaded the tokenizer again to make it prepend bos, and its pad token with it.
    separate_pad(model.tokenizer)
    return model


def _first_layers(config: PretrainedConfig, n_layers: int) -> PretrainedConfig:
    if not 1 <= n_layers <= config.num_hidden_layers:
        raise UserError(f"asked for the first {n_layers} layers of a model that has {config.num_hidden_layers}")
    config = copy.deepcopy(config)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:n_layers]
    config.num_hidden_layers = n_layers
    return config


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Silence the warnings, not the errors, of some loggers for a while."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_tokenizer(
    name_or_path: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer with a pad token that is neither its bos nor its eos.

    Raises:
        UserError: the checkpoint has no tokenizer.
    """
    from transformers import AutoTokenizer

    _checkpoint_folder(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(name_or_path), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load a tokenizer from {name_or_path}: {first_line(error)}") from error
    return separate_pad(tokenizer)


def separate_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give ``tokenizer``, in place, a pad token that is neither bos nor eos, so that padding cannot be taken for text.

    A special token that the vocabulary already holds for this (a ``…pad…`` or a reserved one, else unk) is preferred.
    Where there is none, ``<|pad|>`` is added behind the vocabulary: such an id must never reach the model.
    """
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        return tokenizer
    special = sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])
    spare = [token for token, index in special if index not in used]
    candidates = [token for token in spare if re.search(r"(?<![a-z])pad(?![a-z])", token.lower())]
    candidates += [token for token in spare if "reserved" in token.lower()]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in used:
        candidates.append(tokenizer.unk_token)
    if candidates:
        tokenizer.pad_token = candidates[0]
    else:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tokenizer


def hook_layer(hook_name: str) -> int:
    """The layer number L of ``blocks.L.hook_resid_post``, the residual stream as it leaves layer L.

    Raises:
        UserError: any other hook point.
    """
    match = HOOK_PATTERN.fullmatch(hook_name)
    if match is None:
        raise UserError(
            f"hook point {hook_name!r}: expected blocks.<layer>.hook_resid_post, like blocks.19.hook_resid_post"
        )
    return int(match.group(1))


class _Reached(Exception):
    """Ends a forward pass at the hook point."""

    def __init__(self, activations: torch.Tensor) -> None:
        super().__init__()
        self.activations = activations


def residual_stream(model: TransformerBridge, tokens: torch.Tensor, hook_name: str) -> torch.Tensor:
    """Activations at ``hook_name``; nothing behind it runs, neither later layers nor the unembedding.

    Args:
        model: what `load_model` gave.
        tokens: ids [batch, pos], without padding.
        hook_name: for instance ``blocks.19.hook_resid_post``.

    Returns:
        Tensor [batch, pos, d_model] in the model's dtype.
    """

    import torch

    def stop(activations: torch.Tensor, hook: Any) -> None:
        raise _Reached(activations)

    try:
        with torch.no_grad():
            model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(hook_name, stop)])
    except _Reached as reached:
        return reached.activations
    raise UserError(f"the model has no hook point {hook_name!r}")


def _checkpoint_folder(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The folder, where it is one; None for what can only be a Hub id."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    text = str(name_or_path)
    if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise UserError(f"no model folder {text!r}: expected an existing folder or a Hub id like user/name")
    return None
