"""One page for each of the best features by ReasonScore, and an index: what a feature fires on and what it writes.

SAEDashboard computes the panels: activating text by strength, activation histogram, logit effects, tables. The
pages need no network.

    python extraction/compute_dashboard.py --model_path deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
        --sae_path andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts --sae_id blocks.19.hook_resid_post \\
        --dataset_path andreuka18/OpenThoughts-10k-DeepSeek-R1 --scores_dir extraction/scores --topk 100 \\
        --output_dir extraction/dashboards

The output folder holds index.html, feature_<index>.html and assets/. Memory: 4 bytes for each shown feature and token.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inputs import Inputs, add_input_arguments, load_inputs
from sae_io import load_sae

from transformer_lens_r1.arguments import ArgumentParser, int_list, positive_int
from transformer_lens_r1.errors import UserError, run
from transformer_lens_r1.files import atomic_directory, check_output_folder

if TYPE_CHECKING:
    from dashboard_pages import FeatureFacts
    from sae_dashboard.sae_vis_data import SaeVisData
    from sae_lens import SAE
    from score_files import SavedScores
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

SHOWN_AROUND = 10
"""Tokens shown before and after an activating one."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what argparse alone can refuse refused."""
    parser = ArgumentParser(description=__doc__)
    add_input_arguments(parser, n_samples=1024)
    shown = parser.add_argument_group("what is shown, and where")
    shown.add_argument("--scores_dir", type=Path, required=True, help="folder that compute_score.py wrote")
    shown.add_argument("--topk", type=positive_int, default=100, help="how many of the best features to show")
    shown.add_argument("--features", type=int_list, help="show these instead, like 12,99")
    shown.add_argument("--output_dir", type=Path, help="folder for the pages (required)")
    return parser.parse_args(argv)


def chosen_features(ranked: list[int], features: list[int] | None, topk: int) -> list[int]:
    """The features to show: those asked for, else the ``topk`` best.

    Raises:
        UserError: a feature the SAE has not.
    """
    if features is None:
        return ranked[:topk]
    if not features:
        raise UserError("--features is empty: give indices like 12,99, or leave it out for the best by score")
    for feature in features:
        if not 0 <= feature < len(ranked):
            raise UserError(f"--features {feature}: the SAE's features are 0 to {len(ranked) - 1}")
    return list(dict.fromkeys(features))


def differ(hash_of_scores: str | None, hash_of_sae: str | None) -> bool:
    """Whether the two SAEs are known to be different ones; some releases have no file of weights to hash."""
    return None not in (hash_of_scores, hash_of_sae) and hash_of_scores != hash_of_sae


def feature_facts(saved: SavedScores, feature: int, rank: int) -> FeatureFacts:
    """What the scores say about one feature."""
    from dashboard_pages import FeatureFacts

    row = {name: values[feature] for name, values in saved.statistics.items()}
    return FeatureFacts(
        feature=feature,
        rank=rank,
        score=row["score"].item(),
        max_activation=row["max_activation"].item(),
        firing_frequency=row["firing_frequency"].item(),
        entropy=row["entropy"].item(),
        best_word=saved.words[int(row["word_means"].argmax())],
    )


class _TokensToDevice:
    """The model as SAEDashboard calls it: with tokens that it has moved to the CPU."""

    def __init__(self, model: TransformerBridge, device: str) -> None:
        self._model, self._device = model, device

    def run_with_hooks(self, tokens: Tensor, **options: Any) -> Any:
        return self._model.run_with_hooks(tokens.to(self._device), **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def compute_panels(
    model: TransformerBridge,
    sae: SAE,
    tokens: Tensor,
    features: list[int],
    *,
    hook_name: str,
    ignored_ids: Sequence[int] = (),
    rows_per_batch: int = 16,
    features_per_pass: int | None = None,
    device: str = "cpu",
    seed: int = 42,
) -> SaeVisData:
    """Run SAEDashboard over the text.

    Args:
        model: loaded at least up to the hook point; its unembedding gives the logit effects.
        sae: with the decoder norm folded in.
        tokens: int64 [rows, context].
        features: which to compute.
        hook_name: where the SAE reads.
        ignored_ids: ids where activations are taken as 0.
        rows_per_batch: rows in a forward pass.
        features_per_pass: with fewer than ``features`` the model runs over the text again for each further group.
        device: where model and SAE are.
        seed: of the sequences drawn from each interval of activations.
    """
    from sae_dashboard.components_config import (
        ActsHistogramConfig,
        Column,
        FeatureTablesConfig,
        LogitsHistogramConfig,
        LogitsTableConfig,
        SequencesConfig,
    )
    from sae_dashboard.layout import SaeVisLayoutConfig
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from tqdm import tqdm

    class Runner(SaeVisRunner):
        def get_progress_bar(self, tokens: Any, feature_batches: Any, features_list: Any) -> list[tqdm]:
            batches = -(-len(tokens) // self.cfg.minibatch_size_tokens) * len(feature_batches)
            return [
                tqdm(total=batches, desc="activations", unit="batch"),
                tqdm(total=len(features_list), desc="panels", unit="feature"),
            ]

    around = min(SHOWN_AROUND, (tokens.shape[1] - 3) // 2)
    layout = SaeVisLayoutConfig(
        columns=[
            Column(FeatureTablesConfig()),
            Column(ActsHistogramConfig(), LogitsTableConfig(), LogitsHistogramConfig()),
            Column(SequencesConfig(stack_mode="stack-none", buffer=(around, around), n_quantiles=5)),
        ],
        height=750,
    )
    config = SaeVisConfig(
        hook_point=hook_name,
        features=features,
        minibatch_size_features=features_per_pass or len(features),
        minibatch_size_tokens=rows_per_batch,
        device=device,
        ignore_tokens=set(ignored_ids),
        feature_centric_layout=layout,
        seed=seed,
        verbose=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="eindex")
        return Runner(config).run(encoder=sae, model=_TokensToDevice(model, device), tokens=tokens)


def write_dashboards(
    folder: Path, panels: SaeVisData, facts: Sequence[FeatureFacts], inputs: Inputs, *, about: str
) -> None:
    """Write assets, one page for each feature and the index; whole or not at all."""
    from dashboard_pages import best_snippet, token_text, write_assets, write_feature_page, write_index

    decode = token_text(inputs.tokenizer)
    with atomic_directory(folder) as temporary:
        write_assets(temporary)
        rows = []
        for fact in facts:
            data = panels.feature_data_dict[fact.feature]
            write_feature_page(temporary, fact, data, panels.cfg.feature_centric_layout, decode)
            rows.append((fact, best_snippet(data, inputs.tokenizer)))
        write_index(temporary, rows, title=f"{len(rows)} features by ReasonScore", facts=about)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.output_dir is None:
        raise UserError("nowhere to put the pages: give --output_dir DIR")
    # Not index.html: any web site has one.
    check_output_folder(args.output_dir, "assets/d3_selection.js")
    if not args.scores_dir.is_dir():
        raise UserError(f"no folder of scores {args.scores_dir}: run extraction/compute_score.py first")

    from score_files import rank_features, read_scores

    saved = read_scores(args.scores_dir)
    ranked = rank_features(saved.statistics["score"]).tolist()
    features = chosen_features(ranked, args.features, args.topk)
    inputs = load_inputs(args)
    if len(ranked) != inputs.source.d_sae or differ(saved.run["sae"]["weights_sha256"], inputs.source.weights_hash()):
        raise UserError(f"the scores in {args.scores_dir} are those of another SAE than {inputs.source}")

    from transformer_lens_r1 import load_model

    model = load_model(
        args.model_path,
        device=inputs.device,
        dtype=args.dtype,
        # One more than the SAE needs, where there is one: SAEDashboard stops the forward pass where the layer behind
        # the hook begins, and without such a layer the final norm and the unembedding would run for nothing.
        n_layers=min(inputs.layer + 2, inputs.config.num_hidden_layers),
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        tokenizer=inputs.tokenizer,
    )
    panels = compute_panels(
        model,
        load_sae(inputs.source, device=inputs.device, dtype=args.sae_dtype),
        inputs.tokens,
        features,
        hook_name=inputs.source.hook_name,
        ignored_ids=inputs.ignored,
        rows_per_batch=args.minibatch_size_tokens,
        features_per_pass=args.minibatch_size_features,
        device=inputs.device,
        seed=args.seed,
    )
    rank_of = {feature: rank for rank, feature in enumerate(ranked, start=1)}
    facts = [feature_facts(saved, feature, rank_of[feature]) for feature in sorted(features, key=rank_of.__getitem__)]
    about = (
        f"model {args.model_path} · SAE {inputs.source} at {inputs.source.hook_name} · "
        f"{inputs.tokens.numel():,} tokens of {args.dataset_path} · scores from {saved.run['tokens']:,} tokens"
    )
    write_dashboards(args.output_dir, panels, facts, inputs, about=about)
    print(f"wrote the pages of {len(features)} features; open {args.output_dir / 'index.html'}")


if __name__ == "__main__":
    run(main)
