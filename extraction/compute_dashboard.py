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

Over several GPUs: `torchrun --nproc_per_node N extraction/compute_dashboard.py …` shares out the rows, then the pages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reasonscore.choice import add_choice_arguments, choose_features
from reasonscore.inputs import (
    Inputs,
    Parser,
    add_input_arguments,
    check_same_sae,
    input_identity,
    load_inputs,
    load_weights,
)
from reasonscore.sae import SaeSource, find_sae
from reasonscore.unfinished import begin, work_folder

from transformer_lens_r1.loading import PUBLISHED_ROPE_CONTEXT
from transformer_lens_r1.shared.arguments import positive_int
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder, display_name, write_json
from transformer_lens_r1.shared.hub import check_hub_access, push_folder
from transformer_lens_r1.shared.locks import locked
from transformer_lens_r1.shared.ranks import Ranks, joined_ranks

if TYPE_CHECKING:
    from feature_pages.pages import FeatureFacts, Snippet
    from reasonscore.results import SavedScores
RECORD = "dashboards.json"
CLUSTERS = "clusters.json"
LIBRARIES = ("torch", "transformers", "transformer-lens", "sae-lens", "sae-dashboard", "plotly", "mpld3")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what argparse alone can refuse refused."""
    parser = Parser(description=__doc__)
    add_input_arguments(parser, n_samples=1024)
    shown = parser.add_argument_group("what is shown, and where")
    shown.add_argument(
        "--scores_dir",
        type=Path,
        required=True,
        help="folder that compute_score.py wrote, or scores alone: a file, or a folder with nothing but published ones",
    )
    add_choice_arguments(shown, "show")
    shown.add_argument(
        "--n_quantiles", type=positive_int, default=5, help="intervals of activation that a page has text from"
    )
    shown.add_argument(
        "--tokens_around", type=positive_int, default=10, help="tokens shown on either side of an activating one"
    )
    shown.add_argument(
        "--falsification_dir", type=Path, help="folder that falsify_features.py wrote: show its result on the pages"
    )
    shown.add_argument("--output_dir", type=Path, required=True, help="folder for the pages")
    shown.add_argument(
        "--neuronpedia",
        type=Path,
        metavar="DIR",
        help="folder for the shown features in the format Neuronpedia imports",
    )
    shown.add_argument("--separate_files", action="store_true", help="a page for each feature: always so")
    shown.add_argument("--hf_repo", help="push the folder to this repository of the Hub too, as user/name")
    shown.add_argument("--hf_repo_type", choices=("space", "dataset"), default="space", help="what to push it as")
    shown.add_argument("--hf_token", help="Hub token to push with (default: HF_TOKEN or the Hub login)")
    shown.add_argument("--private", action="store_true", help="make the Hub repository private")
    parser.add_as_published(
        rows="published",
        rope_original_context=PUBLISHED_ROPE_CONTEXT,
        float32_matmul_precision="highest",
        first_rows=True,
        ignore_tokens="",
        n_samples=5000,
        n_quantiles=10,
        tokens_around=5,
    )
    return parser.parse_args(argv)


class Plan(NamedTuple):
    """What the first rank works out before any weights load, and all ranks share."""

    inputs: Inputs
    """Without the tokenizer if there are several ranks, which load it with the model."""
    facts: list[FeatureFacts]
    """Of the features to show, in this order."""
    finished: list[int]
    """Features whose pages are complete."""
    scored: str
    """What the scores are about, in words."""
    sections: dict[str, str]
    """HTML for some of the features' pages, by feature."""


def feature_facts(saved: SavedScores, feature: int, rank_of: Sequence[int]) -> FeatureFacts:
    """What the scores say about one feature; ``rank_of`` has every feature's rank."""
    from feature_pages.pages import FeatureFacts
    from reasonscore.distinct import similar_features
    from reasonscore.score import PARTS

    row: dict[str, Any] = {name: values[feature].tolist() for name, values in saved.statistics.items()}
    has_interval = not math.isnan(row.get("score_low", math.nan))  # only the best have one
    return FeatureFacts(
        feature=feature,
        rank=rank_of[feature],
        interval=(row["score_low"], row["score_high"]) if has_interval else None,
        word_means=tuple(zip(saved.words, row.get("word_means", ()), strict=True)),
        parts=tuple((name, row[name]) for name in PARTS if name in row),
        similar=tuple((other, rank_of[other]) for other in similar_features(saved.statistics, feature)),
        **{name: row.get(name) for name in ("score", "max_activation", "firing_frequency", "entropy")},
    )


def facts_after_pass(facts: Sequence[FeatureFacts], folder: Path, ranks: Ranks) -> list[FeatureFacts]:
    """The facts, with what the complete pass over the text shown adds.

    That is the largest activation if the scores came alone, and similar features by activations too.
    """
    from feature_pages.activations import read_activations

    if facts[0].scores_alone:
        maxima = [part.max(axis=(1, 2), initial=0) for part in read_activations(folder, ranks.size)]  # each [features]
        facts = [replace(fact, max_activation=float(max(values))) for fact, *values in zip(facts, *maxima, strict=True)]
    clusters: dict[int, set[tuple[int, int]]] = {}
    first_of = json.loads((folder / CLUSTERS).read_text(encoding="utf-8"))
    for fact, first in zip(facts, first_of, strict=True):
        clusters.setdefault(first, set()).update([(fact.feature, fact.rank), *fact.similar])
    return [
        replace(
            fact, similar=tuple(pair for pair in sorted(clusters[first], key=itemgetter(1)) if pair[1] != fact.rank)
        )
        for fact, first in zip(facts, first_of, strict=True)
    ]


def check_push(args: argparse.Namespace) -> None:
    """Raise `UserError` if ``--hf_repo`` asks for a push that the Hub would refuse, before any work is done."""
    if args.hf_repo is None:
        return
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", args.hf_repo):
        raise UserError(f"--hf_repo {args.hf_repo!r}: expected user/name")
    account = argparse.Namespace(hf_user=args.hf_repo.split("/")[0], hf_token=args.hf_token, private=args.private)
    # A data set of pages has no provenance.json, by which token data sets are told from foreign ones.
    check_hub_access(account, repo_id=args.hf_repo if args.hf_repo_type == "space" else None, repo_type="space")


def read_sections(args: argparse.Namespace, source: SaeSource) -> dict[str, str]:
    """What `falsify_features.py` found out, as HTML for each feature's page.

    Raises:
        UserError: the folder is no result of it, or one about another SAE.
    """
    if args.falsification_dir is None:
        return {}
    files = [args.falsification_dir / name for name in ("sections.json", "falsification.json")]
    for file in files:
        if not file.is_file():
            raise UserError(f"--falsification_dir: {file} is missing; run extraction/falsify_features.py first")
    sections, record = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    if record["sae_sha256"] != source.weights_sha256:
        raise UserError(f"--falsification_dir {args.falsification_dir} is about another SAE than {source}")
    return sections


def finished_snippets(folder: Path, facts: Sequence[FeatureFacts]) -> dict[int, Snippet]:
    """The snippets of the features whose pages are complete: the snippet is written after the page."""
    from feature_pages.pages import Snippet

    files = {fact.feature: folder / f"snippet_{fact.feature}.json" for fact in facts}
    return {
        feature: Snippet(**json.loads(file.read_text(encoding="utf-8")))
        for feature, file in files.items()
        if file.is_file()
    }


def make_pages(folder: Path, plan: Plan, args: argparse.Namespace, ranks: Ranks) -> list[FeatureFacts]:
    """Run the model over the text, then write each feature's page and snippet into ``folder``; keep finished ones.

    Each rank makes an equal share of the pages.

    Returns:
        The facts as the pages show them.
    """
    import torch
    from feature_pages.activations import store_activations
    from feature_pages.neuronpedia import settings, write_feature
    from feature_pages.pages import best_snippet, token_text, write_feature_page
    from feature_pages.panels import Panels
    from reasonscore.distinct import cosines, first_of_cluster
    from tqdm import tqdm

    inputs, facts = plan.inputs, plan.facts
    if len(plan.finished) == len(facts):
        return facts_after_pass(facts, folder, ranks)
    features, hook_name = [fact.feature for fact in facts], inputs.source.hook_name
    model, sae = load_weights(args, inputs)
    tokenizer = inputs.tokenizer or model.tokenizer
    stored = store_activations(
        model,
        sae,
        inputs.tokens,
        features,
        folder,
        hook_name=hook_name,
        ignored_ids=inputs.ignored,
        rows_per_batch=args.minibatch_size_tokens,
        ranks=ranks,
    )
    if ranks.is_first:  # similar are features that write or do nearly the same
        similarity = torch.fmax(cosines(sae.W_dec[features]), stored.correlations.features.corrcoef()[0])
        write_json(folder / CLUSTERS, first_of_cluster(similarity))
    ranks.wait()
    facts = facts_after_pass(facts, folder, ranks)
    decode = token_text(tokenizer)
    own = [index for index in ranks.rows(len(facts)) if features[index] not in plan.finished]
    with torch.no_grad(), tqdm(own, desc="pages", unit="feature", disable=not ranks.is_first) as bar:
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
        neighbours = list(zip([None, *facts], [*facts[1:], None], strict=False))
        for index in bar:
            data, layout = panels.compute(index)
            section = plan.sections.get(str(features[index]), "")
            write_feature_page(
                folder, facts[index], data, layout, decode, neighbours=neighbours[index], section=section
            )
            if args.neuronpedia is not None:
                to_export = data, features[index], model, decode, settings(args, inputs)
                write_feature(folder, *to_export, tokens_around=args.tokens_around)
            write_json(folder / f"snippet_{features[index]}.json", best_snippet(data, tokenizer)._asdict())
    return facts


def publish(work: Path, args: argparse.Namespace, facts: Sequence[FeatureFacts], inputs: Inputs, scored: str) -> None:
    """Put the finished pages, their assets, the index and a record into ``--output_dir``, whole or not at all."""
    from feature_pages.neuronpedia import settings, write_batch
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
    if args.neuronpedia is not None:
        write_batch(args.neuronpedia, work, [fact.feature for fact in facts], settings(args, inputs))
    shutil.rmtree(work)


def prepare(args: argparse.Namespace, ranks: Ranks) -> Plan:
    """Check everything, read the scores and the text, and make or find the folder of unfinished work."""
    from reasonscore.results import read_scores
    from reasonscore.score import ranks_of

    saved = read_scores(args.scores_dir)
    chosen = choose_features(saved.statistics, args)
    check_same_sae(saved, find_sae(args.sae_path, args.sae_id, revision=args.sae_revision), args.scores_dir)
    rank_of = ranks_of(saved.statistics["score"])
    features = sorted(chosen, key=rank_of.__getitem__)
    check_push(args)
    if args.ignore_tokens is None:  # the same positions as the scores are about
        args.ignore_tokens = saved.run.get("ignored_ids")
    inputs = load_inputs(args)
    facts = [feature_facts(saved, feature, rank_of) for feature in features]

    sections = read_sections(args, inputs.source)
    work = work_folder(args.output_dir)
    depends_on = {
        "the features shown (--topk, --features)": features,
        "--n_quantiles": args.n_quantiles,
        "--tokens_around": args.tokens_around,
        "--neuronpedia": args.neuronpedia is not None,
        "--compile_llm": args.compile_llm,
        "the version of": {name: version(name) for name in LIBRARIES},
        **input_identity(args, inputs),
        "--scores_dir": {"sha256": saved.digest()},
        "the number of ranks": ranks.size,
        "--falsification_dir": {"sha256": hashlib.sha256(json.dumps(sections).encode()).hexdigest()},
    }
    begin(work, depends_on, n_bytes=4 * len(features) * inputs.tokens.numel())
    scored = "scores without statistics" if saved.alone else f"scored on {saved.run['tokens']:,} tokens"
    finished = list(finished_snippets(work, facts))
    return Plan(inputs if ranks.size == 1 else replace(inputs, tokenizer=None), facts, finished, scored, sections)


def finish(args: argparse.Namespace, plan: Plan, facts: Sequence[FeatureFacts]) -> None:
    """Publish the finished pages in ``--output_dir``, and on the Hub if asked for."""
    publish(work_folder(args.output_dir), args, facts, plan.inputs, plan.scored)
    print(f"wrote the pages of {len(facts)} features; open {args.output_dir / 'index.html'}")
    if args.hf_repo is not None:
        repo_id = push_folder(
            args.output_dir, args.hf_repo, repo_type=args.hf_repo_type, token=args.hf_token, private=args.private
        )
        print(f"pushed the pages to the Hub as the {args.hf_repo_type} {repo_id}")


def main(argv: Sequence[str] | None = None) -> None:
    with joined_ranks("give the same command again") as ranks, ExitStack() as lock:
        args = parse_arguments(argv)
        args.device = ranks.join_on(args.device)
        from feature_pages.pages import FeatureFacts

        def locked_and_prepared() -> Plan:
            check_output_folder(args.output_dir, RECORD)  # not index.html: any web site has one
            if args.neuronpedia is not None:
                folders = [path.absolute().resolve() for path in (args.output_dir, args.neuronpedia)]
                if folders[0] in (folders[1], *folders[1].parents) or folders[1] in folders[0].parents:
                    raise UserError(f"--neuronpedia {args.neuronpedia} and --output_dir must lie side by side")
                check_output_folder(args.neuronpedia, "run_settings.json", name="--neuronpedia")
            lock.enter_context(locked(args.output_dir))
            return prepare(args, ranks)

        plan = ranks.on_first(locked_and_prepared, types=(Plan, Inputs, SaeSource, FeatureFacts))
        facts = make_pages(work_folder(args.output_dir), plan, args, ranks)
        ranks.wait()
        if ranks.is_first:
            finish(args, plan, facts)


if __name__ == "__main__":
    run(main)
