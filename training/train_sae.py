"""Train a sparse autoencoder on the residual stream of a language model, with SAELens.

    WANDB_API_KEY=… python training/train_sae.py training/configs/r1-distill-llama-8b.yaml

The config is a YAML file in SAELens' layout; `--set sae.l1_coefficient=3 --set device=cpu` overrides any of its keys.
Everything in it is checked against the model's configuration and the tokens before the model is loaded. Written to
`output_path`: cfg.json, sae_weights.safetensors, sparsity.safetensors (SAELens' files) and training_summary.json.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.arguments import ArgumentParser
from transformer_lens_r1.errors import UserError, run
from transformer_lens_r1.files import check_output_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig

SUMMARY = "training_summary.json"
SAE_CONFIG = "cfg.json"
# At most this part of the rows is held out, however many `n_eval_batches` asks for.
MAX_HELD_OUT = 0.1


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like those in training/configs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key by its dotted name; repeatable"
    )
    args = parser.parse_args(argv)

    from training_config import build_config, model_dtype, read_config

    values = read_config(args.config, args.set)
    from transformer_lens_r1.arguments import resolve_device

    if isinstance(values.get("device"), str):
        values["device"] = resolve_device(values["device"])
    cfg = build_config(values)
    check_output_folder(Path(str(cfg.output_path)), SAE_CONFIG, name="output_path")
    check_wandb(cfg)
    layers = check_model(cfg)
    train_rows, held_out_rows = split_rows(cfg, load_tokens(cfg))
    report_epochs(cfg, train_rows)

    from transformer_lens_r1.loading import load_model

    model = load_model(
        cfg.model_name,
        device=cfg.llm_device or cfg.device,
        dtype=model_dtype(cfg),
        n_layers=layers,
        **hub_arguments(cfg),
    )
    quality = train(cfg, model, train_rows, held_out_rows)
    print(f"wrote the SAE to {cfg.output_path}")
    for name, value in quality["held_out"].items():
        print(f"  held-out {name.replace('_', ' ')}: {value:,.4g}")


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


def train(
    cfg: LanguageModelSAERunnerConfig[Any], model: Any, train_rows: Dataset, held_out_rows: Dataset
) -> dict[str, Any]:
    """Train and write the SAE to `cfg.output_path`, whole or not at all.

    Args:
        cfg: what `build_config` made.
        model: a TransformerBridge with at least the hook's layers.
        train_rows: column `tokens`, rows of `cfg.context_size` ids.
        held_out_rows: the same, for the figures in the summary.

    Returns:
        What `training_summary.json` holds.
    """
    import torch
    from held_out import HeldOutEvaluator
    from sae_lens import LanguageModelSAETrainingRunner

    from transformer_lens_r1.files import atomic_directory, write_json
    from transformer_lens_r1.loading import quiet

    started = time.monotonic()
    summary: dict[str, Any] = {}

    class Runner(LanguageModelSAETrainingRunner):
        def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
            # SAELens moves its progress bar every 100 steps, which is half of a short run.
            interval = max(1, min(100, cfg.total_training_steps // 100))
            trainer._update_pbar = partial(trainer._update_pbar, update_interval=interval)
            # SAELens' handler answers a signal with a broken checkpoint and a traceback: none is set.
            sae = trainer.fit()
            summary.update(
                training_tokens=trainer.n_training_samples,
                training_steps=trainer.n_training_steps,
                dead_features=int(trainer.dead_neurons.sum().item()),
                seconds=round(time.monotonic() - started, 1),
            )
            return sae

        def save_final_sae(self, sae: Any, output_path: str, log_feature_sparsity: Any = None) -> None:
            # The weights first: nothing that measuring may run into can lose them.
            with atomic_directory(output_path) as folder:
                super().save_final_sae(sae, str(folder), log_feature_sparsity)
            sae.eval()
            summary["held_out"] = asdict(self.evaluator.quality(sae))
            write_json(Path(output_path) / SUMMARY, summary)

    # SAELens draws the initial weights and the buffer's order from torch's global generator, which it never seeds.
    torch.manual_seed(cfg.seed)
    batch_size = cfg.eval_batch_size_prompts or cfg.store_batch_size_prompts
    with warnings.catch_warnings():
        # It compares a number of rows with a number of tokens; `report_epochs` says it right.
        warnings.filterwarnings("ignore", message="The training dataset contains fewer samples")
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        with quiet("sae_lens"):  # it warns that a model and a data set were handed to it
            runner = Runner(cfg, override_model=model, override_dataset=train_rows)
        runner.evaluator = HeldOutEvaluator(runner.activations_store, held_out_rows, batch_size=batch_size)
        runner.run()
    return summary


if __name__ == "__main__":
    run(main)
