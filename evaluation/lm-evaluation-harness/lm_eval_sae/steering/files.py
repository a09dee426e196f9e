"""Reads a file that describes an intervention of several features.

# YAML (JSON and .pt hold the same mapping); what stands beside `features` holds for each of them
sae_release: andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts
sae_id: blocks.19.hook_resid_post
sae_strength: 2.0
features:
  - {sae_feature_idx: 46379, sae_max_activation: 5.84}
  - {sae_feature_idx: 3466, sae_max_activation: 4.2, sae_mode: clamp}

The published code's own form is read too: {46379: {"max_activation": 5.84, "strength": 2.0}, …} in a .pt file. It does
not name the SAE, and means what it does there: sae_mode published_clamp, in the order of the file.
"""

import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from lm_eval_sae.errors import UserError, did_you_mean

FORMATS = (".yaml", ".yml", ".json", ".pt")
NAME = "sae_intervention_path"


def read_intervention_file(path: Path, *, known: Collection[str], sae: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `sae_*` arguments of each feature, those that stand beside the list included.

    `.pt` files are read as weights only: nothing in them is executed.

    Args:
        path: of the file.
        known: keys.
        sae: arguments that name the SAE of a file in the published form.

    Raises UserError for a missing or broken file, for keys that are not in `known`, and for an SAE that is named twice.
    """
    content = read_content(path.expanduser())
    if isinstance(content, Mapping) and content and all(isinstance(key, int) for key in content):
        return published_entries(content, path=path, sae=sae)
    if sae:
        raise UserError(f"both {NAME} and {next(iter(sae))} are given; everything else belongs into the file")
    return feature_entries(content, path=path, known=known)


def published_entries(content: Mapping[int, Any], *, path: Path, sae: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`feature_entries` of a file in the published form, in its order."""
    entries = []
    for index, values in content.items():
        if not isinstance(values, Mapping) or set(values) != {"max_activation", "strength"}:
            raise UserError(f"{path}: feature {index} has {values!r}, expected max_activation and strength")
        # Numbers may be tensors, as a maximum is when torch has found it.
        numbers = {f"sae_{name}": getattr(value, "tolist", lambda v=value: v)() for name, value in values.items()}
        entries.append({**sae, "sae_feature_idx": index, "sae_mode": "published_clamp", **numbers})
    return entries


def feature_entries(content: Any, *, path: Path, known: Collection[str]) -> list[dict[str, Any]]:
    """The entries of `features`, each with what stands beside the list. Raises UserError as `read_intervention_file`.

    Args:
        content: of the file.
        path: to name in errors.
        known: keys.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("features"), list) or not content["features"]:
        raise UserError(f"{path} has no list of features; expected 'features:' with an entry for each")
    shared = {key: value for key, value in content.items() if key != "features"}
    entries: list[dict[str, Any]] = []
    known = [name for name in known if name != NAME]
    for number, entry in enumerate(content["features"], 1):
        if not isinstance(entry, Mapping):
            raise UserError(f"{path}, feature {number} is {entry!r}, expected a mapping such as sae_feature_idx: 3")
        for key in (*shared, *entry):
            if key not in known:
                hint = did_you_mean(str(key), known) or f"; there are {', '.join(known)}"
                raise UserError(f"{path}: unknown key '{key}'{hint}")
        merged = {**shared, **entry}
        entries.append({key: value for key, value in merged.items() if value is not None})
    return entries


def read_content(path: Path, *, name: str = NAME) -> Any:
    """What the file holds, whatever that is. Raises UserError if it is missing or broken.

    Args:
        path: of the file.
        name: what the user calls it.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{name} is {path}, expected a file that ends in {', '.join(FORMATS)}")
    if not path.is_file():
        raise UserError(f"no file at {name}={path}")
    try:
        if path.suffix == ".pt":
            import torch

            return torch.load(path, map_location="cpu", weights_only=True)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("write values out in place of aliases (*name): a few lines of them can mean gigabytes")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from error
