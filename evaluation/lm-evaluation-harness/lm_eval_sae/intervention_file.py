"""Reads a file that describes an intervention of several features.

# YAML (JSON and .pt hold the same mapping); what stands beside `features` holds for each of them
sae_release: andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts
sae_id: blocks.19.hook_resid_post
sae_strength: 2.0
features:
  - {sae_feature_idx: 46379, sae_max_activation: 5.84}
  - {sae_feature_idx: 3466, sae_max_activation: 4.2, sae_mode: clamp}
"""

import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from lm_eval_sae.errors import UserError, did_you_mean

FORMATS = (".yaml", ".yml", ".json", ".pt")
NOT_IN_A_FILE = "sae_intervention_path"


def read_intervention_file(path: Path, *, known: Collection[str]) -> list[dict[str, Any]]:
    """The `sae_*` arguments of each feature, those that stand beside the list included.

    `.pt` files are read as weights only: nothing in them is executed.

    Raises UserError for a missing or broken file, and for keys that are not in `known`.
    """
    content = _read(path.expanduser())
    if not isinstance(content, Mapping) or not isinstance(content.get("features"), list) or not content["features"]:
        raise UserError(f"{path} has no list of features; expected 'features:' with an entry for each")
    shared = {key: value for key, value in content.items() if key != "features"}
    entries: list[dict[str, Any]] = []
    known = [name for name in known if name != NOT_IN_A_FILE]
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


def _read(path: Path) -> Any:
    if path.suffix not in FORMATS:
        raise UserError(f"sae_intervention_path is {path}, expected a file that ends in {', '.join(FORMATS)}")
    if not path.is_file():
        raise UserError(f"no file at sae_intervention_path={path}")
    try:
        if path.suffix == ".pt":
            import torch

            return torch.load(path, map_location="cpu", weights_only=True)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from error
