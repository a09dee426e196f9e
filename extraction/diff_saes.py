"""When do the reasoning features appear? The final stage's best features, looked for in the SAEs of earlier stages.

    python extraction/diff_saes.py --sae_path sae_runs/diffing/D-F --scores_dir extraction/scores-diffing/D-F \\
        --stage S=sae_runs/diffing/S --stage D=sae_runs/diffing/S-D --stage M=sae_runs/diffing/S-M \\
        --output_dir extraction/diffing/D-F

A feature is present in a stage if some decoder row of its SAE has at least a given cosine with the feature's; the same
is asked of matched features, which fire as often and as strongly but are no reasoning features. The output folder holds
index.html, presence.csv (over thresholds of cosine, with intervals), features.csv (each feature's nearest row at each
stage, with its ReasonScore there if --stage_scores names it), a picture and diff.json. Minutes on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reasonscore.inputs import add_sae_arguments, check_same_sae

from transformer_lens_r1.shared.arguments import ArgumentParser, positive_int
from transformer_lens_r1.shared.errors import UserError, did_you_mean, run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder, display_name, write_json
from transformer_lens_r1.shared.locks import locked

RUN = "diff.json"


def named(text: str) -> tuple[str, str]:
    """``NAME=VALUE`` as a pair."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text!r}")
    return name, value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what names a stage, as dictionaries."""
    parser = ArgumentParser(__doc__)
    final = parser.add_argument_group("final stage")
    add_sae_arguments(final)
    final.add_argument("--scores_dir", type=Path, required=True, help="folder that compute_score.py wrote for it")
    final.add_argument("--dashboards_dir", type=Path, help="its pages, to link to")
    stages = parser.add_argument_group("earlier stages, each flag once for a stage")
    for flag, metavar, text in (
        ("--stage", "NAME=PATH[,SAE_ID]", "a stage's SAE, like S=sae_runs/diffing/S"),
        ("--stage_scores", "NAME=DIR", "folder that compute_score.py wrote for this stage's SAE and model"),
        ("--stage_dashboards", "NAME=DIR", "its pages, to link to"),
    ):
        required = flag == "--stage"
        stages.add_argument(
            flag, type=named, action="append", default=[], required=required, metavar=metavar, help=text
        )
    parser.add_argument("--topk", type=positive_int, default=100, help="how many of the best distinct features")
    parser.add_argument("--n_matched", type=positive_int, default=10, help="matched features for each of them")
    parser.add_argument("--n_bootstrap", type=positive_int, default=1000, help="resamples of features for intervals")
    parser.add_argument("--seed", type=int, default=42, help="of the resamples")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the results")
    args = parser.parse_args(argv)
    known = [name for name, _ in args.stage]
    for key in ("stage", "stage_scores", "stage_dashboards"):
        pairs = getattr(args, key)
        names = [name for name, _ in pairs]
        for name in names:
            if name not in known:
                parser.error(f"--{key}: no --stage is named {name}{did_you_mean(name, known)}")
            if names.count(name) > 1:
                parser.error(f"--{key}: {name} is there twice")
        setattr(args, key, dict(pairs))
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_output_folder(args.output_dir, RUN)
    with locked(args.output_dir):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Check everything, then compare one stage after the other, and write."""
    from reasonscore.choice import matched_features
    from reasonscore.distinct import distinct_features
    from reasonscore.results import CSV, read_scores
    from reasonscore.sae import find_sae, load_sae
    from stage_diffing import results
    from stage_diffing.presence import nearest_rows

    final, saved = find_sae(args.sae_path, args.sae_id, revision=args.sae_revision), read_scores(args.scores_dir)
    check_same_sae(saved, final, args.scores_dir)
    sources, stage_statistics = {}, {}
    for name, value in args.stage.items():
        path, _, sae_id = value.partition(",")
        sources[name] = source = find_sae(path, sae_id or None)
        if (source.d_in, source.hook_name) != (final.d_in, final.hook_name):
            raise UserError(
                f"--stage {name}: SAE {source} reads {source.d_in} dimensions at {source.hook_name}, the final one "
                f"{final.d_in} at {final.hook_name}; their directions do not compare"
            )
        if name in args.stage_scores:
            folder = Path(args.stage_scores[name])
            of_stage = read_scores(folder)
            check_same_sae(of_stage, source, folder)
            stage_statistics[name] = of_stage.statistics
    dashboards = {name: Path(folder) for name, folder in args.stage_dashboards.items()}
    if args.dashboards_dir is not None:
        dashboards[""] = args.dashboards_dir
    for folder in dashboards.values():
        if not (folder / "index.html").is_file():
            raise UserError(
                f"no dashboards in {folder}: index.html is missing; run extraction/compute_dashboard.py first"
            )

    statistics = saved.statistics
    top = distinct_features(statistics, args.topk)
    remedy = "score again with compute_score.py"
    matched = matched_features(saved, top, args.n_matched, args.scores_dir, remedy=remedy)
    features = [*top, *(other for others in matched.values() for other in others)]
    directions = load_sae(final).W_dec[features].clone()
    stages = [
        results.Stage(name, nearest_rows(directions, load_sae(source).W_dec), stage_statistics.get(name, {}))
        for name, source in sources.items()
    ]
    found = [
        results.measure_presence(stage, len(top), n_resamples=args.n_bootstrap, seed=args.seed) for stage in stages
    ]
    table = results.table_of_features(matched, statistics["score"], stages)
    record = {
        "final": {"sae": display_name(args.sae_path), "sae_sha256": final.weights_sha256},
        "stages": {
            name: {"sae": display_name(source.path), "sae_sha256": source.weights_sha256}
            for name, source in sources.items()
        },
        "hook_name": final.hook_name,
        "topk": len(top),
        "n_matched": args.n_matched,
        "n_bootstrap": args.n_bootstrap,
        "seed": args.seed,
    }
    about = f"the {len(top)} best distinct features of SAE {record['final']['sae']} at {final.hook_name} · stages: "
    about += ", ".join(f"{name} is {stage['sae']}" for name, stage in record["stages"].items())
    with atomic_directory(args.output_dir) as folder:
        table.to_csv(folder / results.FEATURES, **CSV)
        results.table_of_presence(found).to_csv(folder / results.PRESENCE, **CSV)
        results.draw(folder / results.PICTURE, found)
        results.write_page(folder, args.output_dir, table, found, dashboards, about)
        write_json(folder / RUN, record)
    print(results.summary(found).to_string(index=False))
    print(f"wrote the comparison of {len(top)} features; open {args.output_dir / results.PAGE}")


if __name__ == "__main__":
    run(main)
