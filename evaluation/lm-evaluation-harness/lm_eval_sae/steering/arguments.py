"""From the `sae_*` model arguments to an intervention that was checked against the SAE and the model."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval_sae.errors import UserError, did_you_mean
from lm_eval_sae.steering.files import read_intervention_file
from lm_eval_sae.steering.scores import STATS_FILE, check_scores, read_max_activation
from lm_eval_sae.steering.words import WordBias, read_word_bias

if TYPE_CHECKING:
    from lm_eval_sae.steering.sae_rows import FeatureRow

MODES = ("set", "clamp", "add", "published", "published_clamp")
UNITS = ("folded", "raw")
SAE_NAMES = ("sae_path", "sae_release", "sae_id", "sae_revision")
LARGEST = (2 - 2**-23) * 2.0**127  # of float32, which the changes are computed in
# By model_type: a layer of these leaves the residual stream in transformers, and its two summands in vLLM.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
FEATURE_ARGUMENTS = {
    "sae_path": "folder of the SAE",
    "sae_release": "Hub repository of the SAE, with sae_id",
    "sae_id": "folder within that repository, e.g. blocks.19.hook_resid_post",
    "sae_revision": "branch, tag or commit of that repository",
    "sae_feature_idx": "index of the feature",
    "sae_strength": "how many times its maximal activation the feature is set to",
    "sae_max_activation": "maximal activation of the feature, in sae_units, or 'auto' with sae_stats",
    "sae_mode": "set (default), clamp, add, published or published_clamp",
    "sae_units": "folded (default; activations at unit decoder norm) or raw (weights as stored; the published modes')",
    "sae_stats": f"scores folder with {STATS_FILE}",
}
ARGUMENTS = FEATURE_ARGUMENTS | {
    "sae_intervention_path": "YAML, JSON or .pt file of several features, in place of all other sae_* arguments",
    "sae_control_of": "feature and strength that the run is a matched control of, e.g. 46379x2; recorded",
    "sae_word_bias": "what is added to the logits of sae_words in generated text; nothing is steered",
    "sae_words": "JSON list of words, e.g. extraction/reason_tokens.json",
}


def split_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts model arguments into the `sae_*` ones and all others. Raises UserError for an unknown `sae_*`."""
    ours = {key: value for key, value in arguments.items() if key.startswith("sae_")}
    for key in ours:
        if key not in ARGUMENTS:
            hint = did_you_mean(key, ARGUMENTS) or f"; there are {', '.join(ARGUMENTS)}"
            raise UserError(f"unknown model argument '{key}'{hint}")
    others = {key: value for key, value in arguments.items() if key not in ours}
    return {key: value for key, value in ours.items() if value is not None}, others


@dataclass(frozen=True)
class FeatureSetting:
    """One feature of one SAE and the value it gets; everything that the results file records of it."""

    sae: str  # folder, or release/id
    architecture: str
    hook_name: str
    layer: int
    d_in: int
    d_sae: int
    feature_idx: int
    strength: float
    max_activation: float  # in `units`
    value: float  # strength × max_activation
    mode: str
    units: str
    max_activation_from: str  # "given", or "auto (<name of the scores folder>)"
    commit: str | None  # of a SAE from the Hub
    cfg_sha256: str  # of its cfg.json
    row_sha256: str  # of the feature's weights and b_dec, as they are stored
    folder: Path  # of the SAE on this machine
    row: "FeatureRow"

    @property
    def on_mlp_output(self) -> bool:
        """Whether it reads and changes the MLP's output, not the residual stream."""
        return self.mode.startswith("published")

    def record(self) -> dict[str, Any]:
        """Plain values for the results file."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("folder", "row")}


class Controlled(NamedTuple):
    """The feature that another one is a matched control of, and its strength."""

    feature_idx: int
    strength: float


@dataclass(frozen=True)
class Steering:
    """One intervention: one or several features, on one or several layers; or a bias on words and no features."""

    features: tuple[FeatureSetting, ...]
    control_of: Controlled | None = None
    word_bias: WordBias | None = None

    def layers(self) -> dict[int, tuple[FeatureSetting, ...]]:
        """The features of each layer that is changed."""
        return {
            layer: tuple(feature for feature in self.features if feature.layer == layer)
            for layer in sorted({feature.layer for feature in self.features})
        }

    def record(self) -> dict[str, Any]:
        """Plain values for the results file."""
        return {
            "features": [feature.record() for feature in self.features],
            **({"control_of": self.control_of._asdict()} if self.control_of else {}),
            **({"word_bias": self.word_bias.record()} if self.word_bias else {}),
        }


def read_steering(arguments: Mapping[str, Any], load_tokenizer: Callable[[], Any] | None = None) -> Steering | None:
    """Checks the `sae_*` arguments and reads the features; None if there are none.

    Args:
        arguments: as the user gave them.
        load_tokenizer: returns the model's; called for `sae_word_bias` alone.

    Raises UserError for whatever is missing, contradictory or of the wrong kind.
    """
    if not arguments:
        return None
    if "sae_word_bias" in arguments or "sae_words" in arguments:
        return _read_words(arguments, load_tokenizer)
    path = arguments.get("sae_intervention_path")
    if path is None:
        return Steering((read_feature_setting(arguments),), control_of=_controlled(arguments.get("sae_control_of")))
    if others := sorted(set(arguments) - {"sae_intervention_path", *SAE_NAMES}):
        raise UserError(f"both sae_intervention_path and {others[0]} are given; everything else belongs into the file")
    features = []
    sae = {name: arguments[name] for name in SAE_NAMES if name in arguments}
    for number, entry in enumerate(read_intervention_file(Path(str(path)), known=FEATURE_ARGUMENTS, sae=sae), 1):
        try:
            features.append(read_feature_setting(entry))
        except UserError as error:
            raise UserError(f"{path}, feature {number}: {error}") from error
    return steering_of(features, where=str(path))


def _read_words(arguments: Mapping[str, Any], load_tokenizer: Callable[[], Any] | None) -> Steering:
    for name in ("sae_word_bias", "sae_words"):
        if name not in arguments:
            raise UserError(f"{name} is missing ({ARGUMENTS[name]})")
    if others := sorted(set(arguments) - {"sae_word_bias", "sae_words"}):
        raise UserError(f"both sae_word_bias and {others[0]} are given; a run of the words alone steers nothing")
    assert load_tokenizer is not None
    bias = _number("sae_word_bias", arguments["sae_word_bias"])
    return Steering((), word_bias=read_word_bias(bias, Path(str(arguments["sae_words"])), load_tokenizer))


def _controlled(value: Any) -> Controlled | None:
    if value is None:
        return None
    index, _, strength = str(value).partition("x")
    try:
        return Controlled(int(index), float(strength))
    except ValueError:
        raise UserError(f"sae_control_of is {value!r}, expected feature and strength, e.g. 46379x2") from None


def steering_of(features: Sequence[FeatureSetting], *, where: str) -> Steering:
    """One intervention of several features. Raises UserError if they cannot go together.

    Args:
        features: of any layers.
        where: they come from, to name in errors.
    """
    seen = set()
    for feature in features:
        key = (feature.sae, feature.layer, feature.feature_idx)
        if key in seen:
            raise UserError(f"{where} has feature {feature.feature_idx} of {feature.sae} twice; expected it once")
        seen.add(key)
    steering = Steering(tuple(features))
    for layer, together in steering.layers().items():
        modes = [feature.mode for feature in together]
        as_published = any(feature.on_mlp_output for feature in together)
        if len(modes) > 1 and as_published and set(modes) != {"published_clamp"}:
            raise UserError(
                f"{where} has {', '.join(modes)} at layer {layer}; expected published for one feature alone, "
                "published_clamp for all of several, or neither"
            )
    return steering


def read_feature_setting(arguments: Mapping[str, Any]) -> FeatureSetting:
    """One feature by its `sae_*` arguments. Raises UserError as `read_steering` does."""
    path, release, sae_id = (arguments.get(f"sae_{name}") for name in ("path", "release", "id"))
    if path is not None and (release is not None or sae_id is not None):
        raise UserError("both sae_path and sae_release/sae_id are given; expected one of them")
    if path is None and (release is None or sae_id is None):
        raise UserError("which SAE? expected sae_path=<folder>, or sae_release=<Hub repository> with sae_id=<folder>")
    for name in ("sae_feature_idx", "sae_strength", "sae_max_activation"):
        if name not in arguments:
            raise UserError(f"{name} is missing ({ARGUMENTS[name]})")
    feature_idx = arguments["sae_feature_idx"]
    if isinstance(feature_idx, float) and feature_idx.is_integer():
        feature_idx = int(feature_idx)  # lm-eval reads "-1" as -1.0
    if isinstance(feature_idx, bool) or not isinstance(feature_idx, int):
        raise UserError(f"sae_feature_idx is {feature_idx!r}, expected a whole number")
    strength = _number("sae_strength", arguments["sae_strength"])
    mode = _choice("sae_mode", arguments.get("sae_mode", "set"), MODES)
    published = mode.startswith("published")
    units = _choice("sae_units", arguments.get("sae_units", "raw" if published else "folded"), UNITS)
    if published and units != "raw":
        raise UserError(f"sae_mode={mode} takes the weights as they are stored; expected sae_units=raw, or none given")
    stats = arguments.get("sae_stats")
    max_activation = arguments["sae_max_activation"]
    if max_activation == "auto":
        if stats is None:
            raise UserError("sae_max_activation=auto needs sae_stats=<scores folder>")
    else:
        max_activation = _number("sae_max_activation", max_activation)
        if max_activation <= 0:
            raise UserError(f"sae_max_activation is {max_activation}, expected a number above 0")
        if stats is not None:
            raise UserError("sae_stats is read with sae_max_activation=auto only; expected one or the other")

    # torch is imported from here on: a mistake above is answered at once.
    from lm_eval_sae.steering.sae_rows import CONFIG_FILE, find_sae, hub_commit, read_config, read_feature

    revision = arguments.get("sae_revision")
    if revision is not None and path is not None:
        raise UserError("sae_revision is of a Hub repository (sae_release), but sae_path is given")
    revision = None if revision is None else str(revision)
    folder = find_sae(None if path is None else str(path), release=release, sae_id=sae_id, revision=revision)
    config = read_config(folder)
    row = read_feature(folder, config, feature_idx)
    max_activation_from = "given"
    if max_activation == "auto":
        max_activation_from = f"auto ({Path(str(stats)).expanduser().resolve().name})"
        check_scores(Path(str(stats)), folder, hook_name=config.hook_name)
        max_activation = read_max_activation(Path(str(stats)), feature_idx, d_sae=config.d_sae)
        if units == "raw":
            max_activation /= row.decoder_norm
    return FeatureSetting(
        sae=str(path) if path is not None else f"{release}{f'@{revision}' if revision else ''}/{sae_id}",
        architecture=config.architecture,
        hook_name=config.hook_name,
        layer=config.layer,
        d_in=config.d_in,
        d_sae=config.d_sae,
        feature_idx=feature_idx,
        strength=strength,
        max_activation=max_activation,
        value=_number("sae_strength × sae_max_activation", strength * max_activation),
        mode=mode,
        units=units,
        max_activation_from=max_activation_from,
        commit=hub_commit(folder) if path is None else None,
        cfg_sha256=hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest(),
        row_sha256=row.sha256,
        folder=folder.absolute(),
        row=row.folded() if units == "folded" else row,
    )


def check_model(steering: Steering, config: Any, *, name: str) -> None:
    """Compares an SAE with a transformers config.

    Raises UserError if width or layer do not fit, and for a model that is none of `ARCHITECTURES`.
    """
    architecture = (config.architectures or [ARCHITECTURES.get(config.model_type, config.model_type)])[0]
    if architecture not in ARCHITECTURES.values():
        raise UserError(f"{name} is a {architecture}; steering takes {', '.join(ARCHITECTURES.values())}")
    text = config.get_text_config()
    for feature in steering.features:
        if feature.d_in != text.hidden_size:
            raise UserError(
                f"the SAE has d_in {feature.d_in} but {name} has hidden size {text.hidden_size}; "
                "expected an SAE that was trained on this model"
            )
        if feature.layer >= text.num_hidden_layers:
            raise UserError(
                f"the SAE sits at {feature.hook_name} but {name} has layers 0 to {text.num_hidden_layers - 1}"
            )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise UserError(f"{name} is {value!r}, expected a number that float32 holds")
    return float(value)


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UserError(f"{name} is {value!r}, expected one of {', '.join(choices)}{did_you_mean(str(value), choices)}")
    return value
