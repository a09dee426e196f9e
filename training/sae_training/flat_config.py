"""The flat layout of SAELens 5.5.2, in which the paper's configuration is written, as the sections of SAELens 6.

Every field of that version's `LanguageModelSAERunnerConfig` is known here. A key that is left out means what it meant
there, so a config that relied on a default which can no longer be had is refused like one that asked for it.
Checked against the sources of SAELens 5.5.2 and 6.54.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from sae_training.config_values import coerce, refuse_unknown
from transformer_lens_r1.shared.errors import UserError

ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
# `decoder_heuristic_init: true` gave decoder rows this norm.
HEURISTIC_NORM = 0.1
DEFAULT_EXPANSION = 4
DEFAULT_PASSES, DEFAULT_ROWS_PER_PASS = 20, 32  # of n_batches_in_buffer and store_batch_size_prompts

# Keys that moved into a section of SAELens 6: their names there.
MOVED = {
    key: f"{section}.{key}"
    for section, keys in {
        "sae": (
            "architecture", "d_in", "d_sae", "apply_b_dec_to_input", "normalize_activations", "l1_coefficient",
            "l1_warm_up_steps", "lp_norm", "jumprelu_init_threshold", "jumprelu_bandwidth",
        ),
        "logger": (
            "log_to_wandb", "log_activations_store_to_wandb", "log_optimizer_state_to_wandb", "wandb_project",
            "wandb_id", "run_name", "wandb_entity", "wandb_log_frequency", "eval_every_n_wandb_logs",
        ),
    }.items()
    for key in keys
}  # fmt: skip
# Keys that say the same thing in another way, translated by hand below.
TRANSLATED = ("expansion_factor", "decoder_heuristic_init", "hook_layer", "activation_fn", "activation_fn_kwargs")
# Of the keys that the translation computes with; `build_config` checks the others.
TYPES: dict[str, Any] = {
    "architecture": Literal["standard", "gated", "jumprelu", "topk"],
    **dict.fromkeys(("d_in", "hook_layer", "training_tokens", "n_batches_in_buffer", "store_batch_size_prompts"), int),
    **dict.fromkeys(("d_sae", "expansion_factor"), int | None),
    **dict.fromkeys(("lr", "l1_coefficient"), float),
    "activation_fn_kwargs": dict[str, int] | None,
}


@dataclasses.dataclass(frozen=True)
class Gone:
    """A key that SAELens 6 no longer has, and the one value that it behaves as if it had."""

    default: Any  # of SAELens 5.5.2, if the key is left out
    harmless: Any
    reason: str  # what SAELens 6 does, whatever the key says
    architectures: tuple[str, ...] = ARCHITECTURES  # in the others the key had no effect


GONE = {
    "b_dec_init_method": Gone("geometric_median", "zeros", "the decoder bias always starts at zero"),
    "normalize_sae_decoder": Gone(True, False, "decoder rows are never set back to norm 1 during training"),
    "scale_sparsity_penalty_by_decoder_norm": Gone(
        False, True, "the L1 penalty always weighs a feature with its decoder norm", ("standard",)
    ),
    "mse_loss_normalization": Gone(None, None, "the squared error is never normalised"),
    "decoder_orthogonal_init": Gone(False, False, "the decoder never starts orthogonal"),
    "init_encoder_as_decoder_transpose": Gone(False, True, "the encoder always starts as the decoder transposed"),
    "noise_scale": Gone(0.0, 0.0, "no noise is added to pre-activations", ("standard", "jumprelu", "topk")),
    "use_ghost_grads": Gone(False, False, "there are no ghost gradients", ("standard",)),
    "finetuning_tokens": Gone(0, 0, "there is no fine-tuning phase"),
    "finetuning_method": Gone(None, None, "there is no fine-tuning phase"),
    "resume": Gone(False, False, "an interrupted run is continued with a flag of the script, not by its config"),
}
# Keys that never changed a run: notes to oneself, and what SAELens wrote into the cfg.json of an SAE.
WITHOUT_EFFECT = (
    "hook_eval",
    "dataset_trust_remote_code",
    "sae_lens_version",
    "sae_lens_training_version",
    "tokens_per_buffer",
)
KEYS = (*MOVED, *TRANSLATED, *GONE, *WITHOUT_EFFECT)
# Defaults of SAELens 5.5.2 that are others in SAELens 6, for keys that both have.
DEFAULTS: dict[str, Any] = {
    "adam_beta1": 0.0,
    "l1_coefficient": 1e-3,
    "jumprelu_init_threshold": 0.001,
    "jumprelu_bandwidth": 0.001,
    "wandb_project": "mats_sae_training_language_model",
}
TOPK_DEFAULT = 100


def is_flat(values: Mapping[str, Any]) -> bool:
    """Whether a config is in the flat layout: no section of SAELens 6, and a key that stood at the top only before."""
    return not {"sae", "logger"} & values.keys() and bool({*MOVED, *TRANSLATED, *GONE} & values.keys())


def flat_name(name: str) -> str | None:
    """What a dotted name of SAELens 6 is called in the flat layout; None if it has no name there.

    >>> flat_name("sae.l1_coefficient"), flat_name("device"), flat_name("sae.decoder_init_norm")
    ('l1_coefficient', 'device', None)
    """
    if "." not in name:
        return name
    return next((old for old, new in MOVED.items() if new == name), None)


def translate(values: Mapping[str, Any], same: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """A flat config as SAELens 6 has it, with sections `sae` and `logger`.

    Args:
        values: the keys of the file, all of them known.
        same: keys that stand at the top in either layout, those of this project among them.

    Returns:
        The config, and lines for the user: what was left out and why, what means something else now.

    Raises:
        UserError: a wrong type, two keys that contradict each other, or a value that asks for something that SAELens 6
            cannot do.
    """
    given = DEFAULTS | {key: coerce(value, TYPES.get(key, Any), key) for key, value in values.items()}
    architecture = given.setdefault("architecture", "standard")
    left_out = _refuse_gone(given, values, architecture)
    left_out += [f"{key} (without effect)" for key in WITHOUT_EFFECT if key in values]
    _check_hook_layer(given)
    given["d_sae"] = _width(given)
    if given.get("run_name") is None:
        # As SAELens 5.5.2 named a run.
        given["run_name"] = (
            f"{given['d_sae']}-L1-{given['l1_coefficient']}-LR-{given.get('lr', 3e-4)}"
            f"-Tokens-{given.get('training_tokens', 2_000_000):3.3e}"
        )
    # That version counted passes of the model, SAELens 6 counts rows.
    passes = given.get("n_batches_in_buffer", DEFAULT_PASSES)
    if passes > 0:  # what is not is refused later, as it was given
        given["n_batches_in_buffer"] = passes * given.get("store_batch_size_prompts", DEFAULT_ROWS_PER_PASS)
    # The flat layout has no such key: the finished SAE goes beside the run's checkpoints, under the run's name.
    given.setdefault("output_path", f"{given.get('checkpoint_path', 'checkpoints') or 'output'}/{given['run_name']}")

    result: dict[str, Any] = {key: given[key] for key in same if key in given and key not in WITHOUT_EFFECT}
    sections: dict[str, dict[str, Any]] = {"sae": {}, "logger": {}}
    for key, name in MOVED.items():
        if key in given:
            sections[name.partition(".")[0]][key] = given[key]
    sections["sae"]["decoder_init_norm"] = HEURISTIC_NORM if given.get("decoder_heuristic_init") else None
    left_out += _fit_architecture(sections["sae"], given, values)
    lines = [f"SAELens 6 has no use for these keys, left out: {', '.join(left_out)}"] * bool(left_out)
    if "n_batches_in_buffer" in values:
        lines.append(
            f"n_batches_in_buffer counts rows in SAELens 6 and passes of store_batch_size_prompts rows in this layout: "
            f"{passes} passes are {given['n_batches_in_buffer']} rows, mixed at a time"
        )
    return result | sections, lines


def _refuse_gone(given: Mapping[str, Any], values: Mapping[str, Any], architecture: str) -> list[str]:
    """Raise `UserError` if a key of `GONE` asks for what is gone; of the others, phrases on those in `values`."""
    left_out = []
    for key, gone in GONE.items():
        value = given.get(key, gone.default)
        if value != gone.harmless and architecture in gone.architectures:
            said = f"{key} is {_yaml(value)}" if key in given else f"{key} is left out, which meant {_yaml(value)}"
            raise UserError(
                f"{said}, which SAELens 6 cannot do: {gone.reason}; say {key}: {_yaml(gone.harmless)} if that is well"
            )
        if key in values:
            left_out.append(f"{key} ({gone.reason})")
    return left_out


def _check_hook_layer(given: Mapping[str, Any]) -> None:
    layer = re.search(r"\.(\d+)\.", given.get("hook_name") or "")
    if "hook_layer" in given and layer is not None and int(layer.group(1)) != given["hook_layer"]:
        raise UserError(
            f"hook_layer is {given['hook_layer']} but hook_name is {given['hook_name']}; make them the same layer, "
            "or leave hook_layer out"
        )


def _width(given: Mapping[str, Any]) -> int | None:
    d_in, d_sae, expansion = (given.get(key) for key in ("d_in", "d_sae", "expansion_factor"))
    if d_in is None:
        return d_sae
    if d_sae is None:
        return d_in * (DEFAULT_EXPANSION if expansion is None else expansion)
    if expansion is not None and d_sae != d_in * expansion:
        raise UserError(f"d_sae is {d_sae}, but expansion_factor × d_in is {d_in * expansion}; give one of the two")
    return d_sae


def _fit_architecture(sae: dict[str, Any], given: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Rename, add and drop in `sae`, in place, what differs between architectures; phrases on what was dropped."""
    architecture = sae["architecture"]
    function = given.get("activation_fn") or ("topk" if architecture == "topk" else "relu")
    if function != ("topk" if architecture == "topk" else "relu"):
        raise UserError(
            f"activation_fn is {function!r}, which SAELens 6 cannot do with architecture {architecture}: the "
            "architecture decides the activation function (architecture: topk has topk, the others relu)"
        )
    arguments = given.get("activation_fn_kwargs") or {}
    refuse_unknown(
        [f"activation_fn_kwargs.{key}" for key in arguments], ["activation_fn_kwargs.k"] * (architecture == "topk")
    )
    unused = {
        "standard": ("jumprelu_init_threshold", "jumprelu_bandwidth"),
        "gated": ("jumprelu_init_threshold", "jumprelu_bandwidth", "lp_norm"),
        "jumprelu": ("lp_norm",),
        "topk": ("jumprelu_init_threshold", "jumprelu_bandwidth", "lp_norm", "l1_coefficient", "l1_warm_up_steps"),
    }[architecture]
    for key in unused:
        sae.pop(key, None)
    if architecture == "jumprelu":
        sae["l0_coefficient"] = sae.pop("l1_coefficient")
        sae["l0_warm_up_steps"] = sae.pop("l1_warm_up_steps", 0)
    if architecture == "topk":
        # SAELens 6 would rank pre-activations by decoder norm unless told otherwise.
        sae.update(k=arguments.get("k", TOPK_DEFAULT))
        sae.update(rescale_acts_by_decoder_norm=False)
    return [f"{key} (no part of architecture {architecture})" for key in unused if key in values]


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
