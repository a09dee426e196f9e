"""A grid of features × strengths on one start of the model, and the report of all of its runs.

The grid comes from a file, or is made of the best features of a scores folder, each with its own maximal activation:

    python evaluation/sweep.py --grid grid.yaml --output_dir sweep --tasks math-500 \\
        --model vllm --model_args pretrained=MODEL,dtype=bfloat16 --apply_chat_template \\
        --gen_kwargs max_gen_toks=32768

    python evaluation/sweep.py --scores_dir extraction/scores --topk 10 --strengths 1,2,4 --output_dir sweep \\
        --tasks math-500 --model hf --model_args pretrained=MODEL,sae_path=SAE

    # grid.yaml; every sae_* model argument may stand for all features or in one of them
    sae_release: andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts
    sae_id: blocks.19.hook_resid_post
    strengths: [1, 2, 4]
    features:
      - {sae_feature_idx: 46379, sae_max_activation: 5.84}

All other flags are those of `python -m lm_eval_sae`, and every run is what that would write for the baseline or the
one point: <output_dir>/<model>-<task>[-sae-<feature>-x<strength>]/. The whole grid is checked before the model loads.
Before the first run a probe takes the running model through all interventions: each must change log-likelihoods of
fixed prompts, in a way of its own; after each run the probe is repeated. run.json in each folder has its figures, the
positions that were steered, and the settings; sweep.json has those of all.

Started again, finished runs are skipped, and those of other settings refused.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TextIO

import summarize
from sweep_grid import PLAIN, GridPoint, layers, read_grid, read_scores
from sweep_probe import Probe
from sweep_runs import PlannedRun, evaluate_point, plan_runs, write_overview

from lm_eval_sae import errors as lm_eval_errors
from lm_eval_sae.cli import JUDGE_STOPPED, check_tasks, parse, prepare_run, read_config
from lm_eval_sae.engines.arguments import refuse_worker_class
from lm_eval_sae.engines.model_files import load_model_config
from lm_eval_sae.errors import UserError
from lm_eval_sae.steering.arguments import check_model, split_arguments
from transformer_lens_r1.loading import quiet
from transformer_lens_r1.shared.arguments import ArgumentParser, int_list, positive_int
from transformer_lens_r1.shared.errors import run
from transformer_lens_r1.shared.locks import locked

OVERVIEW = "sweep.json"
LOG = "sweep.log"


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    own, rest = parser.parse_known_args(argv)
    args = parse(rest, more_flags=parser._option_string_actions)
    points = [PLAIN, *read_points(own, args)]
    with contextlib.nullcontext() if own.plan else locked(own.output_dir):
        sweep(own, args, points)


def sweep(own: Namespace, args: Namespace, points: Sequence[GridPoint]) -> None:
    """Checks the whole grid and lists it; unless that is all, does the runs that are missing, and the report."""
    with quiet("lm_eval"):  # it says the same again when it evaluates, and that goes to the log
        runs = check(own, args, points)
    print_plan(runs)
    if own.plan:
        return
    left = [run for run in runs if not run.finished]
    if left:
        overview = partial(write_overview, own.output_dir / OVERVIEW, runs)
        evaluate(left[: own.max_runs], args, log=own.output_dir / LOG, overview=overview)
    write_overview(own.output_dir / OVERVIEW, runs)
    if skipped := len(left[own.max_runs :] if own.max_runs else []):
        print(f"{skipped} runs are left (--max_runs); the same command continues")
    summarize.main(["--results", str(own.output_dir), "--output_dir", str(report_dir(own))])
    if stopped := [run.folder.name for run in runs if run.record and run.record.get("judge_stopped")]:
        print(
            f"error: the judge stopped answering in {', '.join(stopped)}; the same command asks it again, and "
            "generates nothing again",
            file=sys.stderr,
        )
        raise SystemExit(JUDGE_STOPPED)


def make_parser() -> ArgumentParser:
    """The sweep's own flags."""
    parser = ArgumentParser(description=__doc__, usage="%(prog)s (--grid | --scores_dir) … [flags of lm_eval_sae]")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--grid", type=Path, metavar="FILE", help="YAML (JSON, .pt) file of features and strengths")
    source.add_argument("--scores_dir", type=Path, metavar="DIR", help="what compute_score.py wrote")
    parser.add_argument("--topk", type=positive_int, help="of the scores, how many of the best features (default: 10)")
    parser.add_argument("--features", type=int_list, metavar="I,J", help="of the scores, these features instead")
    parser.add_argument("--strengths", type=number_list, metavar="X,Y", help="with --scores_dir (default: 1,2,4)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--report_dir", type=Path, help="folder for the report (default: <output_dir>/report)")
    parser.add_argument("--max_runs", type=positive_int, help="stop after so many, to continue another time")
    parser.add_argument("--plan", action="store_true", help="check and list the runs, and load nothing")
    return parser


def number_list(text: str) -> list[float]:
    """Numbers with commas between them, whole ones as integers."""
    try:
        return [float(part) if set(part) & set(".eE") else int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from None


def report_dir(own: Namespace) -> Path:
    """Where the report goes."""
    return own.report_dir or own.output_dir / "report"


def read_points(own: Namespace, args: Namespace) -> list[GridPoint]:
    """The grid without the baseline; leaves of the model arguments in `args` those that are not `sae_*`."""
    if args.command != "run":
        raise UserError(f"a sweep has no command '{args.command}'; expected flags of lm_eval_sae only")
    if args.output_path or args.use_cache:
        flag = "--output_path" if args.output_path else "--use_cache"
        raise UserError(f"{flag} is not for a sweep: runs go to --output_dir, and finished ones are not run again")
    args.output_path, args.log_samples = str(own.output_dir), True
    shared, args.model_args = split_arguments(read_config(args).model_args)
    if own.grid:
        for name in ("topk", "features", "strengths"):
            if getattr(own, name) is not None:
                raise UserError(f"--{name} is for --scores_dir; with --grid it stands in the file")
        return read_grid(own.grid, shared=shared)
    if own.topk and own.features:
        raise UserError("both --topk and --features are given; expected one of them")
    return read_scores(
        own.scores_dir,
        topk=own.topk or 10,
        features=own.features or [],
        strengths=own.strengths or [1, 2, 4],
        shared=shared,
    )


def check(own: Namespace, args: Namespace, points: Sequence[GridPoint]) -> list[PlannedRun]:
    """The runs, when all that can be known without the model was checked. Raises UserError."""
    prepare_run(args)
    if args.model not in ("hf-sae", "vllm-sae"):
        raise UserError(f"--model {args.model} cannot steer; expected hf or vllm")
    tasks = check_tasks(args)
    config = read_config(args)
    refuse_worker_class(config.model_args)  # prepare_run saw none of the grid's sae_* arguments
    if inner := [task for task in tasks if "::" in task]:
        raise UserError(f"the task {inner[0]} is defined within its group; expected tasks that run by their name")
    name = str(config.model_args["pretrained"])
    model_config = load_model_config(name, config.model_args)
    for point in points:
        if point.steering:
            check_model(point.steering, model_config, name=name)
    if own.output_dir.is_file():
        raise UserError(f"--output_dir {own.output_dir} is a file; give the name of a folder")
    runs = plan_runs(points, tasks, config, own.output_dir)
    for planned in runs:
        _ = planned.record  # refuses another run's folder
    if own.output_dir.resolve().is_relative_to(report_dir(own).resolve()):
        raise UserError(
            f"--report_dir {report_dir(own)} holds the runs of --output_dir {own.output_dir}, and a report "
            "replaces its folder as a whole; name another"
        )
    if not own.plan:  # it makes a folder to see that it can
        summarize.check_report_folder(report_dir(own), name="--report_dir")
    return runs


def print_plan(runs: Sequence[PlannedRun]) -> None:
    """Lists the runs and says which are finished."""
    finished = sum(planned.finished for planned in runs)
    n_tasks = len({planned.task for planned in runs})
    print(f"{len(runs)} runs: {len(runs) // n_tasks} per task, baseline and steered; {finished} finished before")
    for planned in runs:
        state = "finished" if planned.finished else "to do"
        print(f"  {planned.folder.name:<60} {state:<9} {planned.point.label}", flush=True)


def evaluate(runs: Sequence[PlannedRun], args: Namespace, *, log: Path, overview: partial) -> None:
    """Starts the model once, proves that every intervention can be told from the others, and does the runs.

    Args:
        runs: that are not finished.
        args: of a baseline run, after `prepare_run`.
        log: the file that takes what lm-eval and the engine print.
        overview: called after every run.
    """
    from tqdm import tqdm

    from lm_eval_sae.engines.one_start import instead_of_a_start, start_model

    by_name = {planned.point.name: planned.point for planned in runs}
    begun = time.perf_counter()
    started = datetime.now().isoformat(timespec="seconds")
    print(f"starting the model; what lm-eval and the engine print goes to {log}", flush=True)
    with printed_to(log) as console, tqdm(total=len(runs), desc="runs", unit="run", file=console) as bar:
        model = start_model(args, slots=layers(by_name.values()))
        bar.write(f"model started in {duration(time.perf_counter() - begun)}", file=console)
        try:
            probe = Probe(model, list(by_name.values()))
            with instead_of_a_start(model):
                for planned in runs:
                    evaluate_point(planned, args, probe, model_started=started)
                    overview()
                    bar.write(f"{planned.folder.name}: {duration(planned.record['seconds'])}", file=console)
                    bar.update()
        finally:
            if hasattr(model, "close"):
                model.close()


@contextlib.contextmanager
def printed_to(log: Path) -> Iterator[TextIO]:
    """Sends what this process, its libraries and its children print to a file; yields the console."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(1), os.dup(2)]
    with log.open("ab") as file, os.fdopen(os.dup(1), "w") as console:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        try:
            yield console
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for descriptor, before in zip((1, 2), kept, strict=True):
                os.dup2(before, descriptor)
                os.close(before)


def duration(seconds: float) -> str:
    """E.g. "50 s", "7 min", "3.2 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    run(partial(lm_eval_errors.run, main))
