"""SAEs of SAELens: what their configuration says, and loading them with the decoder norm folded in.

Both today's folder layout and that of SAELens 5.5.2 are read, from the disk or from the Hub.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import hash_file
from transformer_lens_r1.shared.hub import hub_errors, hub_fault

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor
    from transformers import PretrainedConfig

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# One feature's activation depends on no other feature's, so the encoder can be run on some of them.
ELEMENTWISE = ("standard", "jumprelu", "gated")
ARCHITECTURES = (*ELEMENTWISE, "topk")


@dataclass(frozen=True)
class SaeSource:
    """Where an SAE lies, and what its configuration says."""

    path: str
    sae_id: str | None
    folder: Path | None
    """The local folder; None for an SAE of the Hub."""
    architecture: str
    d_in: int
    d_sae: int
    hook_name: str
    context_size: int | None
    prepend_bos: bool
    exclude_special_tokens: list[int] | bool | None
    revision: str | None = None
    """Branch, tag or commit of the Hub repository; None for SAELens' choice, its main branch."""

    def __str__(self) -> str:
        return self.path if self.sae_id is None else f"{self.path} {self.sae_id}"

    def weights_hash(self) -> str | None:
        """SHA-256 of the weights file, fetched if need be; None where a Hub release has them in another format."""
        if self.folder is not None:
            return hash_file(self.folder / WEIGHTS)
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
        from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name

        repo_id, folder = get_repo_id_and_folder_name(self.path, self.sae_id)
        try:
            return hash_file(hf_hub_download(repo_id, f"{folder}/{WEIGHTS}", revision=self.revision))
        except EntryNotFoundError:
            return None
        except hub_errors() as error:
            raise UserError(f"cannot fetch the weights of SAE {self}: {hub_fault(error)}") from error


def find_sae(path: str, sae_id: str | None = None, *, revision: str | None = None) -> SaeSource:
    """Read an SAE's configuration; its weights stay where they are.

    Args:
        path: a folder with ``cfg.json``, a folder that holds such folders (then ``sae_id`` names one), or a SAELens
            release or Hub repo (then ``sae_id`` is required).
        sae_id: for instance ``blocks.19.hook_resid_post``; for a folder with ``cfg.json``, its hook point or nothing.
        revision: branch, tag or commit of a Hub repo; where one is named, the repo must be in SAELens' own layout.

    Raises:
        UserError: there is no such SAE, its files are incomplete, or its architecture is not supported.
    """
    if Path(path).is_dir():
        folder = _sae_folder(Path(path), sae_id)
        config = _read_config(folder / CONFIG)
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"SAE folder {folder} has no {WEIGHTS} beside its {CONFIG}")
    else:
        folder, config = None, _hub_config(path, sae_id, revision)
    return replace(_source(path, sae_id, folder, config), revision=None if folder is not None else revision)


def _sae_folder(path: Path, sae_id: str | None) -> Path:
    if sae_id is not None and (path / sae_id / CONFIG).is_file():
        return path / sae_id
    if (path / CONFIG).is_file():
        hook_name = _hook_name(_read_config(path / CONFIG))
        if sae_id is not None and sae_id != hook_name:
            raise UserError(
                f"--sae_id {sae_id}: folder {path} holds one SAE, at {hook_name}; leave the id out (SAE_ID= for the "
                "shell scripts), or name another folder"
            )
        return path
    inside = sorted(str(found.parent.relative_to(path)) for found in path.rglob(CONFIG))
    hint = f"; give --sae_id, one of: {', '.join(inside[:5])}" if inside else ""
    raise UserError(f"no SAE in {path if sae_id is None else path / sae_id}: expected {CONFIG} and {WEIGHTS}{hint}")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, expected SAELens' configuration object")
    return config


def _hub_config(path: str, sae_id: str | None, revision: str | None) -> dict[str, Any]:
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"no SAE folder {path}: expected a folder with {CONFIG}, or a SAELens release or Hub repo")
    if sae_id is None:
        raise UserError(f"no SAE folder {path}; for a SAELens release or Hub repo give --sae_id too")
    from huggingface_hub import hf_hub_download
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

    try:
        if revision is not None:
            return _read_config(Path(hf_hub_download(path, f"{sae_id}/{CONFIG}", revision=revision)))
        return load_sae_config_from_huggingface(path, sae_id)
    except (KeyError, *hub_errors()) as error:
        raise UserError(f"no SAE {sae_id} in the release or Hub repo {path}: {hub_fault(error)}") from error


def _hub_folder(source: SaeSource) -> Path:
    """The local copy of a Hub SAE's files at its revision."""
    from huggingface_hub import snapshot_download

    files = [f"{source.sae_id}/{name}" for name in (CONFIG, WEIGHTS, "sparsity.safetensors")]
    return Path(snapshot_download(source.path, revision=source.revision, allow_patterns=files)) / str(source.sae_id)


def _hook_name(config: dict[str, Any]) -> str | None:
    metadata = config.get("metadata", config)
    return metadata.get("hook_name") or metadata.get("hook_point")


def _source(path: str, sae_id: str | None, folder: Path | None, config: dict[str, Any]) -> SaeSource:
    metadata = config.get("metadata", config)  # SAELens 5 keeps everything on one level
    hook_name = _hook_name(config)
    name = path if sae_id is None else f"{path} {sae_id}"
    for key, value in {"d_in": config.get("d_in"), "d_sae": config.get("d_sae"), "hook_name": hook_name}.items():
        if value is None:
            raise UserError(f"the configuration of SAE {name} does not say its {key}")
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"  # SAELens 5 alone says it
    if activation not in ("relu", "topk"):
        raise UserError(f"SAE {name} has the activation function {activation}; supported are relu and topk")
    if activation == "topk":
        architecture = "topk"
    if architecture not in ARCHITECTURES:
        raise UserError(f"SAE {name} is of architecture {architecture}; supported are {', '.join(ARCHITECTURES)}")
    prepend_bos = metadata.get("prepend_bos")
    return SaeSource(
        path=path,
        sae_id=sae_id,
        folder=folder,
        architecture=architecture,
        d_in=config["d_in"],
        d_sae=config["d_sae"],
        hook_name=hook_name,
        context_size=metadata.get("context_size"),
        prepend_bos=True if prepend_bos is None else prepend_bos,  # SAELens' own default
        exclude_special_tokens=metadata.get("exclude_special_tokens"),
    )


def check_fits(source: SaeSource, config: PretrainedConfig, model_name: str) -> int:
    """The layer whose output the SAE reads, once it is clear that the model has it.

    Raises:
        UserError: the SAE's d_in is not the model's width, or its hook point is none of the model's.
    """
    from transformer_lens_r1 import hook_layer

    layer = hook_layer(source.hook_name)
    if source.d_in != config.hidden_size:
        raise UserError(
            f"SAE {source} reads {source.d_in} dimensions (d_in), but the model {model_name} is {config.hidden_size} "
            "wide: it was trained on another model"
        )
    if layer >= config.num_hidden_layers:
        raise UserError(
            f"SAE {source} reads {source.hook_name}, but the layers of {model_name} are "
            f"0 to {config.num_hidden_layers - 1}: it was trained on another model"
        )
    return layer


def load_sae(source: SaeSource, *, device: str = "cpu", dtype: str = "float32") -> SAE:
    """Load the SAE with the decoder norm folded into its features: every decoder direction has unit norm.

    Raises:
        UserError: the weights are damaged, or do not fit the configuration.
    """
    from sae_lens import SAE
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            # It recommends a class that this project's models are not of.
            warnings.filterwarnings("ignore", message="\\s*This SAE has non-empty model_from_pretrained_kwargs")
            folder = _hub_folder(source) if source.revision is not None else source.folder
            if folder is not None:
                sae = SAE.load_from_disk(folder, device=device, dtype=dtype)
            else:
                sae = SAE.from_pretrained(source.path, source.sae_id, device=device, dtype=dtype)
    except (KeyError, SafetensorError, *hub_errors()) as error:
        reason = " ".join((hub_fault(error) if source.folder is None else str(error)).split())[:300]
        raise UserError(f"cannot load the weights of SAE {source}: {reason}") from error
    sae.eval().requires_grad_(False)
    fold_decoder_norm(sae)
    return sae


def fold_decoder_norm(sae: SAE) -> None:
    """Scale, in place, each feature by its decoder direction's norm, and the direction to norm 1.

    Reconstructions stay the same. A TopK SAE that picks its k features by activations without the norm would pick
    others if its encoder were scaled, so there the activations are scaled after the choice.
    """
    if sae.cfg.architecture() != "topk" or sae.cfg.rescale_acts_by_decoder_norm:
        sae.fold_W_dec_norm()
        return
    norm = sae.get_W_dec_norm()
    sae.W_dec.data.div_(norm[:, None])
    sae.hook_sae_acts_post.register_forward_hook(lambda _module, _inputs, activations: activations * norm)
    # SAEDashboard folds what it is given once more; here that is done.
    sae.fold_W_dec_norm = lambda: None


def encoder_blocks(sae: SAE, size: int) -> Iterator[tuple[slice, SAE]]:
    """The SAE cut into blocks of features, to bound the memory that activations take.

    Args:
        sae: what `load_sae` gave.
        size: features in a block. TopK needs all of them to choose from and comes as one block.

    Yields:
        The block's features, and an SAE whose ``encode`` gives [..., features of the block] and shares the weights.
    """
    d_sae = sae.cfg.d_sae
    if sae.cfg.architecture() not in ELEMENTWISE or size >= d_sae:
        yield slice(0, d_sae), sae
        return
    for start in range(0, d_sae, size):
        features = slice(start, min(start + size, d_sae))
        yield features, _part(sae, features)


def encoder_of(sae: SAE, features: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A function from residual streams [..., d_in] to the activations [..., features] of these features alone.

    Only their columns of the encoder are multiplied, except for TopK, which needs all of them to choose from.
    """
    chosen = list(features)
    if sae.cfg.architecture() in ELEMENTWISE:
        return _part(sae, chosen).encode
    return lambda residual: sae.encode(residual)[..., chosen]


def _part(sae: SAE, features: slice | list[int]) -> SAE:
    part = copy.copy(sae)
    part.__dict__["_parameters"] = {name: _cut(name, p, features) for name, p in sae._parameters.items()}
    return part


def _cut(name: str, parameter: Any, features: slice | list[int]) -> Any:
    from torch import nn

    if name == "b_dec" or parameter is None:
        return parameter
    cut = parameter.data[:, features] if name == "W_enc" else parameter.data[features]
    return nn.Parameter(cut, requires_grad=False)
