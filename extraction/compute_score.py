"""ReasonScore of every feature of an SAE, exact, in one pass over the text.

Each batch goes once through the model's first layers, up to the SAE's hook point, once through the SAE's encoder,
and into sums from which the scores of all features follow (formulas: reasonscore/score.py).

    python extraction/compute_score.py --model_path deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
        --sae_path andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts --sae_id blocks.19.hook_resid_post \\
        --dataset_path andreuka18/OpenThoughts-10k-DeepSeek-R1 --n_samples 4096 --output_dir extraction/scores

The output folder holds feature_scores.pt (float32 [d_sae]), feature_stats.safetensors, top_features.csv, two pictures
and run.json. A pass that was cut off continues where it was when the same command is given again.

Over several GPUs: `torchrun --nproc_per_node N extraction/compute_score.py …` shares the rows out. As separate jobs:
`--num_chunks N --chunk_num C` computes a part of the features, into one folder for all, and then

    python extraction/compute_score.py --merge CHUNKS_FOLDER --output_dir extraction/scores
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reasonscore.inputs import Inputs, Parser, add_input_arguments, input_identity, load_inputs, load_weights
from reasonscore.sae import SaeSource

from transformer_lens_r1.loading import PUBLISHED_ROPE_CONTEXT
from transformer_lens_r1.shared.arguments import (
    ArgumentParser,
    fraction,
    int_pair,
    non_negative_float,
    non_negative_int,
    positive_int,
    resolve_device,
)
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import check_output_folder, hash_file
from transformer_lens_r1.shared.locks import locked
from transformer_lens_r1.shared.ranks import Ranks, joined_ranks
from transformer_lens_r1.shared.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from reasonscore.chunks import PassState
    from reasonscore.results import Settings
    from reasonscore.score import ActivationSums, WordGroups
    from torch import Tensor

VOCABULARY = Path(__file__).resolve().parent / "reason_tokens.json"
LIBRARIES = ("torch", "transformers", "transformer-lens", "sae-lens", "datasets")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, with what argparse alone can refuse refused."""
    parser = Parser(description=__doc__)
    add_input_arguments(parser, n_samples=4096)
    score = parser.add_argument_group("score")
    score.add_argument(
        "--tokens_str_path", type=Path, default=VOCABULARY, help="reasoning vocabulary: a JSON list of strings"
    )
    score.add_argument(
        "--expand_range",
        type=int_pair,
        default=(1, 2),
        help="tokens before and after a matched one that belong to the word too (default: 1,2; 0,0: the match alone)",
    )
    score.add_argument(
        "--windows",
        choices=("right", "published"),
        default="right",
        help="published: windows cut off by the start of a row cancel later ones, as in the published code",
    )
    score.add_argument("--alpha", type=non_negative_float, default=0.7, help="weight of the entropy over the words")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, required=True, help="folder for the scores")
    output.add_argument("--topk", type=positive_int, default=100, help="best features in the table and the pictures")
    output.add_argument(
        "--quantile", type=fraction, default=0.997, help="of all scores, marked in the picture (197 of 65,536 above it)"
    )
    output.add_argument(
        "--n_bootstrap",
        type=non_negative_int,
        default=1000,
        help="resamples for the intervals of the best features' scores (0: no intervals)",
    )
    output.add_argument(
        "--save_every_minutes",
        type=non_negative_float,
        default=5.0,
        help="minutes between saved states, in OUTPUT_DIR.unfinished (0: after every batch)",
    )
    jobs = parser.add_argument_group("separate jobs")
    jobs.add_argument("--num_chunks", type=positive_int, default=1, help="parts that the features are split into")
    jobs.add_argument("--chunk_num", type=non_negative_int, default=0, help="the part to compute, from 0")
    jobs.add_argument(
        "--merge", metavar="DIR", help="put the chunks in DIR together, into --output_dir; takes no other flag"
    )
    parser.add_as_published(
        rows="published",
        rope_original_context=PUBLISHED_ROPE_CONTEXT,
        float32_matmul_precision="highest",
        windows="published",
        alpha=1.0,
        expand_range="0,0",
        ignore_tokens="",
    )
    return parser.parse_args(argv)


class Plan(NamedTuple):
    """What the first rank works out before any weights load, and all ranks share."""

    inputs: Inputs
    """Without the tokenizer if there are several ranks, which load it with the model."""
    groups: WordGroups
    white_space_ids: list[int]
    run: dict[str, Any]
    """What determines the sums and scores, up to rounding."""
    record: dict[str, Any]
    """What run.json says of the run besides its counts."""


def prepare(args: argparse.Namespace, ranks: Ranks) -> Plan:
    """Check everything, make the rows of tokens and say how the vocabulary meets them."""
    if args.chunk_num >= args.num_chunks:
        raise UserError(
            f"--chunk_num {args.chunk_num}: with --num_chunks {args.num_chunks} chunks are 0 to {args.num_chunks - 1}"
        )
    from reasonscore.chunks import check_chunk_folder
    from reasonscore.results import STATS
    from reasonscore.score import group_spellings
    from reasonscore.vocabulary import vocabulary_report, white_space_ids

    if args.num_chunks == 1:
        check_output_folder(args.output_dir, STATS)
    spellings = read_vocabulary(args.tokens_str_path)
    inputs = load_inputs(args)
    tokenizer = inputs.tokenizer

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    groups = group_spellings(spellings, encode)
    settings = ("alpha", "topk", "quantile", "n_bootstrap", "expand_range", "windows", "num_chunks")
    identity = {
        **{f"--{name}": getattr(args, name) for name in settings},
        **input_identity(args, inputs),
        "--tokens_str_path": groups,
    }
    if args.num_chunks > 1:
        check_chunk_folder(args.output_dir, identity)
    report = vocabulary_report(spellings, encode, tokenizer.convert_ids_to_tokens, inputs.tokens)
    print("\n".join(report), flush=True)
    record = run_record(args, inputs, ranks)
    shared = inputs if ranks.size == 1 else dataclasses.replace(inputs, tokenizer=None)
    return Plan(shared, groups, white_space_ids(tokenizer), identity, record)


def arithmetic(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """What decides how sums are rounded: an unfinished pass continues only if all of it is the same."""
    import torch

    device = resolve_device(args.device)
    return {
        "--compile_llm": args.compile_llm,
        "--minibatch_size_tokens": args.minibatch_size_tokens,
        "--minibatch_size_features": args.minibatch_size_features,
        "--device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "the number of CPU threads": torch.get_num_threads(),
        "the number of ranks": ranks.size,
        "the version of": {name: version(name) for name in LIBRARIES},
    }


def run_record(args: argparse.Namespace, inputs: Inputs, ranks: Ranks) -> dict[str, Any]:
    """What run.json says of the run besides its counts."""
    source = inputs.source
    return {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "ignored_ids": inputs.ignored,
        "rope_original_context": inputs.rope_original_context,
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
            "weights_sha256": source.weights_sha256,
        },
        "versions": {name: version(name) for name in LIBRARIES},
    }


def compute_sums(args: argparse.Namespace, plan: Plan, ranks: Ranks, state: PassState) -> tuple[ActivationSums, Tensor]:
    """Load model and SAE and pass over this rank's rows; on the first rank, the sums over all rows. And the decoder."""
    from reasonscore.chunks import chunk_features
    from reasonscore.one_pass import add_over_ranks, float32_encoder_share, sum_activations

    source, tokens = plan.inputs.source, plan.inputs.tokens
    model, sae = load_weights(args, plan.inputs)
    features = chunk_features(source.d_sae, args.chunk_num, args.num_chunks)
    in_float32 = args.float32_matmul_precision == "highest" and args.sae_dtype == "float32"
    if in_float32 and args.dtype != "float32" and ranks.is_first and sae.W_enc.is_cuda:
        share = float32_encoder_share(model.twin, features.stop - features.start, tokens.shape[1])
        print(f"with products in float32 the encoder takes some {share:.0%} of the pass, by count for an H100")
    sums = sum_activations(
        model,
        sae,
        tokens,
        plan.groups,
        hook_name=source.hook_name,
        expand_range=args.expand_range,
        ignored_ids=plan.inputs.ignored,
        white_space_ids=plan.white_space_ids,
        published_windows=args.windows == "published",
        rows_per_batch=args.minibatch_size_tokens,
        features_per_block=args.minibatch_size_features,
        features=features,
        rows=ranks.rows(len(tokens)),
        state=state,
        save_every=60 * args.save_every_minutes,
        progress=ranks.is_first,
    )
    add_over_ranks(sums, ranks)
    return sums, sae.W_dec


def finish(args: argparse.Namespace, plan: Plan, sums: ActivationSums, decoder: Tensor) -> None:
    """Write the scores, or this chunk's sums."""
    from reasonscore.chunks import chunk_path, save_sums
    from reasonscore.results import Settings

    words = list(plan.groups)
    settings = Settings(**{name: getattr(args, name) for name in Settings._fields})
    if args.num_chunks == 1:
        finish_scores(args.output_dir, sums, decoder, words, settings, plan.record)
        return
    path = chunk_path(args.output_dir, args.chunk_num, args.num_chunks)
    save_sums(path, sums, {"run": plan.run, "settings": settings._asdict(), "words": words, "record": plan.record})
    print(f"wrote {path}; with all {args.num_chunks} chunks there: --merge {args.output_dir} --output_dir DIR")


def finish_scores(
    folder: Path, sums: ActivationSums, decoder: Tensor, words: list[str], settings: Settings, record: dict[str, Any]
) -> None:
    """Write the folder of scores and print the best of them."""
    from reasonscore.results import compute_result, print_summary, write_scores

    result = compute_result(sums, decoder, words, settings)
    write_scores(folder, result, record)
    print_summary(result)
    print(f"wrote the scores of {len(result.scores.score):,} features to {folder}")


def merge(argv: Sequence[str]) -> None:
    """``--merge DIR --output_dir OUT``: the scores from chunks, as one pass over all features would have given them."""
    parser = ArgumentParser(description="Put chunks of features together. Alpha and all else is as the chunks say.")
    parser.add_argument("--merge", type=Path, required=True, help="folder of chunk_<c>_of_<N>.safetensors")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the scores")
    args = parser.parse_args(argv)
    from reasonscore.chunks import merge_chunks
    from reasonscore.results import STATS, Settings, recorded_decoder

    check_output_folder(args.output_dir, STATS)  # refuses the folder of the chunks too
    sums, about = merge_chunks(args.merge)
    decoder = recorded_decoder(about["record"])
    arguments = {**about["record"]["arguments"], "chunk_num": None, "output_dir": str(args.output_dir)}
    record = {**about["record"], "arguments": arguments}
    finish_scores(args.output_dir, sums, decoder, about["words"], Settings(**about["settings"]), record)


def main(argv: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if argv is None else list(argv)
    if any(word.split("=", 1)[0] == "--merge" for word in given):
        merge(given)
        return
    with joined_ranks() as ranks, ExitStack() as lock:
        args = parse_arguments(given)
        args.device = ranks.join_on(args.device)
        from reasonscore.chunks import PassState, chunk_path

        def begin() -> Plan:
            chunk = chunk_path(args.output_dir, args.chunk_num, args.num_chunks)  # jobs for other chunks may run too
            lock.enter_context(locked(args.output_dir if args.num_chunks == 1 else chunk))
            return prepare(args, ranks)

        plan = ranks.on_first(begin, types=(Plan, Inputs, SaeSource))
        name = f"chunk_{args.chunk_num}_rank_{ranks.rank}"
        state = PassState(args.output_dir, name, {**plan.run, **arithmetic(args, ranks)})
        sums, decoder = compute_sums(args, plan, ranks, state)
        if ranks.is_first:
            finish(args, plan, sums, decoder)
        ranks.wait()
        state.remove()


if __name__ == "__main__":
    run(main)
