"""Maximal activations of features, from the folder that compute_score.py wrote."""

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_sae.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

STATS_FILE = "feature_stats.safetensors"
RUN_FILE = "run.json"


def read_max_activation(scores: Path, feature_idx: int, *, d_sae: int) -> float:
    """Maximal activation of a feature, in folded units, from the statistics that compute_score.py wrote."""
    value = float(read_max_activations(scores, d_sae=d_sae)[feature_idx])
    if not value > 0:
        raise UserError(f"feature {feature_idx} never fired in the scored text: there is no maximum to scale")
    return value


def read_max_activations(scores: Path, *, d_sae: int) -> "Tensor":
    """Those of all features, [d_sae]; 0 if one never fired."""
    from safetensors import SafetensorError, safe_open

    file = scores.expanduser() / STATS_FILE
    if not file.is_file():
        raise UserError(f"{scores} holds no {STATS_FILE}; expected the folder that compute_score.py wrote")
    try:
        with safe_open(file, framework="pt") as stats:
            if "max_activation" not in stats.keys():  # noqa: SIM118  (safe_open is no mapping)
                raise UserError(f"{file} holds no 'max_activation'; it has {', '.join(sorted(stats.keys()))}")
            values = stats.get_tensor("max_activation")
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if values.shape != (d_sae,):
        raise UserError(f"{file} is of {values.numel()} features, the SAE has {d_sae}; expected scores of this SAE")
    return values


def check_scores(scores: Path, sae: Path, *, hook_name: str) -> None:
    """Raises UserError if the scores are of another SAE than the one in the folder `sae`.

    Scores without a record of their run (run.json) are taken as they are.
    """
    file = scores.expanduser() / RUN_FILE
    if not file.is_file():
        return
    try:
        scored = json.loads(file.read_text(encoding="utf-8"))["sae"]
        hook, sha256 = scored["hook_name"], scored["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not what compute_score.py wrote ({error!r})") from error
    if hook != hook_name:
        raise UserError(f"the scores in {scores} are of an SAE at {hook}, this one is at {hook_name}")
    from lm_eval_sae.steering.sae_rows import WEIGHTS_FILE

    weights = sae / WEIGHTS_FILE
    if sha256 and sha256 != _hash_file(weights, weights.stat().st_mtime_ns):
        raise UserError(f"the scores in {scores} are of an SAE with other weights; score the features of this one")


@functools.cache
def _hash_file(path: Path, modified: int) -> str:
    """SHA-256 of a file's bytes; gigabytes, and so once for all features of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
