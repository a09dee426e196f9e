"""What scoring and dashboards have in common: arguments, and the model, SAE and text they name, checked early."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonscore.sae import SaeSource, check_fits, find_sae
from reasonscore.text_rows import holds_tokens, ignored_ids, sample_rows

from transformer_lens_r1.shared.arguments import (
    DTYPES,
    add_model_arguments,
    int_list,
    positive_int,
    resolve_device,
)
from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def add_input_arguments(parser: argparse.ArgumentParser, *, n_samples: int) -> None:
    """Add the flags for model, SAE and text, and those that bound memory."""
    add_model_arguments(parser)
    sae = parser.add_argument_group("SAE")
    sae.add_argument("--sae_path", required=True, help="folder of a SAELens SAE, SAELens release, or Hub repo")
    sae.add_argument("--sae_id", help="SAE within the release, repo or folder, like blocks.19.hook_resid_post")
    sae.add_argument("--sae_revision", help="branch, tag or commit of the SAE's Hub repo (default: its main branch)")
    sae.add_argument("--sae_dtype", choices=DTYPES, default="float32", help="number format of the SAE's weights")
    text = parser.add_argument_group("text")
    text.add_argument("--dataset_path", required=True, help="data set: folder or Hub id")
    text.add_argument("--dataset_revision", help="branch, tag or commit of the data set on the Hub")
    text.add_argument("--column_name", default="text", help="column of text, or of rows of token ids")
    text.add_argument(
        "--context_size", type=positive_int, help="tokens in a row made from text (default: the SAE's own)"
    )
    text.add_argument(
        "--n_samples", type=positive_int, default=n_samples, help="rows of tokens, drawn by a seeded shuffle"
    )
    text.add_argument(
        "--ignore_tokens",
        type=int_list,
        help="ids that count nowhere, like 128000,128001, or '' for none (default: those the SAE was trained without, "
        "else bos and eos)",
    )
    text.add_argument("--seed", type=int, default=42, help="of the shuffle of rows")
    memory = parser.add_argument_group("memory (results do not depend on it)")
    memory.add_argument("--minibatch_size_tokens", type=positive_int, default=16, help="rows in a forward pass")
    memory.add_argument("--minibatch_size_features", type=positive_int, default=8192, help="features encoded at once")


def model_identity(model_path: str, revision: str | None) -> dict[str, Any]:
    """What tells a model from others, as JSON: for a folder, hashes of samples of its files; else Hub id and commit."""
    from transformer_lens_r1.loading import WEIGHT_PATTERNS
    from transformer_lens_r1.shared.hub import cached_commit

    folder = Path(model_path)
    if not folder.is_dir():
        return {"id": model_path, "commit": cached_commit(model_path, "config.json", revision=revision)}
    files = sorted({path for pattern in ("config.json", *WEIGHT_PATTERNS) for path in folder.glob(pattern)})
    return {path.name: [path.stat().st_size, _hash_samples(path)] for path in files}


def _hash_samples(path: Path, *, n_samples: int = 64, n_bytes: int = 2**16) -> str:
    """SHA-256 of evenly spaced pieces of a file: weights of gigabytes are told apart in an instant."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for sample in range(n_samples):
            file.seek(sample * size // n_samples)
            digest.update(file.read(n_bytes))
    return digest.hexdigest()


@dataclass(frozen=True)
class Inputs:
    """What a script works on once everything cheap has been checked."""

    source: SaeSource
    config: PretrainedConfig
    layer: int
    """The layer whose output the SAE reads."""
    device: str
    tokenizer: PreTrainedTokenizerBase
    tokens: Tensor
    """int64 [rows, context], on the CPU."""
    ignored: list[int]


def load_inputs(args: argparse.Namespace) -> Inputs:
    """Check SAE, model and data set against each other, then make the rows of tokens; no weights are loaded.

    Raises:
        UserError: something is missing or does not fit.
    """
    from transformer_lens_r1 import load_config, load_tokenizer
    from transformer_lens_r1.shared.data import load_rows

    device = resolve_device(args.device)
    source = find_sae(args.sae_path, args.sae_id, revision=args.sae_revision)
    remote = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    config = load_config(args.model_path, **remote)
    layer = check_fits(source, config, args.model_path)
    context_size = args.context_size or source.context_size
    if context_size is None:
        raise UserError(f"SAE {source} does not say its context size: give --context_size")
    dataset = load_rows(args.dataset_path, columns=(args.column_name,), revision=args.dataset_revision)
    holds_tokens(dataset, args.column_name)
    tokenizer = load_tokenizer(args.model_path, **remote)
    tokens = sample_rows(
        dataset,
        tokenizer,
        column=args.column_name,
        context_size=context_size,
        prepend_bos=source.prepend_bos,
        n_samples=args.n_samples,
        vocab_size=config.vocab_size,
        seed=args.seed,
    )
    ignored = ignored_ids(args.ignore_tokens, source.exclude_special_tokens, tokenizer, vocab_size=config.vocab_size)
    return Inputs(source, config, layer, device, tokenizer, tokens, ignored)
