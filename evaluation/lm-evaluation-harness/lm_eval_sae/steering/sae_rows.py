"""Reads one feature of a SAELens SAE from disk or the Hub, without loading the SAE.

Steering one feature needs its encoder column, its bias and its decoder row: some kilobytes of a file that holds
gigabytes. Both of SAELens' layouts are read: 5.5.2's flat `cfg.json`, and today's with a `metadata` section.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lm_eval_sae.errors import UserError

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
RANK_ONE_ARCHITECTURES = ("standard", "jumprelu")


@dataclass(frozen=True)
class SAEConfig:
    """What steering needs to know of an SAE, in the same words for every SAELens layout."""

    architecture: str  # "standard" or "jumprelu"
    d_in: int  # width of the residual stream
    d_sae: int  # number of features
    apply_b_dec_to_input: bool  # the encoder sees x - b_dec
    hook_name: str  # e.g. blocks.19.hook_resid_post
    layer: int  # the layer whose output the hook names


@dataclass(frozen=True)
class FeatureRow:
    """One feature f(x) = relu(w·x + bias) where that exceeds the threshold, and the direction it writes."""

    encoder: Tensor  # w, [d_in] float32
    bias: float  # b_i, less b_dec·w where the SAE subtracts b_dec from its input
    threshold: float  # 0 for a standard SAE
    decoder: Tensor  # d, [d_in] float32
    sha256: str = ""  # of what was read, as it is stored: which weights these are, in whatever units

    def folded(self) -> "FeatureRow":
        """The same feature with a decoder direction of unit norm: f is scaled by ‖d‖ (SAELens' fold_W_dec_norm)."""
        norm = self.decoder_norm
        return replace(
            self,
            encoder=self.encoder * norm,
            bias=self.bias * norm,
            threshold=self.threshold * norm,
            decoder=self.decoder / norm,
        )

    @property
    def decoder_norm(self) -> float:
        return max(self.decoder.norm().item(), 1e-8)


def find_sae(
    path: str | None, *, release: str | None = None, sae_id: str | None = None, revision: str | None = None
) -> Path:
    """Returns the local folder of an SAE: `path`, or `release`/`sae_id` fetched from the Hub (two files only).

    `revision` is a branch, tag or commit of `release`.

    Raises UserError if the folder, the repository or one of the two files is missing.
    """
    if path is not None:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(f"no SAE folder at {path}; expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise UserError(f"{path} holds no {name}; expected a SAELens SAE folder")
        return folder

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    try:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            file = hf_hub_download(release, f"{sae_id}/{name}", revision=revision)
    except (HFValidationError, HTTPError, LocalEntryNotFoundError) as error:
        # Of some failures the first line is the error's name: addresses in the rest may carry a signature.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot fetch the SAE '{sae_id}' of '{release}' from the Hub: {reason}") from error
    return Path(file).parent


def read_config(folder: Path) -> SAEConfig:
    """Reads `cfg.json` in either layout.

    Raises UserError for a file that is no SAE's, and for what a rank-one change cannot steer exactly: other
    architectures than standard and JumpReLU, inputs normalised per token, hook points other than a layer's output.
    """
    try:
        cfg: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{folder / CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(cfg, dict) or any(type(cfg.get(key)) is not int for key in ("d_in", "d_sae")):
        raise UserError(f"{folder / CONFIG_FILE} is not of a SAELens SAE; expected an object with whole d_in and d_sae")
    metadata = cfg.get("metadata") or {}

    architecture = cfg.get("architecture", "standard")
    activation = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if activation == "topk":
        architecture = "topk"
    if architecture not in RANK_ONE_ARCHITECTURES:
        raise UserError(
            f"the SAE in {folder} is of architecture '{architecture}', where one feature depends on all others; "
            "steering takes standard (ReLU) and jumprelu SAEs"
        )
    if activation != "relu":
        raise UserError(f"the SAE in {folder} has the activation function '{activation}'; expected relu")

    # "expected_average_only_in" is already in the weights of a finished SAE, though its cfg still says so.
    # SAELens before 3 stored it as a boolean.
    normalize = cfg.get("normalize_activations") or "none"
    if normalize not in ("none", "expected_average_only_in", True):
        raise UserError(
            f"the SAE in {folder} normalises each input ({normalize}), which one feature's row cannot follow; "
            "expected normalize_activations none or expected_average_only_in"
        )
    if cfg.get("reshape_activations", "none") != "none":
        raise UserError(f"the SAE in {folder} reshapes its input; expected an SAE of the residual stream")

    hook_name = cfg.get("hook_name") or cfg.get("hook_point") or metadata.get("hook_name") or ""
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook_name)
    if match is None:
        raise UserError(f"the SAE in {folder} sits at '{hook_name}'; expected blocks.<layer>.hook_resid_post")
    return SAEConfig(
        architecture=architecture,
        d_in=cfg["d_in"],
        d_sae=cfg["d_sae"],
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", True)),
        hook_name=hook_name,
        layer=int(match.group(1)),
    )


def read_feature(folder: Path, config: SAEConfig, index: int) -> FeatureRow:
    """Reads feature `index` in the units its weights are stored in ("raw").

    Raises UserError if the index lies outside the SAE or the file does not hold what `config` promises.
    """
    if not 0 <= index < config.d_sae:
        raise UserError(f"feature {index} is not in the SAE, which has features 0 to {config.d_sae - 1}")
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
            names = set(weights.keys())
            missing = {"W_enc", "W_dec", "b_enc", "b_dec"} - names
            if missing:
                raise UserError(f"{folder / WEIGHTS_FILE} holds no {', '.join(sorted(missing))}")
            shape = list(weights.get_slice("W_dec").get_shape())
            if shape != [config.d_sae, config.d_in]:
                raise UserError(
                    f"{folder / WEIGHTS_FILE} has W_dec of shape {shape}, {CONFIG_FILE} says "
                    f"{[config.d_sae, config.d_in]}"
                )

            def entry(name: str) -> float:
                return weights.get_slice(name)[index : index + 1].float().item()

            # Left by SAELens' fine-tuning of activations; it is all ones in every SAE that was not fine-tuned.
            if "scaling_factor" in names and entry("scaling_factor") != 1:
                raise UserError(f"feature {index} of the SAE in {folder} has a fine-tuned scaling factor")
            encoder = weights.get_slice("W_enc")[:, index : index + 1].float().squeeze(1)
            decoder = weights.get_slice("W_dec")[index : index + 1].float().squeeze(0)
            bias = b_enc = entry("b_enc")
            b_dec = weights.get_tensor("b_dec").float()
            if config.apply_b_dec_to_input:
                bias -= torch.dot(b_dec.double(), encoder.double()).item()
            threshold = 0.0
            if config.architecture == "jumprelu":
                if "threshold" not in names:
                    raise UserError(f"{folder / WEIGHTS_FILE} is of a jumprelu SAE but holds no threshold")
                threshold = entry("threshold")
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from error
    stored = torch.cat([encoder, decoder, b_dec, torch.tensor([b_enc, threshold])])
    sha256 = hashlib.sha256(stored.numpy().astype("<f4").tobytes()).hexdigest()
    return FeatureRow(encoder=encoder, bias=bias, threshold=threshold, decoder=decoder, sha256=sha256)


def hub_commit(folder: Path) -> str | None:
    """The commit of a folder that `find_sae` fetched from the Hub; None for a folder of the user's."""
    parts = folder.parts
    if "snapshots" not in parts:
        return None
    commit = parts[len(parts) - parts[::-1].index("snapshots")]
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None
