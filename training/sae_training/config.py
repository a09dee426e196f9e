"""A training run's YAML, checked key by key, as the configuration object of SAELens.

SAELens' own reader drops what it does not know under `sae:` and notices a wrong type hours later, so every key and
value is checked here against the fields of its dataclasses, before a model is loaded.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sae_training.config_values import coerce, dotted, one_of, read_yaml, refuse_unknown
from transformer_lens_r1.shared.arguments import DTYPES
from transformer_lens_r1.shared.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from sae_lens import LanguageModelSAERunnerConfig

REQUIRED = ("model_name", "dataset_path", "hook_name", "context_size", "training_tokens", "output_path")
CHECKPOINT_PATH = "checkpoints"  # SAELens' default
REQUIRED_SAE = ("d_in", "d_sae")

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


class OwnKey(NamedTuple):
    """A key that SAELens does not have."""

    type: Any
    default: Any


# Keys that SAELens does not have: `own_settings` gives their values.
OWN_KEYS = {
    "checkpoint_every_minutes": OwnKey(float | None, 15.0),  # null: only on Ctrl-C and SIGTERM
    "checkpoints_kept": OwnKey(int, 2),
    # The model's loss with the SAE in place, for which all its layers are loaded; without, only those up to the hook.
    "evaluate_cross_entropy": OwnKey(bool, True),
    # Of float32 matrix products, as torch.set_float32_matmul_precision knows it: "high" is TF32 on a GPU.
    "float32_matmul_precision": OwnKey(Literal["highest", "high", "medium"], "highest"),
}

# Written by SAELens itself, or without effect.
NOT_SETTABLE = ("hook_eval", "sae_lens_version", "sae_lens_training_version")

MODEL_KEYS = {"dtype": str, "center_writing_weights": bool, "revision": str | None, "trust_remote_code": bool}

POSITIVE = (
    "context_size",
    "eval_batch_size_prompts",
    "training_tokens",
    "train_batch_size_tokens",
    "store_batch_size_prompts",
    "n_batches_in_buffer",
    "n_batches_for_norm_estimate",
    "n_eval_batches",
    "lr",
    "dead_feature_window",
    "feature_sampling_window",
    "n_restart_cycles",
    "sae.d_in",
    "sae.d_sae",
    "logger.wandb_log_frequency",
    "logger.eval_every_n_wandb_logs",
)
NON_NEGATIVE = (
    "lr_end",
    "lr_warm_up_steps",
    "lr_decay_steps",
    "n_checkpoints",
    "sae.l1_coefficient",
    "sae.l1_warm_up_steps",
)
SCHEDULERS = ("constant", "cosineannealing", "cosineannealingwarmrestarts")


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The YAML file's keys and values with ``key=value`` overrides put in, in the layout of SAELens 6.

    A file in the flat layout of SAELens 5.5.2 is translated (`flat_config`), and lines on stderr say what had no
    counterpart. Overrides may use either layout's names for it. Values are checked by `build_config`.

    Args:
        path: a YAML file.
        overrides: ``dotted.name=value``, the value read as YAML; of two for the same key the last one counts.

    Raises:
        UserError: there is no such file, it is no YAML mapping, an override has no ``=``, a key is misspelt, or see
            `flat_config`.
    """
    from sae_training import flat_config

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no config file {path}; the ones that come with this repository are in training/configs")
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no keys; expected lines like 'model_name: …'")
    flat = flat_config.is_flat(values)
    sectioned = []  # overrides of a flat file that only SAELens 6 has a name for
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UserError(f"--set {override!r}: expected key=value, like --set device=cpu or --set sae.d_sae=4096")
        value = read_yaml(text, f"--set {override!r}: {text!r}")
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
    translated, notes = flat_config.translate(values, _top_types() | {key: own.type for key, own in OWN_KEYS.items()})
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for name, value in sectioned:
        _put(translated, name, value)
    return translated


def _refuse_misspelt(values: Mapping[str, Any], *, flat: bool) -> None:
    from sae_training import flat_config, sae_lens_keys

    known = [*sae_lens_keys.TOP, *OWN_KEYS]
    if flat:
        known += flat_config.KEYS
    else:
        known += ["sae", "logger", *dotted("sae", sae_lens_keys.SAE), *dotted("logger", sae_lens_keys.LOGGER)]
    sections = {name: values[name] for name in ("sae", "logger") if isinstance(values.get(name), dict)}
    refuse_unknown([*values, *(key for name, keys in sections.items() for key in dotted(name, keys))], known)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {name}=…: {section} is a value, not a section")
    values[key] = value


def own_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `OWN_KEYS` in a config, checked, with their defaults where they are left out.

    Raises:
        UserError: a wrong type, or a number that is not more than 0.
    """
    settings = {}
    for key, own in OWN_KEYS.items():
        value = settings[key] = coerce(values.get(key, own.default), own.type, key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise UserError(f"{key} is {value}, expected more than 0")
    return settings


def build_config(values: Mapping[str, Any]) -> LanguageModelSAERunnerConfig[Any]:
    """SAELens' configuration object for `values`, in SAELens 6's own layout; `OWN_KEYS` are checked and left out.

    Where a key is left out, SAELens' default holds, except that `sae.device` and `sae.dtype` follow `device` and
    `dtype`, and that what is in `FIXED` is so.

    Raises:
        UserError: an unknown or missing key at any depth, a value of the wrong type or out of its range, or two values
            that do not fit each other.
    """
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    own_settings(values)
    top = {key: value for key, value in values.items() if key not in OWN_KEYS}
    sae_values, logger_values = (_section(top, name) for name in ("sae", "logger"))
    architecture = sae_values.pop("architecture", "standard")
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        guess = did_you_mean(str(architecture), SAE_TRAINING_CLASS_REGISTRY)
        raise UserError(f"sae.architecture is {architecture!r}{guess}; {one_of(SAE_TRAINING_CLASS_REGISTRY)}")
    sae_class = SAE_TRAINING_CLASS_REGISTRY[architecture][1]

    top_types = _top_types()
    sae_types = _field_types(sae_class, leave_out=("metadata",))
    logger_types = _field_types(LoggingConfig)
    known = [*top_types, *OWN_KEYS, "sae.architecture", *dotted("sae", sae_types), *dotted("logger", logger_types)]
    refuse_unknown([*top, *dotted("sae", sae_values), *dotted("logger", logger_values)], known)
    missing = [key for key in REQUIRED if top.get(key) is None]
    missing += dotted("sae", [key for key in REQUIRED_SAE if sae_values.get(key) is None])
    if missing:
        raise UserError(f"the config lacks {', '.join(missing)}")

    top = {key: coerce(value, top_types[key], key) for key, value in top.items()}
    for key, (only, reason) in FIXED.items():
        if top.setdefault(key, only) != only:
            raise UserError(f"{key} is {top[key]!r}, but can only be {only!r} here: {reason}")
    top["model_from_pretrained_kwargs"] = _model_arguments(top.get("model_from_pretrained_kwargs"))
    for key, default in (("dtype", "float32"), ("device", "cpu")):
        whole = top.setdefault(key, default)
        if sae_values.setdefault(key, whole) != whole:
            raise UserError(f"sae.{key} is {sae_values[key]!r} but {key} is {whole!r}; leave sae.{key} out")
    sae_values = {key: coerce(value, sae_types[key], f"sae.{key}") for key, value in sae_values.items()}
    logger_values = {key: coerce(value, logger_types[key], f"logger.{key}") for key, value in logger_values.items()}

    try:
        cfg = LanguageModelSAERunnerConfig(
            sae=sae_class(**sae_values), logger=LoggingConfig(**logger_values), **{"verbose": False, **top}
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"SAELens refuses the config: {error}") from error
    check_values(cfg)
    if cfg.checkpoint_path is not None:
        # SAELens adds a random id, under which a later process would not find a run's checkpoints.
        folder = Path(top.get("checkpoint_path", CHECKPOINT_PATH))
        cfg.checkpoint_path = str(folder / f"{Path(str(cfg.output_path)).name}.checkpoints")
    return cfg


def check_values(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Raise `UserError` for a value out of its range, or two values that do not fit each other."""
    for name in (*POSITIVE, *NON_NEGATIVE):
        section, _, key = name.rpartition(".")
        value = getattr(getattr(cfg, section) if section else cfg, key, None)
        if value is not None and (value < 0 or (value == 0 and name in POSITIVE)):
            raise UserError(f"{name} is {value}, expected {'more than' if name in POSITIVE else 'at least'} 0")
    for name, value in (("dtype", cfg.dtype), ("model_from_pretrained_kwargs.dtype", model_dtype(cfg))):
        if value not in DTYPES:
            raise UserError(f"{name} is {value!r}{did_you_mean(value, DTYPES)}; {one_of(DTYPES)}")
    if cfg.lr_scheduler_name not in SCHEDULERS:
        guess = did_you_mean(cfg.lr_scheduler_name, SCHEDULERS)
        raise UserError(f"lr_scheduler_name is {cfg.lr_scheduler_name!r}{guess}; {one_of(SCHEDULERS)}")
    steps = cfg.total_training_steps
    if steps < 1:
        raise UserError(
            f"training_tokens ({cfg.training_tokens}) is less than one batch (train_batch_size_tokens "
            f"{cfg.train_batch_size_tokens})"
        )
    if cfg.lr_warm_up_steps + cfg.lr_decay_steps > steps:
        raise UserError(
            f"lr_warm_up_steps and lr_decay_steps add up to {cfg.lr_warm_up_steps + cfg.lr_decay_steps} steps, but "
            f"training_tokens / train_batch_size_tokens is {steps} steps"
        )
    buffer = cfg.n_batches_in_buffer * len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    if buffer < cfg.train_batch_size_tokens:
        raise UserError(
            f"the buffer of n_batches_in_buffer × context_size = {buffer} tokens is smaller than a batch "
            f"(train_batch_size_tokens {cfg.train_batch_size_tokens}); raise n_batches_in_buffer"
        )
    for name in ("activations_mixing_fraction", "adam_beta1", "adam_beta2"):
        if not 0 <= getattr(cfg, name) < 1:
            raise UserError(f"{name} is {getattr(cfg, name)}, expected 0 to below 1")
    if cfg.from_pretrained_path is not None and not Path(cfg.from_pretrained_path).is_dir():
        raise UserError(f"from_pretrained_path is {cfg.from_pretrained_path}, but there is no such folder")


def model_dtype(cfg: LanguageModelSAERunnerConfig[Any]) -> str:
    """The language model's number format; float32 where the config does not say."""
    return (cfg.model_from_pretrained_kwargs or {}).get("dtype", "float32")


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    section = values.pop(name, None) or {}
    if not isinstance(section, dict):
        raise UserError(f"{name} is {section!r}, expected a section of keys")
    return dict(section)


def _top_types() -> dict[str, Any]:
    from sae_lens import LanguageModelSAERunnerConfig

    return _field_types(LanguageModelSAERunnerConfig, leave_out=("sae", "logger", *NOT_SETTABLE))


def _field_types(cls: type, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.name not in leave_out}


def _model_arguments(values: dict[str, Any] | None) -> dict[str, Any]:
    name = "model_from_pretrained_kwargs"
    values = {"center_writing_weights": False, **(values or {})}
    refuse_unknown(dotted(name, values), dotted(name, MODEL_KEYS))
    values = {key: coerce(value, MODEL_KEYS[key], f"{name}.{key}") for key, value in values.items()}
    if values["center_writing_weights"]:
        raise UserError(f"{name}.center_writing_weights is true, but weights are never changed here; set it to false")
    return values
