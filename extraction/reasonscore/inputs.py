"""What scoring and dashboards have in common: arguments, and the model, SAE and text they name, checked early."""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from reasonscore.sae import CONFIG, SaeSource, check_fits, find_sae, load_sae
from transformer_lens_r1.shared.arguments import (
    DTYPES,
    ROW_RULES,
    ArgumentParser,
    add_model_arguments,
    int_list,
    positive_int,
    resolve_device,
)
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import hash_file

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import SAE
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from reasonscore.results import SavedScores

# The published scripts tokenise in four processes, each on its part of the documents.
PUBLISHED_SHARDS = 4


class Parser(ArgumentParser):
    """Raises mistakes, so that of several ranks only one says them."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def add_input_arguments(parser: argparse.ArgumentParser, *, n_samples: int) -> None:
    """Add the flags for model, SAE and text, speed and memory."""
    add_model_arguments(parser)
    parser.add_argument(
        "--rope_original_context",
        type=positive_int,
        metavar="N",
        help="scale Llama 3.1's rotary frequencies as if trained on contexts of N tokens (default: its own)",
    )
    sae = parser.add_argument_group("SAE")
    add_sae_arguments(sae)
    sae.add_argument("--sae_dtype", choices=DTYPES, default="float32", help="number format of the SAE's weights")
    text = parser.add_argument_group("text")
    text.add_argument("--dataset_path", required=True, help="data set: folder or Hub id")
    text.add_argument("--dataset_revision", help="branch, tag or commit of the data set on the Hub")
    text.add_argument("--column_name", default="text", help="column of text, or of rows of token ids")
    text.add_argument(
        "--rows",
        choices=ROW_RULES,
        default="stream",
        help="how text becomes rows: documents tokenised one by one, or the joined text in 20 pieces as published",
    )
    text.add_argument("--context_size", type=positive_int, help="tokens in a row made from text (default: the SAE's)")
    text.add_argument("--n_samples", type=positive_int, default=n_samples, help="rows, drawn by a seeded shuffle")
    text.add_argument(
        "--first_rows",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="take the first rows instead of drawing them",
    )
    text.add_argument(
        "--ignore_tokens",
        type=int_list,
        help="ids that count nowhere, like 128000,128001, or '' for none (default: those the SAE was trained without, "
        "else bos and eos)",
    )
    text.add_argument("--seed", type=int, default=42, help="of the shuffle of rows")
    speed = parser.add_argument_group("speed (results change by rounding)")
    speed.add_argument(
        "--float32_matmul_precision",
        choices=("highest", "high"),
        help="of products in float32; high is TF32 on a GPU, several times as fast (default: highest if --dtype is "
        "float32, else high)",
    )
    speed.add_argument(
        "--compile_llm", action="store_true", help="compile the model's layers first: half a minute or less"
    )
    memory = parser.add_argument_group("memory (results do not depend on it)")
    memory.add_argument("--minibatch_size_tokens", type=positive_int, default=16, help="rows in a forward pass")
    memory.add_argument(
        "--minibatch_size_features",
        type=positive_int,
        default=1024,
        help="features scored at once; no effect on dashboards",
    )


def add_sae_arguments(group: Any) -> None:
    """Add ``--sae_path --sae_id --sae_revision``."""
    group.add_argument("--sae_path", required=True, help="folder of a SAELens SAE, SAELens release, or Hub repo")
    group.add_argument("--sae_id", help="SAE within the release, repo or folder, like blocks.19.hook_resid_post")
    group.add_argument("--sae_revision", help="branch, tag or commit of the SAE's Hub repo (default: its main branch)")


@dataclass(frozen=True)
class Inputs:
    """What a script works on once everything cheap has been checked."""

    source: SaeSource
    layer: int
    """The layer whose output the SAE reads."""
    tokenizer: PreTrainedTokenizerBase | None
    tokens: Tensor
    """int64 [rows, context], on the CPU."""
    ignored: list[int]
    vocab_size: int
    """Of the model."""
    rope_original_context: int | None = None
    """What the model's rotary scaling goes by; None: what its config.json says."""


def load_inputs(args: argparse.Namespace) -> Inputs:
    """Check SAE, model and data set against each other, then make the rows of tokens; no weights are loaded.

    Raises:
        UserError: something is missing or does not fit.
    """
    from transformer_lens_r1 import load_config, load_tokenizer
    from transformer_lens_r1.loading import check_rope_context, rope_context_of
    from transformer_lens_r1.shared.data import load_rows

    resolve_device(args.device)
    source = find_sae(args.sae_path, args.sae_id, revision=args.sae_revision)
    remote = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    config = load_config(args.model_path, **remote)
    layer = check_fits(source, config, args.model_path)
    rope_context = check_rope_context(
        args.model_path, config, args.rope_original_context, as_published=args.as_published
    )
    in_force = rope_context or rope_context_of(config)
    if source.rope_original_context not in (None, in_force):
        print(
            f"WARNING: SAE {source} was trained with --rope_original_context {source.rope_original_context}, the model "
            f"here runs with {in_force}: its activations are not those that the SAE knows",
            file=sys.stderr,
        )
    context_size = args.context_size or source.context_size
    if context_size is None:
        raise UserError(f"SAE {source} does not say its context size: give --context_size")
    dataset = load_rows(args.dataset_path, columns=(args.column_name,), revision=args.dataset_revision)
    tokenizer = load_tokenizer(args.model_path, **remote)
    model = {"context_size": context_size, "prepend_bos": source.prepend_bos, "vocab_size": config.vocab_size}
    tokens = draw_rows(args, dataset, tokenizer, column=args.column_name, **model)
    ignored = ignored_ids(args.ignore_tokens, source.exclude_special_tokens, tokenizer, vocab_size=config.vocab_size)
    return Inputs(source, layer, tokenizer, tokens, ignored, config.vocab_size, rope_context)


def draw_rows(
    args: argparse.Namespace, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, column: str, **model: Any
) -> Tensor:
    """`sample_rows` with what the command line says of the draw."""
    return sample_rows(
        dataset,
        tokenizer,
        column=column,
        n_samples=args.n_samples,
        seed=None if args.first_rows else args.seed,
        published=args.rows == "published",
        **model,
    )


def check_same_sae(saved: SavedScores, source: SaeSource, scores_dir: Path) -> None:
    """Raise `UserError` if the scores are known to be of another SAE.

    Some releases have no file of weights to hash, and scores alone do not say it; then only the number of features can
    be compared.
    """
    hashes = saved.run.get("sae", {}).get("weights_sha256"), source.weights_sha256
    n_scores = len(saved.statistics["score"])
    if n_scores != source.d_sae or (None not in hashes and hashes[0] != hashes[1]):
        raise UserError(
            f"the {n_scores:,} scores in {scores_dir} are those of another SAE than {source} ({source.d_sae:,} "
            "features): score it with compute_score.py first"
        )


def matmul_precision(args: argparse.Namespace) -> str:
    """Of products in float32. A bfloat16 model rounds more than TF32 does; who asks for float32 gets it."""
    return args.float32_matmul_precision or ("highest" if args.dtype == "float32" else "high")


def load_weights(args: argparse.Namespace, inputs: Inputs) -> tuple[TransformerBridge, SAE]:
    """The model up to the SAE's hook point, and the SAE with the decoder norm folded in.

    Raises:
        UserError: weights are damaged.
    """
    import torch

    from transformer_lens_r1 import load_model
    from transformer_lens_r1.forward import compile_layers

    torch.set_float32_matmul_precision(matmul_precision(args))
    device = resolve_device(args.device)
    sae = load_sae(inputs.source, device=device, dtype=args.sae_dtype)
    model = load_model(
        args.model_path,
        device=device,
        dtype=args.dtype,
        n_layers=inputs.layer + 1,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        tokenizer=inputs.tokenizer,
        rope_original_context=inputs.rope_original_context,
    )
    if args.compile_llm:
        compile_layers(model)
    return model, sae


def sample_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str,
    context_size: int,
    prepend_bos: bool,
    n_samples: int,
    vocab_size: int,
    seed: int | None = 42,
    published: bool = False,
) -> Tensor:
    """The first ``n_samples`` rows of tokens after a seeded shuffle; all rows if there are fewer.

    A column of ids is taken as it is. Text becomes rows by `transformer_lens_r1.tokenize_and_concatenate`: documents
    joined by eos, cut into ``context_size`` ids, rows that would need padding left out.

    Args:
        dataset: one document or one row of ids per row.
        tokenizer: the model's.
        column: where the text or the ids are.
        context_size: ids in a row made from text; the SAE's own context.
        prepend_bos: start each row made from text with bos; what the SAE was trained with.
        n_samples: rows wanted.
        vocab_size: the model's; ids at or above it are refused.
        seed: of the shuffle; None: no shuffle.
        published: make the rows of text as the paper's published code did, in the four processes of its map.

    Returns:
        int64 [rows, context].

    Raises:
        UserError: the column holds neither text nor ids, less text than one row, or an id outside the vocabulary.
    """
    import torch

    from transformer_lens_r1 import tokenize_and_concatenate

    kind = dataset.features[column]
    if getattr(kind, "dtype", None) in ("string", "large_string"):
        dataset = tokenize_and_concatenate(
            dataset,
            tokenizer,
            context_size=context_size,
            column=column,
            add_bos=prepend_bos,
            vocab_size=vocab_size,
            shards=PUBLISHED_SHARDS if published else None,
        )
        column = "tokens"
        if len(dataset) == 0:
            raise UserError(f"the text gives no row of {context_size} tokens: give more text or a smaller context")
    elif not getattr(getattr(kind, "feature", None), "dtype", "").startswith(("int", "uint")):
        raise UserError(f"column {column!r} holds {kind}; expected text, or rows of token ids")
    rows = dataset.select_columns([column]).with_format(None)
    if seed is not None:
        rows = rows.shuffle(seed=seed)
    tokens = torch.tensor(rows[: min(n_samples, len(rows))][column], dtype=torch.int64)
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise UserError(
            f"the rows hold ids from {tokens.min()} to {tokens.max()}, but the model knows 0 to {vocab_size - 1}: "
            "they were made with another tokenizer"
        )
    return tokens


def ignored_ids(
    choice: list[int] | None,
    excluded: list[int] | bool | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
) -> list[int]:
    """Ids that count nowhere: those asked for, else those the SAE was trained without, else bos and eos.

    Args:
        choice: what the user asked for; an empty list is a choice too.
        excluded: the SAE's ``exclude_special_tokens``: a list of ids, true for every special token, or nothing.
        tokenizer: the model's.
        vocab_size: likewise.

    Raises:
        UserError: the user asked for an id that the model does not know.
    """
    for token in choice or []:
        if not 0 <= token < vocab_size:
            raise UserError(f"--ignore_tokens {token}: the model knows ids 0 to {vocab_size - 1}")
    if choice is not None:
        return choice
    if isinstance(excluded, list):
        return [int(token) for token in excluded]
    if excluded is True:
        return sorted(set(tokenizer.all_special_ids))
    return sorted({tokenizer.bos_token_id, tokenizer.eos_token_id} - {None})


def input_identity(args: argparse.Namespace, inputs: Inputs) -> dict[str, Any]:
    """What tells the model, the SAE and the text of a run from others, for `check_same_run`."""
    source = inputs.source
    config = hash_file(source.folder / CONFIG) if source.folder is not None else f"{source} {source.revision}"
    return {
        "--dtype": args.dtype,
        "--sae_dtype": args.sae_dtype,
        "--float32_matmul_precision": matmul_precision(args),
        "--rope_original_context": inputs.rope_original_context,
        "--rows": args.rows,
        "--n_samples": len(inputs.tokens),
        "--seed": args.seed,
        "--ignore_tokens": inputs.ignored,
        "--model_path": _model_identity(args.model_path, args.revision),
        "--sae_path": {"weights_sha256": source.weights_sha256, "config_sha256": config},
        "--dataset_path": tokens_identity(inputs.tokens),
    }


def tokens_identity(tokens: Tensor) -> dict[str, str]:
    """What tells rows of tokens from others, for `check_same_run`."""
    digest = hashlib.sha256(str(tuple(tokens.shape)).encode() + tokens.numpy().tobytes())
    return {"tokens_sha256": digest.hexdigest()}


def _model_identity(model_path: str, revision: str | None) -> dict[str, Any]:
    """Of a folder, hashes of samples of its files, which take no time for gigabytes; of a Hub model, its commit."""
    from transformer_lens_r1.loading import WEIGHT_PATTERNS
    from transformer_lens_r1.shared.hub import cached_commit

    folder = Path(model_path)
    if not folder.is_dir():
        return {"id": model_path, "commit": cached_commit(model_path, "config.json", revision=revision)}
    files = sorted({path for pattern in ("config.json", *WEIGHT_PATTERNS) for path in folder.glob(pattern)})
    return {f"{path.name} sha256": _hash_samples(path) for path in files}


def _hash_samples(path: Path, *, n_samples: int = 64, n_bytes: int = 2**16) -> str:
    """SHA-256 of a file's size and of evenly spaced pieces of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for sample in range(n_samples):
            file.seek(sample * size // n_samples)
            digest.update(file.read(n_bytes))
    return digest.hexdigest()
