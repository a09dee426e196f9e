"""ReasonScore of every feature of an SAE, exact, in one pass over the text.

Each batch goes once through the model's first layers, up to the SAE's hook point, once through the SAE's encoder,
and into sums from which the scores of all features follow (formulas: reason_score.py).

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
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reasonscore.inputs import add_input_arguments
from reasonscore.ranks import Ranks, joined_ranks
from reasonscore.sae import load_sae
from reasonscore.plan import Plan, prepare

from transformer_lens_r1.shared.arguments import (
    ArgumentParser,
    fraction,
    int_pair,
    non_negative_float,
    non_negative_int,
    positive_int,
    resolve_device,
)
from transformer_lens_r1.shared.errors import EXIT_USER_ERROR, UserError, run
from transformer_lens_r1.shared.files import check_output_folder

if TYPE_CHECKING:
    from reasonscore.score import ActivationSums
    from reasonscore.chunks import PassState

VOCABULARY = Path(__file__).resolve().parent / "reason_tokens.json"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what argparse alone can refuse refused."""
    parser = ArgumentParser(description=__doc__)
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
    score.add_argument("--alpha", type=non_negative_float, default=0.7, help="weight of the entropy over the words")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, help="folder for the scores (required)")
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
    return parser.parse_args(argv)


def pass_state(args: argparse.Namespace, plan: Plan, ranks: Ranks) -> PassState:
    """Where this rank keeps its state.

    Raises:
        UserError: an unfinished pass lies there that is another run's.
    """
    from reasonscore.chunks import PassState, state_folder

    name = f"chunk_{args.chunk_num}_rank_{ranks.rank}"
    state = PassState(state_folder(args.output_dir), name, {**plan.fingerprint, **plan.arithmetic})
    state.check()
    return state


def compute_sums(args: argparse.Namespace, plan: Plan, ranks: Ranks, state: PassState) -> ActivationSums:
    """Load model and SAE and pass over this rank's rows; on the first rank, the sums over all rows.

    Raises:
        UserError: weights are damaged, or activations are not finite.
    """
    from reasonscore.chunks import chunk_features
    from reasonscore.one_pass import add_over_ranks, sum_activations

    from transformer_lens_r1 import load_model

    device = resolve_device(args.device)
    sae = load_sae(plan.source, device=device, dtype=args.sae_dtype)
    model = load_model(
        args.model_path,
        device=device,
        dtype=args.dtype,
        n_layers=plan.layer + 1,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        tokenizer=plan.tokenizer,
    )
    sums = sum_activations(
        model,
        sae,
        plan.tokens,
        plan.groups,
        hook_name=plan.source.hook_name,
        expand_range=args.expand_range,
        ignored_ids=plan.ignored,
        rows_per_batch=args.minibatch_size_tokens,
        features_per_block=args.minibatch_size_features,
        features=chunk_features(plan.source.d_sae, args.chunk_num, args.num_chunks),
        rows=ranks.rows(len(plan.tokens)),
        state=state,
        save_every=60 * args.save_every_minutes,
        progress=ranks.is_first,
    )
    add_over_ranks(sums, ranks)
    return sums


def finish(args: argparse.Namespace, plan: Plan, sums: ActivationSums) -> None:
    """Write the scores, or this chunk's sums."""
    from reasonscore.chunks import chunk_path, save_sums
    from reasonscore.results import Settings, compute_result, print_summary, write_scores

    settings = Settings(args.alpha, args.topk, args.quantile, args.n_bootstrap, args.seed)
    if args.num_chunks > 1:
        path = chunk_path(args.output_dir, args.chunk_num, args.num_chunks)
        about = {
            "fingerprint": plan.fingerprint,
            "settings": settings._asdict(),
            "words": list(plan.groups),
            "d_sae": plan.source.d_sae,
            "record": plan.record,
        }
        save_sums(path, sums, about)
        print(f"wrote {path}; with all {args.num_chunks} chunks there: --merge {args.output_dir} --output_dir DIR")
        return
    result = compute_result(sums, list(plan.groups), settings)
    write_scores(args.output_dir, result, plan.record)
    print_summary(result)
    print(f"wrote the scores of {len(result.scores.score):,} features to {args.output_dir}")


def merge(argv: Sequence[str]) -> None:
    """``--merge DIR --output_dir OUT``: the scores from chunks, as one pass over all features would have given them."""
    parser = ArgumentParser(description="Put chunks of features together. Alpha and all else is as the chunks say.")
    parser.add_argument("--merge", type=Path, required=True, help="folder of chunk_<c>_of_<N>.safetensors")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the scores")
    args = parser.parse_args(argv)
    if args.output_dir.resolve() == args.merge.resolve():
        raise UserError("--output_dir is the folder of the chunks, which the scores would replace; name another folder")
    from reasonscore.results import STATS

    check_output_folder(args.output_dir, STATS)

    from reasonscore.chunks import merge_chunks
    from reasonscore.results import Settings, compute_result, print_summary, write_scores

    sums, about = merge_chunks(args.merge)
    result = compute_result(sums, about["words"], Settings(**about["settings"]))
    arguments = {**about["record"]["arguments"], "chunk_num": None, "output_dir": str(args.output_dir)}
    write_scores(args.output_dir, result, {**about["record"], "arguments": arguments})
    print_summary(result)
    print(f"merged the scores of {len(result.scores.score):,} features into {args.output_dir}")


def main(argv: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if argv is None else list(argv)
    if any(word.split("=", 1)[0] == "--merge" for word in given):
        merge(given)
        return
    with joined_ranks() as ranks:
        args = parse_arguments(given) if ranks.size == 1 else _parse_once(given)
        if ranks.size > 1:
            args.device = resolve_device(ranks.device(args.device))
            ranks.connect(args.device)
        plan = ranks.on_first(lambda: prepare(args, ranks))
        state = pass_state(args, plan, ranks)
        sums = compute_sums(args, plan, ranks, state)
        if ranks.is_first:
            finish(args, plan, sums)
        ranks.wait()
        state.remove()


def _parse_once(argv: Sequence[str]) -> argparse.Namespace:
    """`parse_arguments` for one of several ranks: a mistake is raised, so that only one of them says it.

    Raises:
        UserError: what argparse would have printed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_arguments(argv)
    except SystemExit as ended:
        if ended.code != EXIT_USER_ERROR:
            raise
        raise UserError(said.getvalue().removeprefix("error: ")) from None


if __name__ == "__main__":
    run(main)
