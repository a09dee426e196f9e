"""Many runs of the command line with one start of the model."""

import contextlib
import functools
from argparse import Namespace
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lm_eval_sae.cli import read_config
from lm_eval_sae.steering.arguments import split_arguments

if TYPE_CHECKING:
    from lm_eval_sae.engines.hf_model import HFSAE
    from lm_eval_sae.engines.vllm_model import VLLMSAE


def start_model(args: Namespace, *, layers: Mapping[int, int]) -> "HFSAE | VLLMSAE":
    """The model of a run, which steers nothing yet.

    Args:
        args: of the run, after `prepare_run`; what they steer is left out.
        layers: layer → number of features that will be changed there.
    """
    from lm_eval.api.registry import get_model

    config = read_config(args)
    _, arguments = split_arguments(config.model_args)
    if config.model == "vllm-sae":
        arguments["layers"] = dict(layers)
    others = {"batch_size": config.batch_size, "max_batch_size": config.max_batch_size, "device": config.device}
    return get_model(config.model).create_from_arg_obj(arguments, others)


@contextlib.contextmanager
def instead_of_a_start(model: "HFSAE | VLLMSAE") -> Iterator[None]:
    """While it lasts, `execute` evaluates `model` as it stands wherever it would start one.

    Everything that lm-eval records is what a run of its own would record, because lm-eval does not know. What it finds
    out of the machine for each results file is found out once.
    """
    import lm_eval.api.registry as registry
    from torch.utils import collect_env

    originals = registry.get_model, collect_env.get_pretty_env_info

    def the_model(arguments: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None) -> Any:
        return model

    stand_in = SimpleNamespace(create_from_arg_obj=the_model)
    registry.get_model = lambda name: stand_in
    collect_env.get_pretty_env_info = functools.cache(originals[1])
    try:
        yield
    finally:
        registry.get_model, collect_env.get_pretty_env_info = originals
