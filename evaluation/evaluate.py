"""Tasks of lm-evaluation-harness × interventions on one start of a model, and the report of all runs.

What is steered is one intervention, given by `sae_*` model arguments, or a grid of features × strengths: from a file,
or of the best features of a scores folder, each with its own maximal activation. Otherwise it is the baseline alone.

    python evaluation/evaluate.py --scores_dir extraction/scores --topk 10 --strengths 1,2,4 --output_dir sweep \\
        --tasks math-500 --model vllm --model_args pretrained=MODEL,dtype=bfloat16,sae_path=SAE \\
        --apply_chat_template --gen_kwargs max_gen_toks=32768

    python evaluation/evaluate.py --grid grid.yaml --output_dir sweep --tasks math-500 --model hf --model_args …

    # grid.yaml; every sae_* model argument may stand for all features or in one of them
    sae_release: andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts
    sae_id: blocks.19.hook_resid_post
    strengths: [1, 2, 4]
    features:
      - {sae_feature_idx: 46379, sae_max_activation: 5.84}

All other flags are those of `python -m lm_eval_sae`, and every run is what that would write for the baseline or the one
intervention: <output_dir>/<model>-<task>[-sae-<feature>[-x<strength>]]/. Everything is checked before the model loads.
In vLLM whatever is missing is generated in one batch, in which every request has its own intervention; in transformers
the runs come one after another. run.json in each folder has the settings and the positions that were steered.

Started again, it skips finished runs and refuses those of other settings. Completions that were finished more than five
seconds before it was killed are there. Features, strengths and tasks can be added.

--controls adds what a steered run is to be read against, as runs of their own: each feature set to 0 (ablate), other
features that fire as often and as strongly, set to the same values (matched), and the reasoning words made likelier
without steering (words).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import summarize
from grid.controls import KINDS, control_points
from grid.points import BASELINE, GridPoint, layers, read_grid, read_one, read_scores
from grid.runs import PlannedRun, evaluate_run, generate_all, plan_runs

from lm_eval_sae import errors as lm_eval_errors
from lm_eval_sae.cli import JUDGE_STOPPED, check_tasks, parse, prepare_run, read_config
from lm_eval_sae.engines import model_files
from lm_eval_sae.engines.arguments import refuse_for_steering
from lm_eval_sae.errors import NotSteered, UserError
from lm_eval_sae.steering.arguments import check_model, split_arguments
from transformer_lens_r1.loading import quiet
from transformer_lens_r1.shared.arguments import ArgumentParser, int_list, positive_int
from transformer_lens_r1.shared.errors import run
from transformer_lens_r1.shared.locks import locked

LOG, REPORT = "evaluate.log", "report"  # in --output_dir


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    own, rest = parser.parse_known_args(argv)
    args = parse(rest, more_flags=parser._option_string_actions)
    points = read_points(own, args)
    with quiet("lm_eval"):  # it says the same again when it evaluates, and that goes to the log
        runs = check(own, args, points)
    print_plan(runs)
    if own.plan:
        return
    left = [planned for planned in runs if not planned.finished]
    with contextlib.ExitStack() as stack:
        for planned in left:
            stack.enter_context(locked(planned.folder))
        if left:
            evaluate(left, args, log=own.output_dir / LOG)
    summarize.main(["--results", str(own.output_dir), "--output_dir", str(own.output_dir / REPORT)])
    if stopped := [planned.folder.name for planned in runs if planned.record["judge_stopped"]]:
        print(
            f"error: the judge stopped answering in {', '.join(stopped)}; the same command asks it again, and "
            "generates nothing again",
            file=sys.stderr,
        )
        raise SystemExit(JUDGE_STOPPED)


def make_parser() -> ArgumentParser:
    """The flags that are not lm-eval's."""
    parser = ArgumentParser(description=__doc__, usage="%(prog)s --output_dir DIR … [flags of lm_eval_sae]")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--grid", type=Path, metavar="FILE", help="YAML (JSON, .pt) file of features and strengths")
    source.add_argument("--scores_dir", type=Path, metavar="DIR", help="what compute_score.py wrote")
    parser.add_argument("--topk", type=positive_int, help="of the scores, how many distinct features (default: 10)")
    parser.add_argument(
        "--keep_similar", action="store_true", default=None, help="of the best, those too that nearly coincide"
    )
    parser.add_argument("--features", type=int_list, metavar="I,J", help="of the scores, these features instead")
    parser.add_argument("--strengths", type=number_list, metavar="X,Y", help="with --scores_dir (default: 1,2,4)")
    parser.add_argument(
        "--controls", type=kind_list, default=[], metavar="KINDS", help=f"some of {','.join(KINDS)} (default: none)"
    )
    parser.add_argument("--n_matched", type=positive_int, default=5, help="matched controls of each feature")
    parser.add_argument("--word_bias", type=number_list, default=[2], metavar="X,Y", help="of the controls words")
    parser.add_argument("--only", choices=("baseline", "steered"), help="leave out the other")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the runs and their report")
    parser.add_argument("--plan", action="store_true", help="check and list the runs, and load nothing")
    parser.add_argument(
        "--as_published", action="store_true", help="sae_mode=published, and JUDGE=published if a judge is set"
    )
    return parser


def number_list(text: str) -> list[float]:
    """Numbers with commas between them, whole ones as integers."""
    try:
        return [float(part) if set(part) & set(".eE") else int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from None


def kind_list(text: str) -> list[str]:
    """Kinds of controls with commas between them."""
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"unknown control {unknown[0]!r}, expected some of {','.join(KINDS)}")
    return kinds


def read_points(own: Namespace, args: Namespace) -> list[GridPoint]:
    """What is run; leaves of the model arguments in `args` those that are not `sae_*`."""
    if args.command != "run":
        raise UserError(f"evaluate.py has no command '{args.command}'; expected flags of lm_eval_sae only")
    if args.output_path or args.use_cache:
        flag = "--output_path" if args.output_path else "--use_cache"
        raise UserError(f"{flag} is not for evaluate.py: runs go to --output_dir, and finished ones are not run again")
    args.output_path, args.log_samples = str(own.output_dir), True
    shared, args.model_args = split_arguments(read_config(args).model_args)
    if own.as_published:
        use_published(own, shared)
    model = dict(args.model_args)
    load_tokenizer = partial(model_files.load_tokenizer, str(model.get("pretrained")), model)
    steered = read_steered(own, shared, load_tokenizer) if own.only != "baseline" else []
    if own.only == "steered" and not steered:
        raise UserError("--only steered, but nothing is: give sae_* model arguments, --scores_dir or --grid")
    steered += control_points(
        steered,
        kinds=own.controls,
        n_matched=own.n_matched,
        word_bias=own.word_bias,
        words=summarize.VOCABULARY,
        load_tokenizer=load_tokenizer,
    )
    return steered if own.only == "steered" else [BASELINE, *steered]


def use_published(own: Namespace, shared: dict[str, Any]) -> None:
    """Steers and grades as the published code does, where nothing else is said."""
    if own.grid:
        raise UserError("--as_published is not for --grid: write sae_mode: published into the file")
    if shared and "sae_intervention_path" not in shared:  # a file in the published form means it anyway
        shared.setdefault("sae_mode", "published")
    if os.environ.get("PROCESSOR") and not os.environ.get("JUDGE"):
        os.environ["JUDGE"] = "published"


def read_steered(own: Namespace, shared: dict[str, Any], load_tokenizer: Callable[[], Any]) -> list[GridPoint]:
    """The interventions without their controls. `shared`: the `sae_*` model arguments."""
    if not own.scores_dir:
        for name in ("topk", "keep_similar", "features", "strengths"):
            if getattr(own, name) is not None:
                raise UserError(
                    f"--{name} is for --scores_dir" + ("; it stands in the file of --grid" * bool(own.grid))
                )
        return read_grid(own.grid, shared=shared) if own.grid else read_one(shared, load_tokenizer)
    if own.topk and own.features:
        raise UserError("both --topk and --features are given; expected one of them")
    return read_scores(
        own.scores_dir,
        topk=own.topk or 10,
        features=own.features or [],
        strengths=own.strengths or [1, 2, 4],
        shared=shared,
        keep_similar=bool(own.keep_similar),
    )


def check(own: Namespace, args: Namespace, points: Sequence[GridPoint]) -> list[PlannedRun]:
    """The runs, when all that can be known without the model was checked. Raises UserError."""
    prepare_run(args)
    if args.model not in ("hf-sae", "vllm-sae"):
        raise UserError(f"--model {args.model} cannot steer; expected hf or vllm")
    tasks = check_tasks(args)
    config = read_config(args)
    steered = [point for point in points if point.steering]
    if steered:
        refuse_for_steering(config.model_args)  # prepare_run saw none of the sae_* arguments
    if inner := [task for task in tasks if "::" in task]:
        raise UserError(f"the task {inner[0]} is defined within its group; expected tasks that run by their name")
    name = str(config.model_args["pretrained"])
    model_config = model_files.load_model_config(name, config.model_args)
    for point in steered:
        check_model(point.steering, model_config, name=name)
    if own.output_dir.is_file():
        raise UserError(f"--output_dir {own.output_dir} is a file; give the name of a folder")
    runs = plan_runs(points, tasks, config, own.output_dir)
    for planned in runs:
        _ = planned.record  # refuses another run's folder
    if not own.plan:  # it makes a folder to see that it can
        summarize.check_report_folder(own.output_dir / REPORT)
    return runs


def print_plan(runs: Sequence[PlannedRun]) -> None:
    """Lists the runs and says which are finished."""
    print(f"{len(runs)} runs; {sum(planned.finished for planned in runs)} finished before")
    for planned in runs:
        state = "finished" if planned.finished else "to do"
        print(f"  {planned.folder.name:<60} {state:<9} {planned.point.label}", flush=True)


def evaluate(runs: Sequence[PlannedRun], args: Namespace, *, log: Path) -> None:
    """Starts the model once and does the runs.

    Args:
        runs: that are not finished.
        args: of a baseline run, after `prepare_run`.
        log: the file that takes what lm-eval and the engine print.

    Raises:
        NotSteered: of some runs, after all others were done.
    """
    from lm_eval_sae.engines.one_start import instead_of_a_start, start_model

    print(f"starting the model; what lm-eval and the engine print goes to {log}", flush=True)
    begun, failures = time.perf_counter(), []
    with printed_to(log) as console:
        model = start_model(args, layers=layers(planned.point for planned in runs))
        print(f"model started in {time.perf_counter() - begun:.0f} s", file=console, flush=True)
        try:
            with instead_of_a_start(model):
                if hasattr(model, "generate_ahead"):
                    generate_all(model, runs, args, console)
                for planned in runs:
                    try:
                        accuracy = evaluate_run(planned, args, model)
                        said = "done" if accuracy is None else f"{accuracy:.1%} right"
                    except NotSteered as error:
                        failures.append(error)
                        said = "failed, not everything was steered"
                    print(f"{planned.folder.name}: {said}", file=console, flush=True)
        finally:
            if hasattr(model, "close"):
                model.close()
    if failures:
        raise failures[0]


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


if __name__ == "__main__":
    run(partial(lm_eval_errors.run, main))
