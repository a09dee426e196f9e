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
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonscore.inputs import Inputs, add_input_arguments, load_inputs, model_identity
from reasonscore.sae import SaeSource, find_sae, load_sae

from transformer_lens_r1.shared.arguments import ArgumentParser, int_list, positive_int
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder, display_name, write_json
from transformer_lens_r1.shared.hub import check_hub_access, push_folder

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
    shown.add_argument("--scores_dir", type=Path, required=True, help="folder that compute_score.py wrote")
    shown.add_argument("--topk", type=positive_int, default=100, help="how many of the best features to show")
    shown.add_argument("--features", type=int_list, help="show these instead, like 12,99")
    shown.add_argument("--output_dir", type=Path, help="folder for the pages (required)")
    shown.add_argument("--separate_files", action="store_true", help="a page for each feature: always so")
    shown.add_argument("--hf_repo", help="push the folder to this repository of the Hub too, as user/name")
    shown.add_argument("--hf_repo_type", choices=("space", "dataset"), default="space", help="what to push it as")
    shown.add_argument("--hf_token", help="Hub token to push with (default: HF_TOKEN or the Hub login)")
    shown.add_argument("--private", action="store_true", help="make the Hub repository private")
    return parser.parse_args(argv)


def chosen_features(ranked: list[int], features: list[int] | None, topk: int) -> list[int]:
    """The features to show, best first: those asked for, else the ``topk`` best.

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
    wanted = set(features)
    return [feature for feature in ranked if feature in wanted]


def check_same_sae(saved: SavedScores, source: SaeSource, scores_dir: Path) -> None:
    """Raise `UserError` where the scores are known to be of another SAE.

    Some releases have no file of weights to hash; then only the number of features can be compared.
    """
    hashes = saved.run["sae"]["weights_sha256"], source.weights_hash()
    same_size = len(saved.statistics["score"]) == source.d_sae
    if not same_size or (None not in hashes and hashes[0] != hashes[1]):
        raise UserError(
            f"the scores in {scores_dir} are those of another SAE than {source}: score it with compute_score.py first"
        )


def score_interval(saved: SavedScores, feature: int) -> tuple[float, float] | None:
    """The 95 % interval of a feature's score; None where the scores hold none for it."""
    low, high = (saved.statistics.get(name) for name in ("score_low", "score_high"))
    if low is None or high is None:
        return None
    interval = low[feature].item(), high[feature].item()
    return interval if all(math.isfinite(end) for end in interval) else None


def feature_facts(saved: SavedScores, feature: int, rank: int) -> FeatureFacts:
    """What the scores say about one feature."""
    from feature_pages.pages import FeatureFacts

    row = {name: values[feature] for name, values in saved.statistics.items()}
    return FeatureFacts(
        feature=feature,
        rank=rank,
        score=row["score"].item(),
        interval=score_interval(saved, feature),
        max_activation=row["max_activation"].item(),
        firing_frequency=row["firing_frequency"].item(),
        entropy=row["entropy"].item(),
        word_means=tuple(zip(saved.words, row["word_means"].tolist(), strict=True)),
    )


def what_is_computed(
    args: argparse.Namespace, features: list[int], inputs: Inputs, saved: SavedScores
) -> dict[str, Any]:
    """All that the pages follow from; an unfinished run is continued by one that agrees in it."""
    return {
        "the model (--model_path)": model_identity(args.model_path, args.revision),
        "the versions of libraries": {name: version(name) for name in LIBRARIES},
        "--dtype": args.dtype,
        "--sae_path and --sae_id": str(inputs.source),
        "--sae_dtype": args.sae_dtype,
        "the SAE's weights": inputs.source.weights_hash(),
        "the scores": saved.digest(),
        "the features shown (--topk, --features)": features,
        "--n_samples": len(inputs.tokens),
        "the text's tokens": hashlib.sha256(inputs.tokens.numpy().tobytes()).hexdigest(),
        "--ignore_tokens": inputs.ignored,
        "--seed": args.seed,
    }


def begin(folder: Path, computed: dict[str, Any], n_bytes: int) -> None:
    """Make the folder for unfinished work, or find in it the work of the same command.

    Args:
        folder: where the work lies until all is done.
        computed: what `what_is_computed` gave.
        n_bytes: what the activations take in it.

    Raises:
        UserError: another command's work, or other files, lie there, or the disk is too full.
    """
    if (folder / BEGUN).is_file():
        begun = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
        other = [name for name, value in computed.items() if begun.get(name) != value]
        if other:
            raise UserError(
                f"{folder} holds an unfinished run that differs in {', '.join(other)}: "
                "repeat its command to finish it, or delete that folder to start over"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}, where unfinished work goes, holds other files: move them, or name another folder")
    free = shutil.disk_usage(folder.parent).free
    if free < n_bytes + SPARE_BYTES:
        raise UserError(
            f"the activations take {n_bytes / 1e9:.1f} GB beside --output_dir, where {free / 1e9:.1f} GB are free: "
            "choose another disk, a smaller --topk, or a smaller --n_samples"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / BEGUN, computed)


def finished_snippets(folder: Path, facts: Sequence[FeatureFacts]) -> dict[int, Snippet]:
    """The snippets of the features whose pages are complete: the snippet is written after the page."""
    from feature_pages.pages import Snippet

    files = {fact.feature: folder / f"snippet_{fact.feature}.json" for fact in facts}
    return {
        feature: Snippet(**json.loads(file.read_text(encoding="utf-8")))
        for feature, file in files.items()
        if file.is_file()
    }


def make_pages(folder: Path, facts: Sequence[FeatureFacts], inputs: Inputs, args: argparse.Namespace) -> None:
    """Run the model over the text, then write each feature's page and snippet into ``folder``; keep finished ones."""
    import torch
    from feature_pages.activations import store_activations
    from feature_pages.pages import best_snippet, write_feature_page
    from feature_pages.panels import Panels
    from feature_pages.text import token_text
    from tqdm import tqdm

    from transformer_lens_r1 import load_model

    finished = finished_snippets(folder, facts)
    if len(finished) == len(facts):
        return
    features = [fact.feature for fact in facts]
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
    hook_name = inputs.source.hook_name
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
        device=inputs.device,
    )
    with torch.no_grad():
        panels = Panels(
            inputs.tokens, features, stored, sae=sae, unembedding=model.W_U, hook_name=hook_name, seed=args.seed
        )
        decode = token_text(inputs.tokenizer)
        with tqdm(total=len(facts), initial=len(finished), desc="pages", unit="feature") as bar:
            for index, fact in enumerate(facts):
                if fact.feature in finished:
                    continue
                data, layout = panels.compute(index)
                neighbours = (
                    facts[index - 1] if index > 0 else None,
                    facts[index + 1] if index + 1 < len(facts) else None,
                )
                write_feature_page(folder, fact, data, layout, decode, neighbours=neighbours)
                snippet = best_snippet(data, inputs.tokenizer)
                write_json(folder / f"snippet_{fact.feature}.json", snippet._asdict())
                bar.update(1)


def publish(work: Path, args: argparse.Namespace, facts: Sequence[FeatureFacts], inputs: Inputs, tokens: int) -> None:
    """Put the finished pages, their assets, the index and a record into ``--output_dir``, whole or not at all."""
    from feature_pages.pages import write_assets, write_index

    model, sae = display_name(args.model_path), display_name(args.sae_path)
    title = f"{len(facts)} features by ReasonScore"
    about = (
        f"model {model} · SAE {sae} at {inputs.source.hook_name} · text shown: {inputs.tokens.numel():,} tokens of "
        f"{display_name(args.dataset_path)} · scored on {tokens:,} tokens"
    )
    snippets = finished_snippets(work, facts)
    with atomic_directory(args.output_dir) as folder:
        for fact in facts:
            shutil.copy(work / fact.page, folder)
        write_assets(folder)
        write_index(folder, [(fact, snippets[fact.feature]) for fact in facts], title=title, about=about)
        write_json(
            folder / RECORD,
            {
                "model": model,
                "sae": sae,
                "hook_name": inputs.source.hook_name,
                "dataset": display_name(args.dataset_path),
                "rows": len(inputs.tokens),
                "context_size": inputs.tokens.shape[1],
                "dtype": args.dtype,
                "seed": args.seed,
                "ignored_ids": inputs.ignored,
                "features": [fact.feature for fact in facts],
                "versions": {name: version(name) for name in LIBRARIES},
            },
        )
        # The header makes a static Space of the folder where it is pushed as one.
        card = f"---\ntitle: {json.dumps(title)}\nsdk: static\napp_file: index.html\nviewer: false\n---\n\n{about}\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(work)


def check_push(args: argparse.Namespace) -> None:
    """Raise `UserError` where ``--hf_repo`` asks for a push that the Hub would refuse, before any work is done."""
    if args.hf_repo is None:
        return
    owner, slash, name = args.hf_repo.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise UserError(f"--hf_repo {args.hf_repo!r}: expected user/name")
    owner_args = argparse.Namespace(hf_user=owner, hf_token=args.hf_token, private=args.private)
    # A data set of pages has no provenance.json, by which token data sets are told from foreign ones.
    check_hub_access(owner_args, repo_id=args.hf_repo if args.hf_repo_type == "space" else None, repo_type="space")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.output_dir is None:
        raise UserError("nowhere to put the pages: give --output_dir DIR")
    # Not index.html: any web site has one.
    check_output_folder(args.output_dir, RECORD)
    if not args.scores_dir.is_dir():
        raise UserError(f"no folder of scores {args.scores_dir}: run extraction/compute_score.py first")

    from reasonscore.results import rank_features, read_scores

    saved = read_scores(args.scores_dir)
    check_same_sae(saved, find_sae(args.sae_path, args.sae_id, revision=args.sae_revision), args.scores_dir)
    ranked = rank_features(saved.statistics["score"]).tolist()
    features = chosen_features(ranked, args.features, args.topk)
    check_push(args)
    if args.ignore_tokens is None:  # the same positions as the scores are about
        args.ignore_tokens = saved.run.get("ignored_ids")
    inputs = load_inputs(args)
    rank_of = {feature: rank for rank, feature in enumerate(ranked, start=1)}
    facts = [feature_facts(saved, feature, rank_of[feature]) for feature in features]

    work = args.output_dir.absolute().with_name(f"{args.output_dir.absolute().name}.partial")
    begin(work, what_is_computed(args, features, inputs, saved), n_bytes=4 * len(features) * inputs.tokens.numel())
    make_pages(work, facts, inputs, args)
    publish(work, args, facts, inputs, saved.run["tokens"])
    print(f"wrote the pages of {len(features)} features; open {args.output_dir / 'index.html'}")
    if args.hf_repo is not None:
        repo_id = push_folder(
            args.output_dir, args.hf_repo, repo_type=args.hf_repo_type, token=args.hf_token, private=args.private
        )
        print(f"pushed the pages to the Hub as the {args.hf_repo_type} {repo_id}")


if __name__ == "__main__":
    run(main)
