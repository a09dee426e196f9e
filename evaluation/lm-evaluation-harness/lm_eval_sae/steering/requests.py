"""The intervention of a single request, in plain values that travel with it to the engine.

They are the `sae_*` model arguments of one feature; of several features each is a list. An engine that serves others
has its own SAE and scores (`Served`): a request names the feature, and how far it is to be changed.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval_sae.errors import UserError, did_you_mean
from lm_eval_sae.steering.arguments import Steering, read_feature_setting, steering_of

REQUEST_ARGUMENTS = ("sae_path", "sae_feature_idx", "sae_strength", "sae_max_activation", "sae_mode", "sae_units")


@dataclass(frozen=True)
class Served:
    """What an engine lets its requests change."""

    layers: Mapping[int, int]
    """Layer → how many features an intervention may change there."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """`sae_*` arguments that hold for every request, which then cannot give them."""

    def record(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        return {"layers": {str(layer): count for layer, count in self.layers.items()}, "defaults": dict(self.defaults)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Served":
        """What `record` returned."""
        return cls({int(layer): count for layer, count in record["layers"].items()}, record["defaults"])

    def read(self, arguments: Mapping[str, Any] | None) -> Steering | None:
        """The intervention that the `extra_args` of a request describe; None if they name none.

        Raises UserError for whatever is missing, unknown or of the wrong kind.
        """
        entries = {key: value for key, value in (arguments or {}).items() if key.startswith("sae_")}
        if not entries:
            return None
        allowed = [name for name in REQUEST_ARGUMENTS if name not in self.defaults or name == "sae_max_activation"]
        for key in entries:
            if key not in allowed:
                hint = did_you_mean(key, allowed) or f"; a request may give {', '.join(allowed)}"
                raise UserError(f"a request cannot give '{key}'{hint}")
        steering = _read(json.dumps(dict(self.defaults), sort_keys=True), json.dumps(entries, sort_keys=True))
        self.require_room(steering)
        return steering

    def require_room(self, steering: Steering) -> None:
        """Raises UserError if an intervention changes more features of a layer than the engine can."""
        for layer, features in steering.layers().items():
            room = self.layers.get(layer, 0)
            if len(features) > room:
                raise UserError(f"{len(features)} features at layer {layer}, where this engine can change {room}")


def request_arguments(steering: Steering | None) -> dict[str, Any]:
    """The `extra_args` of a request that `Served.read` reads as this intervention; {} where nothing is steered."""
    if steering is None or not steering.features:
        return {}
    rows = [
        {
            "sae_path": str(feature.folder), "sae_feature_idx": feature.feature_idx, "sae_strength": feature.strength,
            "sae_max_activation": feature.max_activation, "sae_mode": feature.mode, "sae_units": feature.units,
        }
        for feature in steering.features
    ]  # fmt: skip
    return rows[0] if len(rows) == 1 else {name: [row[name] for row in rows] for name in REQUEST_ARGUMENTS}


def intervention_key(arguments: Mapping[str, Any] | None) -> str:
    """The same text for requests with the same intervention, "" for a baseline.

    Raises TypeError for what is no plain value.
    """
    entries = {key: value for key, value in (arguments or {}).items() if key.startswith("sae_")}
    return json.dumps(entries, sort_keys=True) if entries else ""


@functools.lru_cache(maxsize=4096)
def _read(defaults: str, entries: str) -> Steering:
    given = json.loads(entries)
    lengths = {name: len(value) for name, value in given.items() if isinstance(value, list)}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise UserError(f"lists of one length are needed, an entry for each feature; there are {lengths}")
    count = max(lengths.values(), default=1)
    rows = [{name: value[i] if name in lengths else value for name, value in given.items()} for i in range(count)]
    shared = json.loads(defaults)
    features = []
    for row in rows:
        merged = {**shared, **row}
        if merged.get("sae_max_activation") != "auto":  # given with the request, in place of the scores' own
            merged.pop("sae_stats", None)
        features.append(read_feature_setting(merged))
    return steering_of(features, where="the request")
