"""A training run's YAML, checked key by key, as the configuration object of SAELens.

SAELens' own reader drops what it does not know under `sae:` and notices a wrong type hours later, so every key and
value is checked here against the fields of its dataclasses, before a model is loaded.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sae_training import flat_config, sae_lens_keys
from sae_training.config_values import coerce, dotted, read_yaml, refuse_unknown
from transformer_lens_r1.loading import PUBLISHED_ROPE_CONTEXT
from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from sae_lens import LanguageModelSAERunnerConfig

REQUIRED = ("model_name", "dataset_path", "hook_name", "context_size", "training_tokens", "output_path")
REQUIRED_SAE = ("d_in", "d_sae")
CHECKPOINT_PATH = "checkpoints"  # SAELens' default

# Keys of SAELens that have one possible value here, with the reason.
FIXED: dict[str, tuple[Any, str]] = {
    "model_class_name": ("HookedTransformer", "transformer_lens_r1 loads the model, with TransformerLens' names"),
    "model_kwargs": ({}, "the model takes no further arguments"),
    "hook_head_index": (None, "the residual stream has no heads"),
    "is_dataset_tokenized": (True, "tokenise text first, with the scripts in training/datasets"),
    "use_chat_formatting": (False, "the chat format is applied by the scripts in training/datasets"),
    "streaming": (False, "rows are read from memory-mapped files"),
    "dataset_trust_remote_code": (False, "token data sets need no code of their own"),
    "use_cached_activations": (False, "activations are computed during training"),
    "cached_activations_path": (None, "activations are computed during training"),
    "resume_from_checkpoint": (None, "train_sae.py --resume finds a run's newest checkpoint"),
}


Positive = Field(gt=0)
Dtype = Literal["bfloat16", "float16", "float32"]

# Keys that SAELens does not have, with their types and defaults: `extra_settings` gives their values.
EXTRA_KEYS: dict[str, tuple[Any, Any]] = {
    "checkpoint_every_minutes": (Annotated[float, Positive] | None, 15.0),  # null: only on Ctrl-C and SIGTERM
    "checkpoints_kept": (Annotated[int, Positive], 2),
    # The model's loss with the SAE in place, for which all its layers are loaded; without, only those up to the hook.
    "evaluate_cross_entropy": (bool, True),
    # Of float32 matrix products, as torch.set_float32_matmul_precision knows it: "high" is TF32 on a GPU.
    "float32_matmul_precision": (Literal["highest", "high", "medium"], "highest"),
    # Scale Llama 3.1's rotary frequencies as if it had been trained on contexts of so many tokens; null: its own.
    "rope_original_context": (Annotated[int, Positive] | None, None),
    # How decoder rows of norm `sae.decoder_init_norm` are drawn: with zero mean, or from [0, 1) as SAELens 5.5.2 did.
    "decoder_init": (Literal["saelens", "published"], "saelens"),
    "as_published": (bool, False),  # the defaults of `PUBLISHED` in place of these
}
PUBLISHED = {"rope_original_context": PUBLISHED_ROPE_CONTEXT, "decoder_init": "published"}

# Written by SAELens itself, or without effect.
NOT_SETTABLE = ("hook_eval", "sae_lens_version", "sae_lens_training_version")

MODEL_KEYS = {"dtype": Dtype, "center_writing_weights": bool, "revision": str | None, "trust_remote_code": bool}

# What SAELens' types do not say. A wrong value would end the run late, or change it without a word.
NARROWER: dict[str, Any] = {
    "dtype": Dtype,
    "lr_scheduler_name": Literal["constant", "cosineannealing", "cosineannealingwarmrestarts"],
    "lr": Annotated[float, Positive],
    **dict.fromkeys(("activations_mixing_fraction", "adam_beta1", "adam_beta2"), Annotated[float, Field(ge=0, lt=1)]),
    **dict.fromkeys(
        (
            "context_size", "training_tokens", "train_batch_size_tokens", "store_batch_size_prompts",
            "n_batches_in_buffer", "n_batches_for_norm_estimate", "n_eval_batches", "dead_feature_window",
            "feature_sampling_window", "n_restart_cycles", "sae.d_in", "sae.d_sae", "logger.wandb_log_frequency",
            "logger.eval_every_n_wandb_logs",
        ),
        Annotated[int, Positive],
    ),
    **dict.fromkeys(
        ("lr_warm_up_steps", "lr_decay_steps", "n_checkpoints", "sae.l1_warm_up_steps"), Annotated[int, Field(ge=0)]
    ),
    "sae.l1_coefficient": Annotated[float, Field(ge=0)],
}  # fmt: skip


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The YAML file's keys and values with ``key=value`` overrides put in, in the layout of SAELens 6.

    A file with the key `base` overrides keys of the file named there, just as ``key=value`` does. One in the flat
    layout of SAELens 5.5.2 is translated (`flat_config`), and lines on stderr say what had no counterpart. Overrides of
    it may use either layout's names. Values are checked by `build_config`.

    Args:
        path: a YAML file.
        overrides: ``dotted.name=value``, the value read as YAML; of two for the same key the last one counts.

    Raises:
        UserError: there is no such file or base, it is not a YAML mapping, bases go in a circle, an override has no
            ``=``, a key is misspelt, or see `flat_config`.
    """
    values, *files = _with_bases(Path(path))
    given = [change for file in files for change in _leaves(file)]
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UserError(f"--set {override!r}: expected key=value, like --set device=cpu or --set sae.d_sae=4096")
        given.append((name, read_yaml(text, f"--set {override!r}: {text!r}")))
    flat = flat_config.is_flat(values)
    sectioned = []  # overrides of a flat file that only SAELens 6 has a name for
    for name, value in given:
        if not flat:
            _put(values, name, value)
        elif (old_name := flat_config.flat_name(name)) is not None:
            values[old_name] = value
            # The width of the SAE has two names: the one that was set counts.
            values.pop({"d_sae": "expansion_factor", "expansion_factor": "d_sae"}.get(old_name), None)
        else:
            sectioned.append((name, value))
    _refuse_misspelt(values, flat=flat)
    if not flat:
        return values
    values, notes = flat_config.translate(values, [*sae_lens_keys.TOP, *EXTRA_KEYS])
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for name, value in sectioned:
        _put(values, name, value)
    _refuse_misspelt(values, flat=False)
    return values


def _with_bases(path: Path) -> list[dict[str, Any]]:
    """The keys of a file, and before them those of its base, and so on: the file without a base comes first."""
    files: list[dict[str, Any]] = []
    seen: list[Path] = []
    while True:
        if not path.is_file() and seen:
            raise UserError(f"{seen[-1]} has the base {path}, and there is no such file; base is relative to its file")
        if not path.is_file():
            raise UserError(f"no config file {path}; the ones that come with this repository are in training/configs")
        if any(path.samefile(other) for other in seen):
            raise UserError(f"the bases go in a circle: {' → '.join(map(str, [*seen, path]))}; take one base out")
        seen.append(path)
        values = read_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
        if not isinstance(values, dict):
            raise UserError(f"{path} holds no keys; expected lines like 'model_name: …'")
        files.insert(0, values)
        if "base" not in values:
            return files
        path = path.parent / coerce(values.pop("base"), str, f"base in {path}")


def _leaves(values: Mapping[Any, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of what a file overrides: of a section, only the keys that it names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{section}{key}.")
        else:
            yield f"{section}{key}", value


def _refuse_misspelt(values: Mapping[str, Any], *, flat: bool) -> None:
    known = [*sae_lens_keys.TOP, *EXTRA_KEYS]
    if flat:
        known += flat_config.KEYS
    else:
        known += ["sae", "logger", *dotted("sae", sae_lens_keys.SAE), *dotted("logger", sae_lens_keys.LOGGER)]
    given = list(values)
    for name in ("sae", "logger"):
        given += dotted(name, values[name]) if isinstance(values.get(name), dict) else []
    refuse_unknown(given, known)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"{name}: {section} is a value, not a section")
    values[key] = value


def extra_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `EXTRA_KEYS` in a config, checked, with their defaults for those that are left out.

    Raises:
        UserError: a wrong type, or a number that is not more than 0.
    """
    defaults = {key: default for key, (_, default) in EXTRA_KEYS.items()}
    if coerce(values.get("as_published", False), bool, "as_published"):
        defaults |= PUBLISHED
    return {key: coerce(values.get(key, defaults[key]), kind, key) for key, (kind, _) in EXTRA_KEYS.items()}


def build_config(values: Mapping[str, Any]) -> LanguageModelSAERunnerConfig[Any]:
    """SAELens' configuration object for what `read_config` gave; `EXTRA_KEYS` are left out.

    For a key that is left out SAELens' default holds, except that `sae.device` and `sae.dtype` follow `device` and
    `dtype`, and that what is in `FIXED` is so.

    Raises:
        UserError: a missing key, one that the architecture does not have, a value of the wrong type or out of its
            range, or two values that do not fit each other.
    """
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    top = {key: value for key, value in values.items() if key not in EXTRA_KEYS}
    sae_values, logger_values = (dict(coerce(top.pop(name, None) or {}, dict, name)) for name in ("sae", "logger"))
    architectures = Literal[tuple(SAE_TRAINING_CLASS_REGISTRY)]  # type: ignore[valid-type]
    architecture = coerce(sae_values.pop("architecture", "standard"), architectures, "sae.architecture")
    sae_class = SAE_TRAINING_CLASS_REGISTRY[architecture][1]
    missing = [key for key in REQUIRED if top.get(key) is None]
    missing += dotted("sae", [key for key in REQUIRED_SAE if sae_values.get(key) is None])
    if missing:
        raise UserError(f"the config lacks {', '.join(missing)}")
    top = _typed(top, LanguageModelSAERunnerConfig)
    for key, (only, reason) in FIXED.items():
        if top.setdefault(key, only) != only:
            raise UserError(f"{key} is {top[key]!r}, but can only be {only!r} here: {reason}")
    top["model_from_pretrained_kwargs"] = _model_arguments(top.get("model_from_pretrained_kwargs"))
    for key, default in (("dtype", "float32"), ("device", "cpu")):
        whole = top.setdefault(key, default)
        if sae_values.setdefault(key, whole) != whole:
            raise UserError(f"sae.{key} is {sae_values[key]!r} but {key} is {whole!r}; leave sae.{key} out")
    try:
        sae = sae_class(**_typed(sae_values, sae_class, "sae."))
        logger = LoggingConfig(**_typed(logger_values, LoggingConfig, "logger."))
        cfg = LanguageModelSAERunnerConfig(sae=sae, logger=logger, **{"verbose": False, **top})
    except (TypeError, ValueError) as error:
        raise UserError(f"SAELens refuses the config: {error}") from error
    _check_steps(cfg)
    if values.get("decoder_init") == "published" and cfg.sae.decoder_init_norm is None:
        raise UserError("decoder_init is 'published', but sae.decoder_init_norm is null; give rows a norm, like 0.1")
    if cfg.checkpoint_path is not None:
        # SAELens adds a random id, under which a later process would not find a run's checkpoints.
        folder = Path(top.get("checkpoint_path", CHECKPOINT_PATH))
        # The whole path, however it is written: the last part alone would be the same for a/sae and b/sae.
        parts = Path(os.path.relpath(str(cfg.output_path), folder)).parts
        name = "-".join(part for part in parts if part != "..")[-150:]
        cfg.checkpoint_path = str(folder / f"{name}.checkpoints")
    return cfg


def _typed(values: Mapping[str, Any], cls: type, section: str = "") -> dict[str, Any]:
    """Values as the fields of a dataclass are declared; a key that it does not have is its constructor's to refuse."""
    types = field_types(cls)
    return {
        key: coerce(value, NARROWER.get(f"{section}{key}", types.get(key, Any)), f"{section}{key}")
        for key, value in values.items()
    }


def field_types(cls: type) -> dict[str, Any]:
    """The fields of a configuration class of SAELens that a config may set, with their types."""
    hints = typing.get_type_hints(cls)
    leave_out = ("metadata", "sae", "logger", *NOT_SETTABLE)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.name not in leave_out}


def _check_steps(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Refuse a schedule or a buffer that SAELens would take, and make another run of."""
    steps, scheduled = cfg.total_training_steps, cfg.lr_warm_up_steps + cfg.lr_decay_steps
    if steps < 1 or scheduled > steps:
        raise UserError(
            f"training_tokens / train_batch_size_tokens is {steps} steps, but lr_warm_up_steps and lr_decay_steps add "
            f"up to {scheduled} steps; expected no more, and one step at least"
        )
    buffer = cfg.n_batches_in_buffer * len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    if buffer < cfg.train_batch_size_tokens:
        raise UserError(
            f"the buffer of n_batches_in_buffer × context_size = {buffer} tokens is smaller than a batch "
            f"(train_batch_size_tokens {cfg.train_batch_size_tokens}); raise n_batches_in_buffer"
        )


def model_dtype(cfg: LanguageModelSAERunnerConfig[Any]) -> str:
    """The language model's number format; float32 if the config does not say."""
    return (cfg.model_from_pretrained_kwargs or {}).get("dtype", "float32")


def _model_arguments(values: dict[str, Any] | None) -> dict[str, Any]:
    name = "model_from_pretrained_kwargs"
    values = {"center_writing_weights": False, **(values or {})}
    refuse_unknown(dotted(name, values), dotted(name, MODEL_KEYS))
    values = {key: coerce(value, MODEL_KEYS[key], f"{name}.{key}") for key, value in values.items()}
    if values["center_writing_weights"]:
        raise UserError(f"{name}.center_writing_weights is true, but weights are never changed here; set it to false")
    return values
