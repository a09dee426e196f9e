"""What scoring works out before any weights load: the rows of tokens, the words, and what the result depends on."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonscore.inputs import Inputs, load_inputs, model_identity
from reasonscore.sae import CONFIG
from reasonscore.vocabulary import vocabulary_report

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import check_output_folder, hash_file
from transformer_lens_r1.shared.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from reasonscore.ranks import Ranks
    from reasonscore.score import WordGroups
    from reasonscore.sae import SaeSource
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("torch", "transformers", "transformer-lens", "sae-lens", "datasets")


@dataclass(frozen=True)
class Plan:
    """What the first rank works out before any weights load, and all ranks share."""

    source: SaeSource
    layer: int
    tokens: Tensor
    """int64 [rows, context], on the CPU."""
    ignored: list[int]
    groups: WordGroups
    fingerprint: dict[str, Any]
    """What determines the sums, up to rounding."""
    arithmetic: dict[str, Any]
    """What determines their rounding."""
    record: dict[str, Any]
    """What run.json says of the run besides its counts."""
    tokenizer: PreTrainedTokenizerBase | None
    """The model's; None for several ranks, which load it with the model."""


def prepare(args: argparse.Namespace, ranks: Ranks) -> Plan:
    """Check everything, make the rows of tokens and say how the vocabulary meets them.

    Raises:
        UserError: something is missing or does not fit, or the output folder holds something else.
    """
    from reasonscore.chunks import check_chunk_folder, check_same_run

    if args.output_dir is None:
        raise UserError("nowhere to put the scores: give --output_dir DIR")
    if args.chunk_num >= args.num_chunks:
        raise UserError(
            f"--chunk_num {args.chunk_num}: with --num_chunks {args.num_chunks} chunks are 0 to {args.num_chunks - 1}"
        )
    if args.num_chunks > 1:
        check_chunk_folder(args.output_dir, args.chunk_num, args.num_chunks)
    else:
        from reasonscore.results import STATS

        check_output_folder(args.output_dir, STATS)
    spellings = read_vocabulary(args.tokens_str_path)
    inputs = load_inputs(args)
    if args.num_chunks > inputs.source.d_sae:
        raise UserError(f"--num_chunks {args.num_chunks}: the SAE has only {inputs.source.d_sae} features")

    from reasonscore.score import group_spellings

    def encode(text: str) -> list[int]:
        return inputs.tokenizer.encode(text, add_special_tokens=False)

    groups = group_spellings(spellings, encode)
    sae_hash = inputs.source.weights_hash()
    fingerprint = {**_sums_fingerprint(args, inputs, groups, sae_hash), **_result_fingerprint(args)}
    if args.num_chunks > 1:
        check_same_run(args.output_dir, fingerprint)
    report = vocabulary_report(
        spellings, encode, lambda token: inputs.tokenizer.convert_ids_to_tokens(token), inputs.tokens
    )
    print("\n".join(report), flush=True)
    return Plan(
        source=inputs.source,
        layer=inputs.layer,
        tokens=inputs.tokens,
        ignored=inputs.ignored,
        groups=groups,
        fingerprint=fingerprint,
        arithmetic=_arithmetic_fingerprint(args, inputs, ranks),
        record=_run_record(args, inputs, sae_hash, ranks),
        tokenizer=inputs.tokenizer if ranks.size == 1 else None,
    )


def _sums_fingerprint(
    args: argparse.Namespace, inputs: Inputs, groups: WordGroups, sae_hash: str | None
) -> dict[str, Any]:
    from reasonscore.chunks import hash_tensor

    source = inputs.source
    sae = [sae_hash, hash_file(source.folder / CONFIG)] if source.folder else [sae_hash, source.path, source.sae_id]
    return {
        "the model (--model_path)": model_identity(args.model_path, args.revision),
        "the SAE (--sae_path)": {"sae": sae},
        "the text (--dataset_path, --n_samples, --seed …)": {"tokens": hash_tensor(inputs.tokens)},
        "the vocabulary (--tokens_str_path)": {"words": groups},
        "--expand_range": args.expand_range,
        "--ignore_tokens": inputs.ignored,
        "--dtype": args.dtype,
        "--sae_dtype": args.sae_dtype,
        "--num_chunks": args.num_chunks,
    }


def _result_fingerprint(args: argparse.Namespace) -> dict[str, Any]:
    return {f"--{name}": getattr(args, name) for name in ("alpha", "topk", "quantile", "n_bootstrap", "seed")}


def _arithmetic_fingerprint(args: argparse.Namespace, inputs: Inputs, ranks: Ranks) -> dict[str, Any]:
    import torch

    on_gpu = inputs.device.startswith("cuda")
    return {
        "--minibatch_size_tokens": args.minibatch_size_tokens,
        "--minibatch_size_features": args.minibatch_size_features,
        "--device": torch.cuda.get_device_name(inputs.device) if on_gpu else "cpu",
        "the number of CPU threads": torch.get_num_threads(),
        "the number of ranks": ranks.size,
        "the versions of libraries": {name: version(name) for name in LIBRARIES},
    }


def _run_record(args: argparse.Namespace, inputs: Inputs, sae_hash: str | None, ranks: Ranks) -> dict[str, Any]:
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    source = inputs.source
    return {
        "arguments": arguments,
        "ignored_ids": inputs.ignored,
        "rows": len(inputs.tokens),
        "context_size": inputs.tokens.shape[1],
        "tokens": inputs.tokens.numel(),
        "ranks": ranks.size,
        "vocabulary_sha256": hash_file(args.tokens_str_path),
        "sae": {
            "architecture": source.architecture,
            "d_in": source.d_in,
            "d_sae": source.d_sae,
            "hook_name": source.hook_name,
            "weights_sha256": sae_hash,
        },
        "versions": {name: version(name) for name in LIBRARIES},
    }
