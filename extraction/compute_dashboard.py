"""One page for each of the best features by ReasonScore, and an index: what a feature fires on and what it writes.

SAEDashboard computes the panels: activating text by strength, activation histogram, logit effects, tables. The
pages need no network.

    python extraction/compute_dashboard.py --model_path deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
        --sae_path andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts --sae_id blocks.19.hook_resid_post \\
        --dataset_path andreuka18/OpenThoughts-10k-DeepSeek-R1 --scores_dir extraction/scores --topk 100 \\
        --output_dir extraction/dashboards

The output folder holds index.html, feature_<index>.html and assets/. The model runs over the text once. Until all is
done the work lies in <output_dir>.partial, and the same command continues it: 4 bytes for each shown feature and token.
Memory holds one batch of rows, and one feature's activations.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonscore.inputs import (
    Inputs,
    add_input_arguments,
    check_same_sae,
    input_identity,
    load_inputs,
    load_weights,
)
from reasonscore.sae import find_sae

from transformer_lens_r1.loading import PUBLISHED_ROPE_CONTEXT
from transformer_lens_r1.shared.arguments import ArgumentParser, int_list, positive_int
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder, display_name, write_json
from transformer_lens_r1.shared.hub import check_hub_access, push_folder
from transformer_lens_r1.shared.locks import locked
from transformer_lens_r1.shared.same_run import check_same_run

if TYPE_CHECKING:
    from feature_pages.pages import FeatureFacts, Snippet
    from reasonscore.results import SavedScores

RECORD = "dashboards.json"
BEGUN = "begun.json"
SPARE_BYTES = 100_000_000
"""Room for the pages and the scripts that they load."""
LIBRARIES = ("torch", "transformers", "transformer-lens", "sae-lens", "sae-dashboard", "plotly", "mpld3")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what argparse alone can refuse refused."""
    parser = ArgumentParser(description=__doc__)
    add_input_arguments(parser, n_samples=1024)
    shown = parser.add_argument_group("what is shown, and where")
    shown.add_argument(
        "--scores_dir",
        type=Path,
        required=True,
        help="folder that compute_score.py wrote, or scores alone: a file, or a folder with nothing but published ones",
    )
    shown.add_argument("--topk", type=positive_int, default=100, help="how many of the best features to show")
    shown.add_argument("--features", type=int_list, help="show these instead, like 12,99")
    shown.add_argument(
        "--n_quantiles", type=positive_int, default=5, help="intervals of activation that a page has text from"
    )
    shown.add_argument(
        "--tokens_around", type=positive_int, default=10, help="tokens shown on either side of an activating one"
    )
    shown.add_argument("--output_dir", type=Path, required=True, help="folder for the pages")
    shown.add_argument("--separate_files", action="store_true", help="a page for each feature: always so")
    shown.add_argument("--hf_repo", help="push the folder to this repository of the Hub too, as user/name")
    shown.add_argument("--hf_repo_type", choices=("space", "dataset"), default="space", help="what to push it as")
    shown.add_argument("--hf_token", help="Hub token to push with (default: HF_TOKEN or the Hub login)")
    shown.add_argument("--private", action="store_true", help="make the Hub repository private")
    parser.add_as_published(
        rows="published",
        rope_original_context=PUBLISHED_ROPE_CONTEXT,
        first_rows=True,
        ignore_tokens="",
        n_samples=5000,
        n_quantiles=10,
        tokens_around=5,
    )
    return parser.parse_args(argv)


def feature_facts(saved: SavedScores, feature: int, rank: int) -> FeatureFacts:
    """What the scores say about one feature."""
    from feature_pages.pages import FeatureFacts

    row: dict[str, Any] = {name: values[feature].tolist() for name, values in saved.statistics.items()}
    has_interval = not math.isnan(row.get("score_low", math.nan))  # only the best have one
    return FeatureFacts(
        feature=feature,
        rank=rank,
        interval=(row["score_low"], row["score_high"]) if has_interval else None,
        word_means=tuple(zip(saved.words, row.get("word_means", ()), strict=True)),
        **{name: row.get(name) for name in ("score", "max_activation", "firing_frequency", "entropy")},
    )


def with_max_activation(facts: Sequence[FeatureFacts], folder: Path) -> list[FeatureFacts]:
    """The facts, with the largest activation on the text shown if the scores came alone; the pass must be complete."""
    import numpy as np
    from feature_pages.activations import ACTIVATIONS

    if not facts[0].scores_alone:
        return list(facts)
    stored = np.load(folder / ACTIVATIONS, mmap_mode="r")  # [features, rows, context]
    return [replace(fact, max_activation=float(values.max())) for fact, values in zip(facts, stored, strict=True)]


def check_push(args: argparse.Namespace) -> None:
    """Raise `UserError` if ``--hf_repo`` asks for a push that the Hub would refuse, before any work is done."""
    if args.hf_repo is None:
        return
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", args.hf_repo):
        raise UserError(f"--hf_repo {args.hf_repo!r}: expected user/name")
    account = argparse.Namespace(hf_user=args.hf_repo.split("/")[0], hf_token=args.hf_token, private=args.private)
    # A data set of pages has no provenance.json, by which token data sets are told from foreign ones.
    check_hub_access(account, repo_id=args.hf_repo if args.hf_repo_type == "space" else None, repo_type="space")


def begin(folder: Path, run: dict[str, Any], n_bytes: int) -> None:
    """Make the folder for unfinished work, or find in it the work of a run that depends on the same.

    The activations will take ``n_bytes`` in it: a full disk would end the run after hours.
    """
    if (folder / BEGUN).is_file():
        begun = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
        check_same_run(folder, begun, run, remedy="repeat its command to finish it, or delete it to start over")
        return
    check_output_folder(folder, BEGUN, name="the folder for unfinished work,")
    free = shutil.disk_usage(folder.parent).free
    if free < n_bytes + SPARE_BYTES:
        raise UserError(
            f"the activations take {n_bytes / 1e9:.1f} GB beside --output_dir, where {free / 1e9:.1f} GB are free: "
            "choose another disk, a smaller --topk, or a smaller --n_samples"
        )
    write_json(folder / BEGUN, run)


def finished_snippets(folder: Path, facts: Sequence[FeatureFacts]) -> dict[int, Snippet]:
    """The snippets of the features whose pages are complete: the snippet is written after the page."""
    from feature_pages.pages import Snippet

    files = {fact.feature: folder / f"snippet_{fact.feature}.json" for fact in facts}
    return {
        feature: Snippet(**json.loads(file.read_text(encoding="utf-8")))
        for feature, file in files.items()
        if file.is_file()
    }


def make_pages(
    folder: Path, facts: Sequence[FeatureFacts], inputs: Inputs, args: argparse.Namespace
) -> list[FeatureFacts]:
    """Run the model over the text, then write each feature's page and snippet into ``folder``; keep finished ones.

    Returns:
        The facts as the pages show them.
    """
    import torch
    from feature_pages.activations import store_activations
    from feature_pages.pages import best_snippet, token_text, write_feature_page
    from feature_pages.panels import Panels
    from tqdm import tqdm

    finished = finished_snippets(folder, facts)
    if len(finished) == len(facts):
        return with_max_activation(facts, folder)
    features, hook_name = [fact.feature for fact in facts], inputs.source.hook_name
    model, sae = load_weights(args, inputs)
    stored = store_activations(
        model,
        sae,
        inputs.tokens,
        features,
        folder,
        hook_name=hook_name,
        ignored_ids=inputs.ignored,
        rows_per_batch=args.minibatch_size_tokens,
        features_per_block=args.minibatch_size_features,
    )
    facts = with_max_activation(facts, folder)
    decode = token_text(inputs.tokenizer)
    with torch.no_grad(), tqdm(total=len(facts), initial=len(finished), desc="pages", unit="feature") as bar:
        panels = Panels(
            inputs.tokens,
            features,
            stored,
            sae=sae,
            unembedding=model.W_U,
            hook_name=hook_name,
            n_quantiles=args.n_quantiles,
            tokens_around=args.tokens_around,
            seed=args.seed,
        )
        for index, (fact, *neighbours) in enumerate(zip(facts, [None, *facts], [*facts[1:], None], strict=False)):
            if fact.feature in finished:
                continue
            data, layout = panels.compute(index)
            write_feature_page(folder, fact, data, layout, decode, neighbours=neighbours)
            write_json(folder / f"snippet_{fact.feature}.json", best_snippet(data, inputs.tokenizer)._asdict())
            bar.update(1)
    return facts


def publish(work: Path, args: argparse.Namespace, facts: Sequence[FeatureFacts], inputs: Inputs, scored: str) -> None:
    """Put the finished pages, their assets, the index and a record into ``--output_dir``, whole or not at all."""
    from feature_pages.pages import write_assets, write_index

    model, sae = display_name(args.model_path), display_name(args.sae_path)
    title = f"{len(facts)} features by ReasonScore"
    about = (
        f"model {model} · SAE {sae} at {inputs.source.hook_name} · text shown: {inputs.tokens.numel():,} tokens of "
        f"{display_name(args.dataset_path)} · {scored}"
    )
    record = {
        "model": model,
        "sae": sae,
        "hook_name": inputs.source.hook_name,
        "dataset": display_name(args.dataset_path),
        "rows": len(inputs.tokens),
        "context_size": inputs.tokens.shape[1],
        "dtype": args.dtype,
        "rope_original_context": inputs.rope_original_context,
        "row_rule": args.rows,
        "seed": args.seed,
        "first_rows": args.first_rows,
        "ignored_ids": inputs.ignored,
        "n_quantiles": args.n_quantiles,
        "tokens_around": args.tokens_around,
        "max_activation_of": "the text shown" if facts[0].scores_alone else "the scored text",
        "features": [fact.feature for fact in facts],
        "versions": {name: version(name) for name in LIBRARIES},
    }
    # The header makes a static Space of the folder if it is pushed as one.
    card = f"---\ntitle: {json.dumps(title)}\nsdk: static\napp_file: index.html\nviewer: false\n---\n\n{about}\n"
    snippets = finished_snippets(work, facts)
    with atomic_directory(args.output_dir) as folder:
        for fact in facts:
            shutil.copy(work / fact.page, folder)
        write_assets(folder)
        write_index(folder, [(fact, snippets[fact.feature]) for fact in facts], title=title, about=about)
        write_json(folder / RECORD, record)
        (folder / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(work)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_output_folder(args.output_dir, RECORD)  # not index.html: any web site has one
    with locked(args.output_dir):
        make_dashboards(args)


def make_dashboards(args: argparse.Namespace) -> None:
    """Read the scores and the text, make the pages in a folder beside ``--output_dir``, and move them there."""
    from reasonscore.results import read_scores
    from reasonscore.score import rank_features

    saved = read_scores(args.scores_dir)
    for feature in args.features or ():
        if not 0 <= feature < len(saved.statistics["score"]):
            raise UserError(f"--features {feature}: the SAE's features are 0 to {len(saved.statistics['score']) - 1}")
    check_same_sae(saved, find_sae(args.sae_path, args.sae_id, revision=args.sae_revision), args.scores_dir)
    ranked = rank_features(saved.statistics["score"]).tolist()
    features = sorted(set(args.features or ranked[: args.topk]), key=ranked.index)
    check_push(args)
    if args.ignore_tokens is None:  # the same positions as the scores are about
        args.ignore_tokens = saved.run.get("ignored_ids")
    inputs = load_inputs(args)
    facts = [feature_facts(saved, feature, ranked.index(feature) + 1) for feature in features]

    work = args.output_dir.absolute().with_name(f"{args.output_dir.absolute().name}.partial")
    depends_on = {
        "the features shown (--topk, --features)": features,
        "--n_quantiles": args.n_quantiles,
        "--tokens_around": args.tokens_around,
        "the version of": {name: version(name) for name in LIBRARIES},
        **input_identity(args, inputs),
        "--scores_dir": {"sha256": saved.digest()},
    }
    begin(work, depends_on, n_bytes=4 * len(features) * inputs.tokens.numel())
    facts = make_pages(work, facts, inputs, args)
    scored = "scores without statistics" if saved.alone else f"scored on {saved.run['tokens']:,} tokens"
    publish(work, args, facts, inputs, scored)
    print(f"wrote the pages of {len(features)} features; open {args.output_dir / 'index.html'}")
    if args.hf_repo is not None:
        repo_id = push_folder(
            args.output_dir, args.hf_repo, repo_type=args.hf_repo_type, token=args.hf_token, private=args.private
        )
        print(f"pushed the pages to the Hub as the {args.hf_repo_type} {repo_id}")


if __name__ == "__main__":
    run(main)
