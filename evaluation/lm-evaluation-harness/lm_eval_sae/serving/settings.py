"""What one server serves. vLLM makes our classes by their names and without arguments: they read it from here."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

KEY_VARIABLE = "VLLM_API_KEY"
VARIABLE = "LM_EVAL_SAE_SERVED"


@dataclass(frozen=True)
class Settings:
    """Plain values, as JSON can hold them."""

    model: str
    """As clients name it."""
    hook_name: str
    d_sae: int
    served: Mapping[str, Any]
    """`Served.record()`."""
    scores: str | None
    """Folder that compute_score.py wrote."""
    dashboards: str | None
    """Folder that compute_dashboard.py wrote."""
    words: Sequence[str]
    """Spellings of the reasoning words, the longest first."""
    loopback: bool
    """Whether only this machine can reach the server."""

    def export(self) -> None:
        """Hands them to this process and to those that it starts."""
        os.environ[VARIABLE] = json.dumps(asdict(self))


@functools.cache
def settings() -> Settings:
    """What `export` handed over."""
    return Settings(**json.loads(os.environ[VARIABLE]))
