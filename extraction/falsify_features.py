"""Do the best features mean reasoning, or do a few tokens decide? The test of Ma et al. 2026, and what it lacks.

For the best distinct features by ReasonScore, and for as many others that fire as often and as strongly: how much the
token alone says, whether the feature's tokens are enough to bring it about in ordinary text, whether they are needed,
and whether the same token is more active in reasoning text. Definitions: falsification/experiment.py; the rules of the
verdict: falsification/verdict.py.

    python extraction/falsify_features.py --model_path deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
        --sae_path andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts --sae_id blocks.19.hook_resid_post \\
        --dataset_path andreuka18/OpenThoughts-10k-DeepSeek-R1 --ordinary_dataset_path monology/pile-uncopyrighted \\
        --scores_dir extraction/scores --output_dir extraction/falsification_results

The output folder holds index.html, falsification.csv, strategies.csv, falsification.safetensors (what was measured on
each text), a picture and falsification.json. Until all is done the work lies in <output_dir>.partial, and the same
command continues it: 4 bytes for each tested feature and token. `torchrun --nproc_per_node N` shares the texts out.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reasonscore.choice import add_choice_arguments, choose_features, matched_features
from reasonscore.inputs import (
    Inputs,
    Parser,
    add_input_arguments,
    check_same_sae,
    draw_rows,
    input_identity,
    load_inputs,
    load_weights,
    tokens_identity,
)
from reasonscore.sae import SaeSource
from reasonscore.unfinished import begin, work_folder

from transformer_lens_r1.loading import PUBLISHED_ROPE_CONTEXT
from transformer_lens_r1.shared.arguments import (
    non_negative_int,
    positive_int,
    string_list,
)
from transformer_lens_r1.shared.errors import UserError, did_you_mean, run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder, display_name
from transformer_lens_r1.shared.locks import locked
from transformer_lens_r1.shared.ranks import Ranks, joined_ranks

if TYPE_CHECKING:
    from falsification.material import Experiment, Observed, PerText
    from falsification.measure import Encode
    from reasonscore.results import SavedScores
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

LEAST_LENGTH, LEAST_TEXTS = 16, 10
"""Tokens in a text, and texts of each kind: with less, intervals mean nothing."""
SAVE_EVERY = 20.0
"""Seconds between two states that an interrupted run continues from."""
LIBRARIES = ("torch", "transformers", "transformer-lens", "sae-lens", "scipy")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what argparse alone can refuse refused."""
    from falsification.injection import STRATEGIES

    parser = Parser(description=__doc__)
    add_input_arguments(parser, n_samples=1024)
    ordinary = parser.add_argument_group("ordinary text, into which tokens are put")
    ordinary.add_argument(
        "--ordinary_dataset_path", required=True, help="data set of ordinary text, like monology/pile-uncopyrighted"
    )
    ordinary.add_argument("--ordinary_column_name", default="text", help="its column of text, or of token ids")
    ordinary.add_argument("--ordinary_dataset_revision", help="branch, tag or commit of it on the Hub")
    ordinary.add_argument(
        "--ordinary_documents", type=positive_int, default=10_000, help="its first documents are read, no more"
    )
    tested = parser.add_argument_group("what is tested, and how")
    tested.add_argument("--scores_dir", type=Path, required=True, help="folder that compute_score.py wrote")
    add_choice_arguments(tested, "test")
    tested.add_argument(
        "--n_matched", type=non_negative_int, default=1, help="matched features that are not in the top, for each"
    )
    tested.add_argument("--n_texts", type=positive_int, default=500, help="texts that tokens are put into")
    tested.add_argument("--text_length", type=positive_int, default=64, help="tokens in a text")
    tested.add_argument(
        "--strategies", type=string_list, default=STRATEGIES, help=f"some of {','.join(STRATEGIES)} (default: all)"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the results")
    parser.add_as_published(
        rows="published",
        rope_original_context=PUBLISHED_ROPE_CONTEXT,
        float32_matmul_precision="highest",
        ignore_tokens="",
    )
    args = parser.parse_args(argv)
    args.strategies = tuple(dict.fromkeys(args.strategies))
    for name in args.strategies:
        if name not in STRATEGIES:
            parser.error(f"--strategies: unknown strategy {name!r}{did_you_mean(name, STRATEGIES)}")
    if not args.strategies:
        parser.error(f"--strategies: expected some of {','.join(STRATEGIES)}")
    if args.text_length < LEAST_LENGTH:
        parser.error(f"--text_length {args.text_length}: expected at least {LEAST_LENGTH} tokens")
    ordinary_text = (args.ordinary_dataset_path, args.ordinary_dataset_revision, args.ordinary_column_name)
    if ordinary_text == (args.dataset_path, args.dataset_revision, args.column_name):
        parser.error("--ordinary_dataset_path is the reasoning text too: give another one, of ordinary text")
    return args


class Plan(NamedTuple):
    """What the first rank works out before any weights load, and all ranks share."""

    inputs: Inputs
    """Of the reasoning text; without the tokenizer if there are several ranks."""
    ordinary: Tensor
    """int64 [rows, context]."""
    features: dict[int, int | None]
    """With the top feature that each is the null of; None for a top feature."""
    ranks_and_scores: list[tuple[int, float]]
    """Of each feature."""
    comma: int
    run: dict[str, Any]
    """What determines the results."""


def tested_features(args: argparse.Namespace, saved: SavedScores) -> dict[int, int | None]:
    """The features to test, top ones first, and for each the top feature that it is matched to, or None."""
    top = choose_features(saved.statistics, args)
    found: dict[int, int | None] = dict.fromkeys(top)
    if args.n_matched:
        remedy = "give --n_matched 0, or score again with compute_score.py"
        matched = matched_features(saved, top, args.n_matched, args.scores_dir, remedy=remedy)
        found |= {other: feature for feature, others in matched.items() for other in others}
    return found


def prepare(args: argparse.Namespace, ranks: Ranks) -> Plan:
    """Check everything, make the rows of both texts, and choose the features."""
    from reasonscore.results import read_scores
    from reasonscore.score import ranks_of

    from transformer_lens_r1.shared.data import load_rows

    saved = read_scores(args.scores_dir)
    if args.ignore_tokens is None:  # the same positions as the scores are about
        args.ignore_tokens = saved.run.get("ignored_ids")
    inputs = load_inputs(args)
    check_same_sae(saved, inputs.source, args.scores_dir)
    if inputs.source.prepend_bos and inputs.tokenizer.bos_token_id is not None:
        # Whatever the scores counted: at bos activations are so large that a text's maximum would be about it alone.
        inputs = replace(inputs, ignored=sorted({*inputs.ignored, inputs.tokenizer.bos_token_id}))
    features = tested_features(args, saved)
    ordinary = draw_rows(
        args,
        load_rows(
            args.ordinary_dataset_path,
            columns=(args.ordinary_column_name,),
            revision=args.ordinary_dataset_revision,
            first=args.ordinary_documents,
        ),
        inputs.tokenizer,
        column=args.ordinary_column_name,
        context_size=inputs.tokens.shape[1],
        prepend_bos=inputs.source.prepend_bos,
        vocab_size=inputs.vocab_size,
    )
    check_texts(inputs.tokens, ordinary, args)
    run = {
        "the features tested (--topk, --features, --n_matched)": list(features),
        "--n_texts": args.n_texts,
        "--text_length": args.text_length,
        "--strategies": list(args.strategies),
        "--ordinary_dataset_path": tokens_identity(ordinary),
        **input_identity(args, inputs),
        "--compile_llm": args.compile_llm,
        "the number of ranks": ranks.size,
        "the version of": {name: version(name) for name in LIBRARIES},
    }
    comma = inputs.tokenizer.encode(",", add_special_tokens=False)[-1]
    n_bytes = 4 * len(features) * (inputs.tokens.numel() + ordinary.numel())
    begin(work_folder(args.output_dir), run, n_bytes)
    if ranks.size > 1:
        inputs = replace(inputs, tokenizer=None)
    score = saved.statistics["score"]
    rank_of = ranks_of(score)
    ranks_and_scores = [(rank_of[feature], float(score[feature])) for feature in features]
    return Plan(inputs, ordinary, features, ranks_and_scores, comma, run)


def check_texts(reasoning: Tensor, ordinary: Tensor, args: argparse.Namespace) -> None:
    """Raise `UserError` if the two texts cannot be compared."""
    if reasoning.shape[1] != ordinary.shape[1]:
        raise UserError(
            f"the rows of ids differ in length: {reasoning.shape[1]} tokens in --dataset_path, {ordinary.shape[1]} in "
            "--ordinary_dataset_path"
        )
    if reasoning.shape[1] < args.text_length:
        raise UserError(
            f"--text_length {args.text_length}: the rows have {reasoning.shape[1]} tokens; give a smaller one"
        )
    for name, rows in (("--dataset_path", reasoning), ("--ordinary_dataset_path", ordinary)):
        n_texts = min(args.n_texts, len(rows) * (rows.shape[1] // args.text_length))
        if n_texts < LEAST_TEXTS:
            raise UserError(
                f"{name} gives {n_texts} texts of {args.text_length} tokens, fewer than {LEAST_TEXTS}: give more text, "
                "or a larger --n_texts"
            )
    known = {row.tobytes() for row in reasoning.numpy()}
    same = sum(row.tobytes() in known for row in ordinary.numpy())
    if same:
        raise UserError(
            f"{same:,} of the {len(ordinary):,} rows of ordinary text are rows of the reasoning text too: give "
            "another --ordinary_dataset_path"
        )


def observe_texts(args: argparse.Namespace, plan: Plan, model: Any, sae: Any, ranks: Ranks) -> list[Observed]:
    """The reasoning and the ordinary text, with the features' activations on them, mapped from files."""
    from falsification.material import Observed
    from feature_pages.activations import store_activations

    observed = []
    for name, tokens in (("reasoning", plan.inputs.tokens), ("ordinary", plan.ordinary)):
        folder = work_folder(args.output_dir) / name
        folder.mkdir(exist_ok=True)
        stored = store_activations(
            model,
            sae,
            tokens,
            list(plan.features),
            folder,
            hook_name=plan.inputs.source.hook_name,
            ignored_ids=plan.inputs.ignored,
            rows_per_batch=args.minibatch_size_tokens,
            ranks=ranks,
        )
        observed.append(Observed(tokens.numpy(), stored.parts))
    return observed


def measure(experiment: Experiment, encode: Encode, state: Path, ranks: Ranks) -> PerText:
    """Run this rank's share of the changed texts, from where an earlier run was interrupted; on the first, all."""
    import numpy as np
    import torch
    from falsification.material import PerText
    from falsification.measure import is_measured, measure_changed, measure_unchanged
    from safetensors.numpy import load_file, save_file
    from tqdm import tqdm

    from transformer_lens_r1.shared.files import atomic_file

    measured = PerText(**load_file(state)) if state.is_file() else measure_unchanged(experiment, encode)
    units = experiment.units()[ranks.rank :: ranks.size]
    left = [unit for unit in units if not is_measured(experiment, measured, unit)]
    saved = time.monotonic()
    total = sum(experiment.n_texts(unit) for unit in left)
    with tqdm(total=total, desc="injected texts", unit="text", disable=not ranks.is_first) as bar:
        for done in measure_changed(experiment, encode, measured, left):
            bar.update(done)
            if time.monotonic() - saved > SAVE_EVERY:
                with atomic_file(state) as temporary:
                    save_file(measured.arrays(), temporary)
                saved = time.monotonic()
    if ranks.size > 1:
        mine = torch.from_numpy(np.where(np.isnan(measured.changed), -np.inf, measured.changed))
        ranks.maximum(mine)  # into the first rank's
        measured.changed = np.where(np.isinf(mine.numpy()), np.nan, mine.numpy())
    return measured


def write_all(
    args: argparse.Namespace,
    plan: Plan,
    experiment: Experiment,
    measured: PerText,
    encode: Encode,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """What the measurements say, as tables, pages and a picture, into ``--output_dir``, whole or not at all."""
    from falsification.experiment import findings
    from falsification.page import find_examples, write_pages
    from falsification.results import Tested, print_verdicts, write_results
    from feature_pages.pages import token_text

    decode = token_text(tokenizer)
    told = zip(plan.features.items(), plan.ranks_and_scores, findings(experiment, measured), strict=True)
    tested = [
        Tested(feature, rank, score, matched_to, finding) for (feature, matched_to), (rank, score), finding in told
    ]
    record = {
        "model": display_name(args.model_path),
        "sae": display_name(args.sae_path),
        "sae_sha256": plan.inputs.source.weights_sha256,
        "hook_name": plan.inputs.source.hook_name,
        "reasoning_dataset": display_name(args.dataset_path),
        "ordinary_dataset": display_name(args.ordinary_dataset_path),
        "rows": [len(plan.inputs.tokens), len(plan.ordinary)],
        "n_texts": [len(experiment.reasoning_texts), len(experiment.ordinary_texts)],
        "text_length": args.text_length,
        "seed": args.seed,
        "ignored_ids": plan.inputs.ignored,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    about = (
        f"model {record['model']} · SAE {record['sae']} at {record['hook_name']} · tokens put into "
        f"{record['n_texts'][1]} texts of {args.text_length} tokens of {record['ordinary_dataset']} · reasoning text: "
        f"{record['reasoning_dataset']}"
    )
    examples = find_examples(experiment, measured, encode, tested, decode)
    with atomic_directory(args.output_dir) as folder:
        write_results(
            folder, tested, experiment, measured, lambda gram: "".join(decode(token) for token in gram), record
        )
        write_pages(folder, tested, examples, decode, about=about)
    print_verdicts(tested)
    print(f"wrote the test of {len(tested)} features; open {args.output_dir / 'index.html'}")


def main(argv: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if argv is None else list(argv)
    with joined_ranks(advice="give the same command again") as ranks, ExitStack() as lock:
        args = parse_arguments(given)
        args.device = ranks.join_on(args.device)
        import torch
        from falsification.material import Experiment, Settings
        from falsification.results import RUN
        from reasonscore.sae import encoder_of

        from transformer_lens_r1 import residual_stream

        def begun() -> Plan:
            check_output_folder(args.output_dir, RUN)
            lock.enter_context(locked(args.output_dir))
            return prepare(args, ranks)

        plan = ranks.on_first(begun, types=(Plan, Inputs, SaeSource))
        model, sae = load_weights(args, plan.inputs)
        observed = observe_texts(args, plan, model, sae, ranks)
        settings = Settings(
            comma=plan.comma,
            ignored_ids=tuple(plan.inputs.ignored),
            strategies=tuple(args.strategies),
            n_texts=args.n_texts,
            text_length=args.text_length,
            seed=args.seed,
            tokens_per_pass=args.minibatch_size_tokens * plan.ordinary.shape[1],
        )
        experiment = Experiment(*observed, settings)
        columns = encoder_of(sae, torch.tensor(list(plan.features), device=sae.W_enc.device))

        def encode(ids: Tensor) -> Tensor:
            return columns(residual_stream(model, ids.to(sae.W_enc.device), plan.inputs.source.hook_name))

        state = work_folder(args.output_dir) / f"measured_{ranks.rank}.safetensors"
        measured = measure(experiment, encode, state, ranks)
        if ranks.is_first:
            write_all(args, plan, experiment, measured, encode, plan.inputs.tokenizer or model.tokenizer)
            shutil.rmtree(work_folder(args.output_dir))
        ranks.wait()


if __name__ == "__main__":
    run(main)
