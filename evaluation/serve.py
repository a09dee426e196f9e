"""A model to talk to: vLLM's OpenAI-compatible server, where each request says which SAE features steer it, and a page.

    python evaluation/serve.py --model_path deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
        --sae_release andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts --sae_id blocks.19.hook_resid_post \\
        --scores_dir extraction/scores --dashboards_dir extraction/dashboards

Further flags are vLLM's (--max-model-len 8192, --tensor-parallel-size 2). Every mistake in the arguments ends it before
the engine starts. Another --host than this machine's own needs an API key, in the environment: VLLM_API_KEY=….
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import socket
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from report.reasoning_words import WordCounter

from lm_eval_sae import errors as lm_eval_errors
from lm_eval_sae.engines.arguments import refuse_for_steering, require_usable_card
from lm_eval_sae.engines.model_files import load_model_config
from lm_eval_sae.errors import UserError
from lm_eval_sae.serving.settings import KEY_VARIABLE, Settings
from lm_eval_sae.steering.arguments import check_model
from lm_eval_sae.steering.requests import Served
from transformer_lens_r1.architectures import SUPPORTED
from transformer_lens_r1.shared.arguments import ArgumentParser, positive_int
from transformer_lens_r1.shared.errors import run
from transformer_lens_r1.shared.vocabulary import read_vocabulary

VOCABULARY = Path(__file__).resolve().parent.parent / "extraction" / "reason_tokens.json"
# What vLLM's flags are unless they are given: as long a context as the key-value cache holds; and on a CPU nothing is
# compiled, which takes longer than a conversation.
DEFAULTS = ("--max-model-len", "auto")
ON_CPU = ("--enforce-eager",)
# vLLM's flags that cannot be given, and why.
REFUSED = {
    "model": "give --model_path",
    "api_key": f"others can read a command line; set {KEY_VARIABLE} in the environment",
    "enable_prefix_caching": "what one intervention computed would be taken for another",
    "allowed_origins": "pages of other origins are refused",
    "uds": "a socket file has no address that a browser could open",
}


def main(argv: Sequence[str] | None = None) -> None:
    own, rest = make_parser().parse_known_args(argv)
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed; run bash setup.sh, which says what it needs")
    check_address(own.host, own.port)
    settings = check(own)
    args = vllm_arguments(own, rest, settings)
    settings.export()

    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server

    print(f"the page will be at http://{own.host}:{own.port}/ once the engine has started", flush=True)
    uvloop.run(run_server(args))


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, usage="%(prog)s --model_path … [flags of vLLM's server]")
    parser.add_argument("--model_path", required=True, help=f"Hub id or folder of a {SUPPORTED} checkpoint")
    parser.add_argument("--sae_path", help="folder of a SAELens SAE of this model, or")
    parser.add_argument("--sae_release", help="Hub repository of the SAE, with --sae_id")
    parser.add_argument("--sae_id", help="folder in that repository, e.g. blocks.19.hook_resid_post")
    parser.add_argument(
        "--scores_dir", type=Path, help="what compute_score.py wrote (without it requests give maximal activations)"
    )
    parser.add_argument("--dashboards_dir", type=Path, help="what compute_dashboard.py wrote: features to choose from")
    parser.add_argument("--tokens_str_path", type=Path, default=VOCABULARY, help="reasoning words that the page marks")
    parser.add_argument("--max_features", type=positive_int, default=4, help="how many features a request can steer")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    return parser


def check_address(host: str, port: int) -> None:
    """Raises UserError if the server cannot listen there, or everyone could use it."""
    if not is_loopback(host) and not os.environ.get(KEY_VARIABLE):
        raise UserError(f"with --host {host} everyone who reaches this machine can use the model: set {KEY_VARIABLE}")
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}, port {port} ({error}); give another --port or --host") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(own: Namespace) -> Settings:
    """What is to be served. Raises UserError if SAE, scores and dashboards do not go together."""
    from lm_eval_sae.serving.site import page_info
    from lm_eval_sae.steering.sae_rows import find_sae, read_config
    from lm_eval_sae.steering.scores import check_scores

    named = [value is not None for value in (own.sae_path, own.sae_release, own.sae_id)]
    if named not in ([True, False, False], [False, True, True]):
        raise UserError("which SAE? expected --sae_path, or --sae_release with --sae_id")
    sae = find_sae(own.sae_path, release=own.sae_release, sae_id=own.sae_id).resolve()
    config = read_config(sae)
    defaults = {"sae_path": str(sae)}
    if own.scores_dir is not None:
        check_scores(own.scores_dir, sae, hook_name=config.hook_name)
        defaults |= {"sae_stats": str(own.scores_dir.resolve()), "sae_max_activation": "auto"}
    if own.dashboards_dir is not None:
        check_dashboards(own.dashboards_dir, hook_name=config.hook_name)
    model = Path(own.model_path)
    settings = Settings(
        model=model.resolve().name if model.is_dir() else own.model_path,
        hook_name=config.hook_name,
        d_sae=config.d_sae,
        served=Served({config.layer: own.max_features}, defaults).record(),
        scores=defaults.get("sae_stats"),
        dashboards=own.dashboards_dir and str(own.dashboards_dir.resolve()),
        words=WordCounter(read_vocabulary(own.tokens_str_path)).forms,
        loopback=is_loopback(own.host),
    )
    page_info(settings)
    return settings


def check_dashboards(folder: Path, *, hook_name: str) -> None:
    """Raises UserError if the folder holds no dashboards, or those of an SAE at another hook point."""
    for name in ("dashboards.json", "features.json"):
        if not (folder / name).is_file():
            raise UserError(f"--dashboards_dir {folder} holds no {name}; make it with compute_dashboard.py")
    shown = json.loads((folder / "dashboards.json").read_text(encoding="utf-8"))["hook_name"]
    if shown != hook_name:
        raise UserError(f"the dashboards in {folder} are of an SAE at {shown}, this one is at {hook_name}")


def vllm_arguments(own: Namespace, rest: Sequence[str], settings: Settings) -> Namespace:
    """The arguments of vLLM's server. Raises UserError for excluded flags and an SAE of another model."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from lm_eval_sae.engines.vllm_engine import CONFIG_KEY, WORKER
    from lm_eval_sae.engines.vllm_model import suit_platform

    on_cpu = current_platform.is_cpu()
    require_usable_card(vllm_on_cpu=on_cpu)
    parser = make_arg_parser(FlexibleArgumentParser(allow_abbrev=False))
    parser.error = ArgumentParser().error  # one line
    args = parser.parse_args([*DEFAULTS, *(ON_CPU if on_cpu else ()), *rest])
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    refuse_for_steering(given)
    for name, why in REFUSED.items():
        if given.get(name):
            raise UserError(f"--{name.replace('_', '-')} cannot be given: {why}")
    a_feature = Served.of(settings.served).read({"sae_feature_idx": 0, "sae_strength": 1, "sae_max_activation": 1})
    check_model(a_feature, load_model_config(own.model_path, given), name=own.model_path)
    suit_platform(given)
    vars(args).update(
        given,
        model=own.model_path,
        served_model_name=args.served_model_name or [settings.model],
        host=own.host,
        port=own.port,
        enable_prefix_caching=False,
        worker_cls=WORKER,
        additional_config={**args.additional_config, CONFIG_KEY: settings.served},
        middleware=[*args.middleware, "lm_eval_sae.serving.site.Site"],
    )
    validate_parsed_serve_args(args)
    return args


if __name__ == "__main__":
    run(partial(lm_eval_errors.run, main))
