"""Train a sparse autoencoder on the residual stream of a language model, with SAELens.

    WANDB_API_KEY=… python training/train_sae.py training/configs/r1-distill-llama-8b.yaml

The config is a YAML file in SAELens' layout; `--set sae.l1_coefficient=3 --set device=cpu` overrides any of its keys.
Everything in it is checked against the model's configuration and the tokens before the model is loaded. Written to
`output_path`: cfg.json, sae_weights.safetensors, sparsity.safetensors (SAELens' files) and training_summary.json, which
holds the SAE's quality on rows that it was not trained on.

Ctrl-C and SIGTERM save a checkpoint and stop; others are saved every `checkpoint_every_minutes`. The same command
with `--resume` continues from the newest one, in the same folder and W&B run, to the same SAE as without the
interruption. It starts from the first step where there is none, so a job that is queued again can always say --resume.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.arguments import ArgumentParser
from transformer_lens_r1.errors import UserError, run
from transformer_lens_r1.files import check_output_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig

SAE_CONFIG = "cfg.json"
# At most this part of the rows is held out, however many `n_eval_batches` asks for.
MAX_HELD_OUT = 0.1


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like those in training/configs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key by its dotted name; repeatable"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run from its newest checkpoint, if any")
    args = parser.parse_args(argv)

    from training_config import build_config, model_dtype, own_settings, read_config

    values = read_config(args.config, args.set)
    from transformer_lens_r1.arguments import resolve_device

    if isinstance(values.get("device"), str):
        values["device"] = resolve_device(values["device"])
    cfg, own = build_config(values), own_settings(values)
    check_output_folder(Path(str(cfg.output_path)), SAE_CONFIG, name="output_path")
    from runner import Found, Stopped, measure_only, train

    found = Found(cfg)
    if not args.resume:
        found.check_fresh()
    else:
        found.check_same_run(cfg)
        if found.is_measured:
            print(f"this run is finished: its SAE is {cfg.output_path}")
            return
        if found.checkpoint is None and not found.is_trained:
            print("no checkpoint to resume from: starting from the first step")
    check_wandb(cfg)
    layers = check_model(cfg)
    train_rows, held_out_rows = split_rows(cfg, load_tokens(cfg))
    report_epochs(cfg, train_rows)

    from transformer_lens_r1.loading import load_model

    model = load_model(
        cfg.model_name,
        device=cfg.llm_device or cfg.device,
        dtype=model_dtype(cfg),
        n_layers=None if own["evaluate_cross_entropy"] else layers,
        **hub_arguments(cfg),
    )
    try:
        if args.resume and found.is_trained:
            summary = measure_only(cfg, model, held_out_rows, own)
        else:
            checkpoint = found.checkpoint if args.resume else None
            summary = train(cfg, model, train_rows, held_out_rows, own=own, checkpoint=checkpoint)
    except Stopped as stop:
        print(f"{stop}{how_to_resume(sys.argv[1:] if argv is None else argv)}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    print(f"wrote the SAE to {cfg.output_path}")
    print(table(summary, cfg.dead_feature_window))


def how_to_resume(argv: Sequence[str]) -> str:
    """The command that continues this run."""
    arguments = [*argv, *(["--resume"] if "--resume" not in argv else [])]
    return shlex.join(["python", sys.argv[0], *arguments])


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


def check_wandb(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Raise `UserError` where the run would log to W&B but W&B has no key, or refuses the one there is."""
    if not cfg.logger.log_to_wandb or os.environ.get("WANDB_MODE", "online") != "online":
        return
    import wandb

    try:
        fault = None if wandb.login(prompt=False) else "there is no W&B key"
    except (wandb.errors.AuthenticationError, wandb.errors.CommError, wandb.errors.UsageError) as error:
        fault = f"W&B does not let you in ({error})"
    if fault is not None:
        raise UserError(
            f"logger.log_to_wandb is true but {fault}: set WANDB_API_KEY, or WANDB_MODE=offline to log to this disk, "
            "or --set logger.log_to_wandb=false"
        )


def hub_arguments(cfg: LanguageModelSAERunnerConfig[Any]) -> dict[str, Any]:
    """`revision` and `trust_remote_code` of the model."""
    given = cfg.model_from_pretrained_kwargs or {}
    return {key: given[key] for key in ("revision", "trust_remote_code") if key in given}


def check_model(cfg: LanguageModelSAERunnerConfig[Any]) -> int:
    """The number of layers to load, once the model's configuration fits the run's.

    One more than the hook needs, where there is one: SAELens stops the forward pass where the layer behind the hook
    begins, and without such a layer the final norm and the unembedding would run for nothing.

    Raises:
        UserError: no such model, no such layer in it, or sae.d_in is not its width.
    """
    from transformer_lens_r1.loading import hook_layer, load_config

    layer = hook_layer(cfg.hook_name)
    model_config = load_config(cfg.model_name, **hub_arguments(cfg))
    if layer >= model_config.num_hidden_layers:
        raise UserError(
            f"hook_name is {cfg.hook_name}, but {cfg.model_name} has layers 0 to {model_config.num_hidden_layers - 1}"
        )
    if cfg.sae.d_in != model_config.hidden_size:
        raise UserError(
            f"sae.d_in is {cfg.sae.d_in}, but the residual stream of {cfg.model_name} is "
            f"{model_config.hidden_size} wide; set sae.d_in to {model_config.hidden_size}"
        )
    return min(layer + 2, model_config.num_hidden_layers)


def load_tokens(cfg: LanguageModelSAERunnerConfig[Any]) -> Dataset:
    """The run's token rows, checked against its context size and the model's vocabulary.

    Raises:
        UserError: no such data set or column, rows of another length, or ids that the model does not have.
    """
    import pyarrow.compute as pc

    from transformer_lens_r1.data import load_rows
    from transformer_lens_r1.loading import load_config

    rows = load_rows(cfg.dataset_path, columns=("tokens",)).select_columns("tokens")
    column = rows.data.column("tokens")
    lengths = pc.min_max(pc.list_value_length(column)).as_py()
    if (lengths["min"], lengths["max"]) != (cfg.context_size, cfg.context_size):
        spread = lengths["min"] if lengths["min"] == lengths["max"] else f"{lengths['min']} to {lengths['max']}"
        raise UserError(
            f"context_size is {cfg.context_size}, but the rows of {cfg.dataset_path} have {spread} tokens; set "
            "context_size to the rows' length, or tokenise again"
        )
    vocab_size = load_config(cfg.model_name, **hub_arguments(cfg)).vocab_size
    # Every id is read, gigabytes at the paper's size but at the disk's speed: a wrong one would end the run late.
    bounds = [pc.min_max(chunk.flatten()).as_py() for chunk in column.chunks if len(chunk)]
    if min(bound["min"] for bound in bounds) < 0 or max(bound["max"] for bound in bounds) >= vocab_size:
        largest = max(bound["max"] for bound in bounds)
        raise UserError(
            f"{cfg.dataset_path} holds the id {largest}, but {cfg.model_name} knows ids 0 to {vocab_size - 1}; "
            "the tokens were made for another model"
        )
    return rows


def split_rows(cfg: LanguageModelSAERunnerConfig[Any], rows: Dataset) -> tuple[Dataset, Dataset]:
    """Rows to train on, and the last `n_eval_batches` × `eval_batch_size_prompts` (or a tenth of all) held out."""
    batch_size = cfg.eval_batch_size_prompts or cfg.store_batch_size_prompts
    held_out = max(1, min(cfg.n_eval_batches * batch_size, int(MAX_HELD_OUT * len(rows))))
    if len(rows) - held_out < cfg.store_batch_size_prompts:
        raise UserError(
            f"{cfg.dataset_path} has {len(rows)} rows, too few to hold {held_out} out and fill a batch of "
            f"store_batch_size_prompts ({cfg.store_batch_size_prompts})"
        )
    return rows.select(range(len(rows) - held_out)), rows.select(range(len(rows) - held_out, len(rows)))


def report_epochs(cfg: LanguageModelSAERunnerConfig[Any], rows: Dataset) -> None:
    """Say how often the data repeats, where it does."""
    available = len(rows) * cfg.context_size
    norm_estimate = cfg.sae.normalize_activations in ("expected_average_only_in", "covariance_whitening")
    needed = cfg.training_tokens + norm_estimate * cfg.n_batches_for_norm_estimate * cfg.train_batch_size_tokens
    if needed > available:
        logging.getLogger(__name__).warning(
            "the run reads %s tokens, the norm estimate included, and the data holds %s: rows repeat %.1f times",
            f"{needed:,}",
            f"{available:,}",
            needed / available,
        )


if __name__ == "__main__":
    run(main)
