"""Train a sparse autoencoder on the residual stream of a language model, with SAELens.

    WANDB_API_KEY=… python training/train_sae.py training/configs/r1-distill-llama-8b.yaml

The config is a YAML file in the layout of SAELens 6, or in the flat one of SAELens 5.5.2. `--set key=value` overrides
any of its keys (`--set sae.l1_coefficient=3 --set device=cpu`). `--plan` says what the run will take, and starts
nothing. Everything in the config is checked against the model's configuration and the tokens before the model is
loaded. Written to `output_path`: cfg.json, sae_weights.safetensors, sparsity.safetensors (SAELens' files) and
training_summary.json, which holds the SAE's quality on rows that it was not trained on.

Ctrl-C and SIGTERM save a checkpoint and stop; others are saved every `checkpoint_every_minutes`. The same command
with `--resume` continues from the newest one, in the same folder and W&B run, to the same SAE as without the
interruption. It starts from the first step if there is none, so a job that is queued again can always say --resume.

    torchrun --nproc_per_node 4 training/train_sae.py training/configs/r1-distill-llama-8b.yaml

trains on four GPUs, which share out every batch.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_training.checkpoints import SAE_CONFIG, ExistingRun
from sae_training.plan import GPUS, add_plan_arguments, make_plan, render

from transformer_lens_r1.shared.arguments import ArgumentParser
from transformer_lens_r1.shared.errors import run
from transformer_lens_r1.shared.files import check_output_folder
from transformer_lens_r1.shared.locks import locked
from transformer_lens_r1.shared.ranks import Ranks, joined_ranks

if TYPE_CHECKING:
    import argparse

    from sae_lens import LanguageModelSAERunnerConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like those in training/configs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key by its dotted name; repeatable"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run from its newest checkpoint, if any")
    add_plan_arguments(parser)
    args = parser.parse_args(argv)
    with joined_ranks("give the same command with --resume") as ranks, said_once(ranks):
        run_config(args, ranks, sys.argv[1:] if argv is None else argv)


@contextmanager
def said_once(ranks: Ranks) -> Iterator[None]:
    """Leave notes and progress bars to the first rank."""
    if ranks.is_first:
        yield
        return
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def run_config(args: argparse.Namespace, ranks: Ranks, argv: Sequence[str]) -> None:
    """Plan the run of a config file, or do it."""
    from sae_training import checks
    from sae_training.config import build_config, extra_settings, read_config

    values = read_config(args.config, args.set)
    if not args.plan:  # a plan may be for another machine
        checks.resolve_devices(values, ranks)
    cfg, extra = build_config(values), extra_settings(values)
    checks.fit_rope_context(cfg, extra)
    if args.plan:
        model_config = checks.check_model(cfg)
        plan = make_plan(
            cfg, model_config, extra=extra, gpu=GPUS[args.gpu], n_gpus=args.gpus, utilisation=args.utilisation
        )
        print(render(plan, args.config.name))
        return
    checks.check_shares(cfg, ranks)
    ranks.connect(cfg.device)
    if ranks.is_first:
        check_output_folder(Path(str(cfg.output_path)), SAE_CONFIG, name="output_path")
    with locked(str(cfg.output_path)) if ranks.is_first else nullcontext():
        train(cfg, extra, ranks, resume=args.resume, argv=argv)


def train(
    cfg: LanguageModelSAERunnerConfig[Any],
    extra: Mapping[str, Any],
    ranks: Ranks,
    *,
    resume: bool,
    argv: Sequence[str],
) -> None:
    """Start or continue the run of a config, and print its figures.

    Args:
        cfg: what `build_config` made.
        extra: the values of `config.EXTRA_KEYS`.
        ranks: that train together.
        resume: whether to continue from the newest checkpoint, if there is one.
        argv: the command line, for the message of a run that was stopped.
    """
    from sae_training import checks
    from sae_training.config import model_dtype

    found = ExistingRun(cfg)
    if not resume:
        found.check_fresh()
    else:
        found.check_same(cfg, extra)
        if found.is_measured:
            print(f"this run is finished: its SAE is {cfg.output_path}")
            return
        if found.checkpoint is None and not found.is_trained:
            print("no checkpoint to resume from: starting from the first step")
    if ranks.is_first:
        checks.check_wandb(cfg)
    model_config = checks.check_model(cfg)
    checks.check_pretrained(cfg)
    train_rows, held_out_rows = checks.checked_rows(cfg)

    from sae_training.runner import Runner, Stopped

    from transformer_lens_r1.loading import load_model

    model = load_model(
        cfg.model_name,
        device=cfg.llm_device or cfg.device,
        dtype=model_dtype(cfg),
        n_layers=None if extra["evaluate_cross_entropy"] else checks.layers_to_load(cfg, model_config),
        rope_original_context=extra["rope_original_context"],
        **checks.hub_arguments(cfg),
    )
    ranks.wait()  # all have looked at what there is: from here on the first one changes it
    runner = Runner(cfg, model, train_rows, held_out_rows, extra, ranks)
    try:
        if resume and found.is_trained:
            summary = runner.measure_only()
        else:
            summary = runner.run(found.checkpoint if resume else None)
    except Stopped as stop:
        print(f"{stop}{how_to_resume(argv, ranks)}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    if not ranks.is_first:
        return
    print(f"wrote the SAE to {cfg.output_path}")
    print(table(summary, cfg.dead_feature_window))


def how_to_resume(argv: Sequence[str], ranks: Ranks) -> str:
    """The command that continues this run; on several nodes, without what says where they meet."""
    arguments = [*argv, *(["--resume"] if "--resume" not in argv else [])]
    launcher = ["python"]
    if ranks.size > 1:
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
        launcher = ["torchrun", "--nnodes", str(ranks.size // per_node), "--nproc_per_node", str(per_node)]
    return shlex.join([*launcher, sys.argv[0], *arguments])


def table(summary: Mapping[str, Any], dead_feature_window: int) -> str:
    """The figures of `training_summary.json`, one a line."""
    held_out = summary["held_out"]
    lines = [
        ("training steps", f"{summary['training_steps']:,}"),
        ("training tokens", f"{summary['training_tokens']:,}"),
        (f"dead features (inactive for {dead_feature_window:,} steps)", f"{summary['dead_features']:,}"),
        ("held-out tokens", f"{held_out['tokens']:,}"),
        ("  L0 (active features per token)", f"{held_out['l0']:.1f}"),
        ("  explained variance", f"{held_out['explained_variance']:.4f}"),
        ("  features active on no token", f"{held_out['silent_features']:,}"),
    ]
    if "ce_loss_recovered" in held_out:
        lines += [
            ("  cross-entropy of the model", f"{held_out['ce_loss']:.4f}"),
            ("  … with the SAE in it", f"{held_out['ce_loss_with_sae']:.4f}"),
            ("  … with zeros in its place", f"{held_out['ce_loss_with_zeros']:.4f}"),
            ("  cross-entropy loss recovered", f"{held_out['ce_loss_recovered']:.4f}"),
        ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value:>12}" for name, value in lines)


if __name__ == "__main__":
    run(main)
