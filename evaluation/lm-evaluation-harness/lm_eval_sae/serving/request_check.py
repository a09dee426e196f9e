"""Refuses a request whose `vllm_xargs` are no intervention, before it reaches the engine: 400, and a sentence."""

import functools
from typing import Any

from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as OfFirstRunner
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as OfSecondRunner

from lm_eval_sae.errors import UserError, did_you_mean
from lm_eval_sae.serving.settings import settings
from lm_eval_sae.steering.requests import REQUEST_ARGUMENTS, Served

OF_VLLM = ("kv_transfer_params", "ec_transfer_params", "session_id")


@functools.cache
def _served() -> Served:
    return Served.of(settings().served)


class RequestCheck(OfFirstRunner, OfSecondRunner):
    """A logits processor, which vLLM asks about each request as it comes in; it leaves logits as they are.

    Each of vLLM's two model runners takes processors of a class of its own: this is one of both.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for entries that `Served.read` refuses, and for unknown ones."""
        arguments = sampling_params.extra_args or {}
        for key in arguments:
            if not key.startswith("sae_") and key not in OF_VLLM:
                hint = did_you_mean(f"sae_{key}", REQUEST_ARGUMENTS)
                raise ValueError(f"vllm_xargs has an unknown entry '{key}'{hint or '; steering takes sae_feature_idx'}")
        try:
            _served().read(arguments)
        except UserError as error:
            raise ValueError(str(error)) from error

    def __init__(self, *_: Any) -> None:
        pass

    def apply(self, logits: Tensor, *_: Any) -> Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        pass

    def add_request(self, *_: Any) -> bool:
        return False
