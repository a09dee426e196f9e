"""Models and tokenizers: any checkpoint of the architectures of `architectures.py`, from the Hub or from a folder.

torch, transformers and TransformerLens, seconds to import, are imported by the functions that need them.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.architectures import ARCHITECTURES, CLASS_NAMES, KNOWN_MODELS, Architecture
from transformer_lens_r1.chat_format import ASSISTANT, BOS, END_THINK, EOS, THINK, USER
from transformer_lens_r1.shared.arguments import resolve_device
from transformer_lens_r1.shared.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
# What the published code scales Llama 3.1's rotary frequencies for: the context that its TransformerLens caps them at.
PUBLISHED_ROPE_CONTEXT = 16_384
R1_TAGS = (BOS, EOS, USER, ASSISTANT, THINK, END_THINK)
_named_without_tags: set[str] = set()


def load_config(
    name_or_path: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The checkpoint's configuration, checked: a few kilobytes that tell width and depth before any weights load.

    Raises:
        UserError: no such checkpoint, a folder without weights, a damaged config.json, or another architecture.
    """
    from transformers import AutoConfig

    source = checkpoint_source(name_or_path)
    try:
        config = AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a damaged config.json makes of the library that reads it
        hint = "" if isinstance(source, Path) or source in KNOWN_MODELS else did_you_mean(source, KNOWN_MODELS)
        raise UserError(f"cannot load the model {source}: {_reason(error)}{hint}") from error
    check_architecture(f"model {name_or_path}", config.model_type, config.architectures)
    if isinstance(source, Path) and not any(any(source.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise UserError(f"model folder {source} has no weights: expected *.safetensors beside its config.json")
    return config


def check_architecture(model: str, model_type: str, architectures: Sequence[str] | None) -> Architecture:
    """The supported architecture that a checkpoint is of.

    Args:
        model: what the message calls it.
        model_type: as in its config.json.
        architectures: likewise; a model that was built rather than loaded names none.

    Raises:
        UserError: it is of another architecture.
    """
    architecture = ARCHITECTURES.get(model_type)
    if architecture is None or (architectures and architecture.class_name not in architectures):
        given = ", ".join(architectures or [model_type])
        raise UserError(f"{model} is of architecture {given}; supported are {', '.join(CLASS_NAMES)}")
    return architecture


def check_rope_context(
    model: str | os.PathLike[str], config: PretrainedConfig, context: int | None, *, as_published: bool = False
) -> int | None:
    """The ``rope_original_context`` that a model is loaded with; None is its own.

    Args:
        model: what the message calls it.
        config: the model's.
        context: what was asked for, in tokens.
        as_published: it is `PUBLISHED_ROPE_CONTEXT` only because a run is to be as published: a model without Llama 3's
            scaling, for which the published code changes nothing, keeps its own.

    Raises:
        UserError: the model has no such scaling, so there is no context to replace.
    """
    rope_type = config.rope_parameters.get("rope_type")
    if context is None or rope_type == "llama3":
        return context
    if as_published and context == PUBLISHED_ROPE_CONTEXT:
        return None
    raise UserError(
        f"rope_original_context {context}: the rotary scaling of {model} is {rope_type!r}, and only Llama 3's "
        "('llama3') has a context to replace; leave it out"
    )


def rope_context_of(config: PretrainedConfig) -> int | None:
    """The context that Llama 3's rotary scaling of a model starts from, in tokens; None without such scaling."""
    rope = config.rope_parameters
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "llama3" else None


def _reason(error: Exception) -> str:
    """A library's message about a file that it cannot read, as one line, with the error's type if that says more."""
    line = first_line(error).rstrip(": ")
    return line if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {line}"


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = "float32",
    n_layers: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    rope_original_context: int | None = None,
) -> TransformerBridge:
    """A checkpoint as a TransformerLens model with TransformerLens' hook names.

    Nothing is folded or centred: logits and ``blocks.L.hook_resid_post`` are those of transformers. The functions of
    `transformer_lens_r1.forward` run the same weights faster, without hooks.

    Files are memory-mapped, and tensors of layers that ``n_layers`` leaves out stay unread. Peak memory on the host is
    that of the weights loaded, in ``dtype``, and if the files hold another format, of what is read of them besides.

    Args:
        name_or_path: Hub id or local folder; `KNOWN_MODELS` also by their names alone (``Qwen3-8B``).
        device: where the weights go.
        dtype: the weights' number format, as a torch dtype or its name (``"bfloat16"``).
        n_layers: load only the first ``n_layers`` layers. Residual streams up to there are the full model's;
            its logits mean nothing, and it refuses to compute a loss, or a hook point on a layer that was not loaded.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: let code in the model's repository run.
        tokenizer: what `load_tokenizer` gave, if the caller has it already.
        rope_original_context: scale the rotary frequencies of a Llama 3.1 as if it had been trained on contexts of so
            many tokens, not on the ``original_max_position_embeddings`` of its config.json.

    Raises:
        UserError: see `load_config` and `check_rope_context`; ``n_layers`` is more than the model has, the weight files
            are damaged or incomplete, or there is no such device here.
    """
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    from transformer_lens_r1.bridge import CheckedBridge, refuse_losses
    from transformer_lens_r1.forward import sharing_weights

    dtype = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    device = resolve_device(str(device))  # before the weights are read
    config = load_config(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    if check_rope_context(name_or_path, config, rope_original_context) is not None:
        config.rope_parameters["original_max_position_embeddings"] = rope_original_context
    n_layers_of_checkpoint = config.num_hidden_layers
    if n_layers is not None:
        config = _first_layers(config, n_layers)
    source = str(checkpoint_source(name_or_path))
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    if tokenizer is None:
        tokenizer = _read_tokenizer(source, **hub)
    hf_model = _read_weights(source, config, dtype, **hub)
    hf_model.to(device).eval()
    twin = sharing_weights(hf_model)  # before the bridge takes the model apart
    with _taken_as_it_is(tokenizer):
        model = TransformerBridge.boot_transformers(
            source, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
        )
    model.eval().requires_grad_(False)
    model.__class__ = CheckedBridge
    object.__setattr__(model, "twin", twin)  # no submodule: its parameters are the model's own
    if len(model.blocks) < n_layers_of_checkpoint:
        refuse_losses(model, n_layers_of_checkpoint=n_layers_of_checkpoint)
    return model


@contextmanager
def _taken_as_it_is(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Keep TransformerLens from loading a tokenizer again that does not add bos by itself.

    It would take it from the main revision, without what the caller has changed in it. Nothing is lost: TransformerLens
    finds out whether bos is added and, where a method is to prepend it, does so itself.
    """
    before = dict(tokenizer.init_kwargs)
    tokenizer.init_kwargs["add_bos_token"] = True
    try:
        yield
    finally:
        tokenizer.init_kwargs = before


def _read_weights(source: str, config: PretrainedConfig, dtype: torch.dtype, **hub: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    # Two loggers report the tensors of layers that were left out on purpose; a tensor that is missing is no matter
    # for a log, because transformers would fill it with random numbers.
    with quiet("transformers.modeling_utils", "transformers.utils.loading_report"):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to name them below
                **hub,
            )
        except Exception as error:  # whatever a damaged or foreign file makes of the libraries that read it
            raise UserError(f"cannot read the weights of {source}: {_reason(error)}") from error
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise UserError(
            f"the weights of {source} have {name} of shape {list(found)}, but its config.json asks for {list(expected)}"
        )
    for name in sorted(info["missing_keys"]):
        raise UserError(f"the weights of {source} lack {name}, which its config.json asks for; download them again")
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

    The tags of the R1 format (``<think>``, ``<｜User｜>``, …) are one token each where the vocabulary has them. A
    vocabulary without them is named once on stderr: there they are text of several tokens.

    Raises:
        UserError: the checkpoint has no tokenizer.
    """
    source = str(checkpoint_source(name_or_path))
    tokenizer = _read_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    missing = " ".join(tag for tag in R1_TAGS if tag not in tokenizer.get_vocab())
    if missing and source not in _named_without_tags:
        _named_without_tags.add(source)
        print(f"note: the vocabulary of {source} has no {missing}; in R1 text each is several tokens", file=sys.stderr)
    return tokenizer


def _read_tokenizer(source: str, **hub: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
    except Exception as error:  # whatever a damaged file makes of the libraries that read it
        raise UserError(f"cannot load a tokenizer from {source}: {_reason(error)}") from error
    return separate_pad(tokenizer)


def separate_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give ``tokenizer``, in place, a pad token that is neither bos nor eos, so that padding cannot be taken for text.

    A special token that the vocabulary already holds for this (a ``…pad…`` or a reserved one, else unk) is preferred.
    If there is none, ``<|pad|>`` is added behind the vocabulary: such an id must never reach the model.
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
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook_name)
    if match is None:
        raise UserError(
            f"hook point {hook_name!r}: expected blocks.<layer>.hook_resid_post, like blocks.19.hook_resid_post"
        )
    return int(match.group(1))


def checkpoint_source(name_or_path: str | os.PathLike[str]) -> Path | str:
    """The folder if it is one, else the Hub id; the short name of one of `KNOWN_MODELS` is completed.

    Raises:
        UserError: neither an existing folder nor what a Hub id looks like.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    text = str(name_or_path)
    short_names = {name.split("/")[-1].lower(): name for name in KNOWN_MODELS}
    if text.lower() in short_names:
        return short_names[text.lower()]
    if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise UserError(
            f"no model folder {text!r}: expected an existing folder or a Hub id like user/name"
            f"{did_you_mean(text, [name.split('/')[-1] for name in KNOWN_MODELS])}"
        )
    return text
