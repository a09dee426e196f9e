"""SAEs of SAELens: their configuration, read early, and their weights, with the decoder norm folded in.

Both today's layout and that of SAELens 5.5.2 are read, from a folder or from the Hub.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
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
    rope_original_context: int | None = None
    """What the model's rotary scaling went by in training; None: what its config.json says, or it is not known."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository; None for SAELens' choice, its main branch."""

    def __str__(self) -> str:
        return self.path if self.sae_id is None else f"{self.path} {self.sae_id}"

    @cached_property
    def weights_sha256(self) -> str | None:
        """Of the weights file, fetched if need be; None if a Hub release keeps them in another format."""
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
        revision: branch, tag or commit of a Hub repo, which must then be in SAELens' own layout.

    Raises:
        UserError: there is no such SAE, its files are incomplete, or its architecture is not supported.
    """
    name = path if sae_id is None else f"{path} {sae_id}"
    folder = _sae_folder(Path(path), sae_id) if Path(path).is_dir() else None
    config = _read_config(folder) if folder is not None else _hub_config(path, sae_id, revision)
    metadata = config.get("metadata", config)  # SAELens 5 keeps everything on one level
    needed = {"d_in": config.get("d_in"), "d_sae": config.get("d_sae"), "hook_name": _hook_name(config)}
    if None in needed.values():
        missing = [key for key, value in needed.items() if value is None]
        raise UserError(f"the configuration of SAE {name} does not say its {' and '.join(missing)}")
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"  # of SAELens 5 alone
    architecture = "topk" if activation == "topk" else config.get("architecture", "standard")
    if architecture not in ARCHITECTURES or activation not in ("relu", "topk"):
        raise UserError(
            f"SAE {name} is of architecture {architecture} with the activation function {activation}; supported are "
            f"{', '.join(ARCHITECTURES)} with relu"
        )
    prepend_bos = metadata.get("prepend_bos")
    return SaeSource(
        path=path,
        sae_id=sae_id,
        folder=folder,
        architecture=architecture,
        **needed,
        context_size=metadata.get("context_size"),
        prepend_bos=True if prepend_bos is None else prepend_bos,  # SAELens' own default
        exclude_special_tokens=metadata.get("exclude_special_tokens"),
        rope_original_context=metadata.get("rope_original_context"),
        revision=revision if folder is None else None,
    )


def _sae_folder(path: Path, sae_id: str | None) -> Path:
    folder = path / sae_id if sae_id is not None and (path / sae_id / CONFIG).is_file() else path
    if not (folder / CONFIG).is_file():
        inside = sorted(str(found.parent.relative_to(path)) for found in path.rglob(CONFIG))
        hint = f"; give --sae_id, one of: {', '.join(inside[:5])}" if inside else ""
        raise UserError(f"no SAE in {path / (sae_id or '')}: expected {CONFIG} and {WEIGHTS}{hint}")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"SAE folder {folder} has no {WEIGHTS} beside its {CONFIG}")
    hook_name = _hook_name(_read_config(folder))
    if folder == path and sae_id not in (None, hook_name):
        raise UserError(
            f"--sae_id {sae_id}: folder {path} holds one SAE, at {hook_name}; leave the id out (SAE_ID= for the "
            "shell scripts), or name another folder"
        )
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def _hub_config(path: str, sae_id: str | None, revision: str | None) -> dict[str, Any]:
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"no SAE folder {path}: expected a folder with {CONFIG}, or a SAELens release or Hub repo")
    if sae_id is None:
        raise UserError(f"no SAE folder {path}; for a SAELens release or Hub repo give --sae_id too")
    from huggingface_hub import hf_hub_download
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

    try:
        if revision is not None:
            return _read_config(Path(hf_hub_download(path, f"{sae_id}/{CONFIG}", revision=revision)).parent)
        return load_sae_config_from_huggingface(path, sae_id)
    except (KeyError, *hub_errors()) as error:
        raise UserError(f"no SAE {sae_id} in the release or Hub repo {path}: {hub_fault(error)}") from error


def _hook_name(config: dict[str, Any]) -> str | None:
    metadata = config.get("metadata", config)
    return metadata.get("hook_name") or metadata.get("hook_point")


def check_fits(source: SaeSource, config: PretrainedConfig, model_name: str) -> int:
    """The layer whose output the SAE reads, once it is clear that the model has it.

    Raises:
        UserError: the SAE's d_in is not the model's width, or the model has no such hook point.
    """
    from transformer_lens_r1 import hook_layer

    layer = hook_layer(source.hook_name)
    if source.d_in != config.hidden_size or layer >= config.num_hidden_layers:
        raise UserError(
            f"SAE {source} reads {source.d_in} dimensions (d_in) at {source.hook_name}, but the model {model_name} is "
            f"{config.hidden_size} wide and has layers 0 to {config.num_hidden_layers - 1}: it was trained on another "
            "model"
        )
    return layer


def load_sae(source: SaeSource, *, device: str = "cpu", dtype: str = "float32") -> SAE:
    """Load the SAE with the decoder norm folded into its features: every decoder direction has unit norm.

    Raises:
        UserError: the weights are damaged, or do not fit the configuration.
    """
    from huggingface_hub import snapshot_download
    from sae_lens import SAE
    from safetensors import SafetensorError

    folder = source.folder
    try:
        if source.revision is not None:
            files = [f"{source.sae_id}/{name}" for name in (CONFIG, WEIGHTS, "sparsity.safetensors")]
            repository = snapshot_download(source.path, revision=source.revision, allow_patterns=files)
            folder = Path(repository) / str(source.sae_id)
        with warnings.catch_warnings():
            # It recommends a class that this project's models are not of.
            warnings.filterwarnings("ignore", message="\\s*This SAE has non-empty model_from_pretrained_kwargs")
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


def encoder_of(sae: SAE, features: slice | list[int] | Tensor) -> Callable[[Tensor], Tensor]:
    """A function from residual streams [..., d_in] to the activations [..., features] of these features alone.

    Only their columns of the encoder are multiplied, except for TopK, which needs all of them to choose from.
    """
    if sae.cfg.architecture() not in ELEMENTWISE:
        return lambda residual: sae.encode(residual)[..., features]
    from torch import nn

    def cut(name: str, parameter: Tensor | None) -> Tensor | None:
        if name == "b_dec" or parameter is None:
            return parameter
        kept = parameter.data[:, features] if name == "W_enc" else parameter.data[features]
        return nn.Parameter(kept, requires_grad=False)

    part = copy.copy(sae)
    part.__dict__["_parameters"] = {name: cut(name, parameter) for name, parameter in sae._parameters.items()}
    return part.encode


def encoder_blocks(sae: SAE, size: int) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
    """The SAE cut into blocks of features, to bound the memory that activations take.

    Args:
        sae: what `load_sae` gave.
        size: features in a block. TopK needs all of them to choose from and comes as one block.

    Yields:
        The block's features, and what `encoder_of` gives for them; blocks share the SAE's weights.
    """
    d_sae = sae.cfg.d_sae
    size = size if sae.cfg.architecture() in ELEMENTWISE else d_sae
    for start in range(0, d_sae, size):
        features = slice(start, min(start + size, d_sae))
        yield features, encoder_of(sae, features)
