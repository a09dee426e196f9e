"""ReasonScore of every feature of an SAE, exact, in one pass over the text.

Each batch goes once through the model's first layers, up to the SAE's hook point, once through the SAE's encoder,
and into sums from which the scores of all features follow (formulas: reason_score.py).

    python extraction/compute_score.py --model_path deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
        --sae_path andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts --sae_id blocks.19.hook_resid_post \\
        --dataset_path andreuka18/OpenThoughts-10k-DeepSeek-R1 --n_samples 4096 --output_dir extraction/scores

The output folder holds feature_scores.pt (float32 [d_sae]), feature_stats.safetensors, top_features.csv and run.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inputs import add_input_arguments, load_inputs
from sae_io import encoder_blocks, load_sae

from transformer_lens_r1.arguments import ArgumentParser, int_pair, non_negative_float, positive_int
from transformer_lens_r1.errors import UserError, run
from transformer_lens_r1.files import check_output_folder

if TYPE_CHECKING:
    from reason_score import ActivationSums, WordGroups
    from sae_lens import SAE
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

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
    score.add_argument("--output_dir", type=Path, help="folder for the scores (required)")
    score.add_argument("--num_chunks", type=positive_int, default=1, help="1: one pass serves every feature")
    score.add_argument("--chunk_num", type=int, default=0, help="0: the only chunk")
    return parser.parse_args(argv)


def read_vocabulary(path: Path) -> list[str]:
    """The spellings of the reasoning words.

    Raises:
        UserError: no such file, not a JSON list of strings, or nothing in it.
    """
    try:
        spellings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the vocabulary --tokens_str_path {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the vocabulary {path} is not JSON ({error}); expected a list of strings") from error
    if not isinstance(spellings, list) or not all(isinstance(spelling, str) for spelling in spellings):
        raise UserError(f"the vocabulary {path} is not a list of strings")
    if not any(spelling.strip() for spelling in spellings):
        raise UserError(f'the vocabulary {path} is empty: expected words like "wait", " wait", "Wait"')
    return [spelling for spelling in spellings if spelling.strip()]


def sum_activations(
    model: TransformerBridge,
    sae: SAE,
    tokens: Tensor,
    groups: WordGroups,
    *,
    hook_name: str,
    expand_range: tuple[int, int],
    ignored_ids: Sequence[int],
    rows_per_batch: int,
    features_per_block: int,
    progress: bool = True,
) -> ActivationSums:
    """The one pass: sums of every feature's activations over each set of positions.

    Args:
        model: loaded at least up to the hook point.
        sae: with the decoder norm folded in, on the model's device.
        tokens: int64 [rows, context].
        groups: what `group_spellings` gave.
        hook_name: where the SAE reads.
        expand_range: positions before and after a matched token that belong to its word.
        ignored_ids: ids that count nowhere.
        rows_per_batch: rows in a forward pass.
        features_per_block: features encoded at once; another block is another encode, not another forward.
        progress: show a progress bar, in rows.
    """
    import torch
    from reason_score import ActivationSums, find_membership
    from tqdm import tqdm

    from transformer_lens_r1 import residual_stream

    left, right = expand_range
    sums = ActivationSums.zeros(len(groups), sae.cfg.d_sae, sae.W_enc.device)
    blocks = list(encoder_blocks(sae, features_per_block))
    with torch.no_grad(), tqdm(total=len(tokens), desc="scoring", unit="row", disable=not progress) as bar:
        for batch in tokens.split(rows_per_batch):
            batch = batch.to(sums.by_set.device)
            membership = find_membership(batch, groups, left=left, right=right, ignored_ids=ignored_ids)
            sums.count(membership)
            residual = residual_stream(model, batch, hook_name)  # [batch, pos, d_model]
            for features, block in blocks:
                sums.add(block.encode(residual), membership, features)
            bar.update(len(batch))
    return sums


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.output_dir is None:
        raise UserError("nowhere to put the scores: give --output_dir DIR")
    check_output_folder(args.output_dir, "run.json")
    if args.num_chunks != 1 or args.chunk_num != 0:
        raise UserError("one pass serves every feature, so there are no chunks: leave out --num_chunks and --chunk_num")
    spellings = read_vocabulary(args.tokens_str_path)
    inputs = load_inputs(args)

    from reason_score import group_spellings, reason_scores
    from score_files import print_summary, write_scores

    from transformer_lens_r1 import load_model

    groups = group_spellings(spellings, lambda text: inputs.tokenizer.encode(text, add_special_tokens=False))
    sae = load_sae(inputs.source, device=inputs.device, dtype=args.sae_dtype)
    model = load_model(
        args.model_path,
        device=inputs.device,
        dtype=args.dtype,
        n_layers=inputs.layer + 1,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        tokenizer=inputs.tokenizer,
    )
    sums = sum_activations(
        model,
        sae,
        inputs.tokens,
        groups,
        hook_name=inputs.source.hook_name,
        expand_range=args.expand_range,
        ignored_ids=inputs.ignored,
        rows_per_batch=args.minibatch_size_tokens,
        features_per_block=args.minibatch_size_features,
    )
    if not sums.by_set.isfinite().all():
        formats = f"--dtype {args.dtype}, --sae_dtype {args.sae_dtype}"
        raise UserError(f"some activations are not finite in {formats}: try float32")
    scores = reason_scores(sums.by_set, sums.n_positions, alpha=args.alpha)
    write_scores(args.output_dir, scores, sums, list(groups), args=args, inputs=inputs)
    print_summary(scores, sums, list(groups))
    print(f"wrote the scores of {len(scores.score):,} features to {args.output_dir}")


if __name__ == "__main__":
    run(main)
