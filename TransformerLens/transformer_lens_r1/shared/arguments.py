"""Command-line arguments that mean the same in every script, and a parser that answers a typo in one line."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformer_lens_r1.architectures import SUPPORTED
from transformer_lens_r1.chat_format import CHAT_FORMATS, DOMAINS, EMPTY_STARTER_CODE
from transformer_lens_r1.shared.errors import EXIT_USER_ERROR, UserError, did_you_mean
from transformer_lens_r1.shared.files import PROVENANCE, check_output_folder, display_name

DTYPES = ("bfloat16", "float16", "float32")
# Ways to make rows of text: `tokenising` describes them.
ROW_RULES = ("stream", "published")
# What a published command does not repeat: credentials, and flags of a single run.
PRIVATE_ARGUMENTS = ("hf_token", "push_only", "help")


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviated flags, with defaults in ``--help`` and one-line errors (exit status 2)."""

    def __init__(self, description: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(description=description, **kwargs)
        self._as_published: dict[str, Any] = {}

    def add_as_published(self, **defaults: Any) -> None:
        """Add ``--as_published``: options take these defaults, and what the command line says still counts."""
        self._as_published = defaults
        changes = ", ".join(
            f"--{name}" if value is True else f"--{name} {shlex.quote(str(value))}" for name, value in defaults.items()
        )
        self.add_argument("--as_published", action="store_true", help=f"as the paper's published code does: {changes}")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        # A misspelt flag often leaves the required one missing too: name the misspelt one, which is the cause.
        given = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        for word in given:
            flag = word.split("=", 1)[0]
            if re.match(r"--[A-Za-z]", flag) and flag not in known:
                self.error(f"unknown flag {flag}{did_you_mean(flag, known)} (--help lists all)")
        if "--as_published" in given:
            self.set_defaults(**self._as_published)
        return super().parse_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"error: {' '.join(message.split())}\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps a script's docstring as it is written, and adds each flag's default to its help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if text and action.default not in (None, False, argparse.SUPPRESS) and "default" not in text:
            text += " (default: %(default)s)"
        return text


def _number(kind: type, expected: str, *, low: float, high: float = sys.float_info.max) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text.strip())
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return read


# Underscores are allowed: 800_000_000.
positive_int = _number(int, "a whole number of at least 1", low=1)
non_negative_int = _number(int, "a whole number of at least 0", low=0)
non_negative_float = _number(float, "a finite number of at least 0", low=0)
fraction = _number(float, "a number between 0 and 1", low=0, high=1)


def int_list(text: str) -> list[int]:
    """Whole numbers with commas between them; an empty string is an empty list."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers separated by commas, got {text!r}") from None


def int_pair(text: str) -> tuple[int, int]:
    """Two whole numbers ≥ 0 with a comma between them, such as ``1,2``."""
    values = int_list(text)
    if len(values) != 2 or min(values) < 0:
        raise argparse.ArgumentTypeError(f"expected two whole numbers like 1,2, got {text!r}")
    return values[0], values[1]


def string_list(text: str) -> list[str]:
    """Names with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def domain_tuple(text: str) -> tuple[str, ...]:
    """Domains of OpenThoughts-114k with commas between them, each once; their order is kept."""
    domains = tuple(part.strip() for part in text.split(","))
    for domain in domains:
        if domain not in DOMAINS:
            raise argparse.ArgumentTypeError(f"unknown domain {domain!r}, expected some of {','.join(DOMAINS)}")
        if domains.count(domain) > 1:
            raise argparse.ArgumentTypeError(f"{domain!r} is there twice")
    return domains


def add_openthoughts_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--domains --empty_starter_code``."""
    parser.add_argument(
        "--domains", type=domain_tuple, default=DOMAINS, help="domains of the records, like math,code (default: all)"
    )
    parser.add_argument(
        "--empty_starter_code",
        choices=EMPTY_STARTER_CODE,
        default="nothing",
        help="what the text of a problem in code has for a starter code of no characters",
    )


def add_chat_format_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--chat_format``."""
    parser.add_argument(
        "--chat_format",
        choices=CHAT_FORMATS,
        default="r1",
        help="the text's format: r1, of the R1 distills, or model, by the chat template of the model at --model_path",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--model_path --dtype --device --revision --trust_remote_code``."""
    group = parser.add_argument_group("model")
    group.add_argument("--model_path", required=True, help=f"Hub id or local folder of a {SUPPORTED} checkpoint")
    group.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="number format of the model's weights")
    group.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N")
    add_revision_arguments(group)


def add_revision_arguments(parser: Any) -> None:
    """Add ``--revision --trust_remote_code``, for scripts that need only a model's tokenizer."""
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub (default: its main branch)")
    parser.add_argument("--trust_remote_code", action="store_true", help="let code from the model's repo run")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--output_dir --hf_user --hf_repo --hf_token --private --push_only``; one of the first three is required."""
    group = parser.add_argument_group("output (--output_dir, --hf_user or both)")
    group.add_argument("--output_dir", type=Path, help="folder to write the data set to")
    group.add_argument("--hf_user", help="Hub user or organisation to push the data set to")
    group.add_argument("--hf_repo", help="Hub data set to push to instead, as user/name")
    group.add_argument("--hf_token", help="Hub token to read and push with (default: HF_TOKEN or the Hub login)")
    group.add_argument("--private", action="store_true", help="make the Hub repository private")
    group.add_argument("--push_only", action="store_true", help="push the finished result of the same command again")


def require_output(args: argparse.Namespace) -> None:
    """Raise `UserError` unless the result has somewhere to go, before any work is spent on it."""
    if args.output_dir is None and args.hf_user is None and args.hf_repo is None:
        raise UserError("nowhere to put the result: give --output_dir DIR, --hf_user NAME, or both")
    if args.push_only and args.hf_user is None and args.hf_repo is None:
        raise UserError("--push_only needs to know where to push: give --hf_user NAME or --hf_repo NAME/REPOSITORY")
    if args.output_dir is not None:
        check_output_folder(args.output_dir, PROVENANCE)


def public_command(parser: argparse.ArgumentParser, args: argparse.Namespace, script: str) -> str:
    """The command that gives ``args``, fit to be published: no token, and of local paths only the last part.

    Args:
        parser: what read ``args``; values that are its defaults are left out.
        args: the arguments.
        script: the script's path from the root of the repository.
    """
    words = ["python", script]
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.dest in PRIVATE_ARGUMENTS or value is None or value is False or value == action.default:
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [*action.option_strings[:1], *(shlex.quote(_published(item)) for item in values)]
    return " ".join(words)


def _published(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    # A path that a user gave as an output need not exist yet, but it is one.
    return value.absolute().name if isinstance(value, Path) else display_name(str(value))


def resolve_device(name: str) -> str:
    """The torch device that ``auto`` means here, or ``name`` itself once torch is known to have it.

    ``auto`` is the CPU only on a machine without a card: on one whose card torch cannot use, the work would take a
    hundred times longer than the user expects.

    Raises:
        UserError: ``name`` is no device, or this machine has none of its kind, or a card that torch cannot use.
    """
    if name == "cpu":
        return name
    import torch

    n_cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", name)
    if match and int(match[1] or 0) < n_cards:
        return "cuda" if name == "auto" else name
    if match and n_cards == 0:
        if (fault := _unusable_card()) is not None:
            raise UserError(f"{fault}; --device cpu runs on the CPU")
        if name == "auto":
            return "cpu"
    raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N; torch sees {n_cards} CUDA devices here")


def _unusable_card() -> str | None:
    """Why torch cannot use the NVIDIA card of this machine; None if there is none, or CUDA_VISIBLE_DEVICES hides it."""
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    try:
        smi = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
        driver = re.search(r"\d+\.[\d.]+", smi.stdout) if smi.returncode == 0 else None
    except OSError:  # there is no such program
        driver = None
    if driver is None and torch.cuda.device_count() == 0:
        return None
    if torch.version.cuda is None:
        return f"there is an NVIDIA card, but torch {torch.__version__} is a build for the CPU: run bash setup.sh"
    return (
        f"there is an NVIDIA card, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it with driver "
        f"{driver.group() if driver else '(version unknown)'}: update it (CUDA 13 needs 580 or newer)"
    )
