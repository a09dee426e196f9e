"""What must hold between a run's configuration, its model and its tokens, found out before any weights are loaded."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_training.checkpoints import SAE_CONFIG
from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig
    from transformers import PretrainedConfig

    from transformer_lens_r1.shared.ranks import Ranks

SAE_WEIGHTS = "sae_weights.safetensors"
# At most this part of the rows is held out, however many `n_eval_batches` asks for.
MAX_HELD_OUT = 0.1
# Values of sae.normalize_activations for which `n_batches_for_norm_estimate` batches are read before the first step.
ESTIMATED = ("expected_average_only_in", "covariance_whitening")


def resolve_devices(values: dict[str, Any], ranks: Ranks) -> None:
    """Replace `auto` in a config's device keys, in place, and check that this machine has the devices.

    Raises:
        UserError: a device that does not exist, or not here, or one GPU for several ranks.
    """
    from transformer_lens_r1.shared.arguments import resolve_device

    for key in ("device", "llm_device", "act_store_device"):
        if isinstance(values.get(key), str) and values[key] != "with_model":
            values[key] = resolve_device(ranks.device(values[key]))


def check_shares(cfg: LanguageModelSAERunnerConfig[Any], ranks: Ranks) -> None:
    """Raise `UserError` if several ranks could not train as one."""
    if cfg.train_batch_size_tokens % ranks.size:
        raise UserError(
            f"train_batch_size_tokens is {cfg.train_batch_size_tokens}, which {ranks.size} ranks cannot share out "
            "equally; change one of the two"
        )
    if ranks.size > 1 and cfg.sae.normalize_activations == "covariance_whitening":
        raise UserError(
            "sae.normalize_activations is covariance_whitening, which SAELens estimates in one process; start one, or "
            "use another value"
        )


def check_wandb(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Raise `UserError` if the run would log to W&B but W&B has no key, or refuses the one there is."""
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


def check_model(cfg: LanguageModelSAERunnerConfig[Any]) -> PretrainedConfig:
    """The model's config.json, once it fits the run's configuration.

    Raises:
        UserError: no such model, no such layer in it, or sae.d_in is not its width.
    """
    from transformer_lens_r1.loading import hook_layer, load_config

    model_config = load_config(cfg.model_name, **hub_arguments(cfg))
    if hook_layer(cfg.hook_name) >= model_config.num_hidden_layers:
        raise UserError(
            f"hook_name is {cfg.hook_name}, but {cfg.model_name} has layers 0 to {model_config.num_hidden_layers - 1}"
        )
    if cfg.sae.d_in != model_config.hidden_size:
        raise UserError(
            f"sae.d_in is {cfg.sae.d_in}, but the residual stream of {cfg.model_name} is "
            f"{model_config.hidden_size} wide; set sae.d_in to {model_config.hidden_size}"
        )
    return model_config


def fit_rope_context(cfg: LanguageModelSAERunnerConfig[Any], extra: dict[str, Any]) -> None:
    """Make `rope_original_context` of `extra`, in place, null if only `as_published` asks for it and it does not apply.

    Raises:
        UserError: the config asks for it, but the model's rotary frequencies are not scaled as Llama 3's.
    """
    from transformer_lens_r1.loading import check_rope_context, load_config

    context = extra["rope_original_context"]
    if context is not None:
        model_config = load_config(cfg.model_name, **hub_arguments(cfg))
        extra["rope_original_context"] = check_rope_context(
            cfg.model_name, model_config, context, as_published=extra["as_published"]
        )


def check_pretrained(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Raise `UserError` if the run's SAE could not start as the finished one in `from_pretrained_path`."""
    if cfg.from_pretrained_path is None:
        return
    folder = Path(cfg.from_pretrained_path)
    for name in (SAE_CONFIG, SAE_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"from_pretrained_path is {folder}, which has no {name}; name the folder of a finished SAE")
    saved = json.loads((folder / SAE_CONFIG).read_text(encoding="utf-8"))
    sae, given = cfg.sae, cfg.sae.normalize_activations
    expected = {
        "architecture": sae.architecture(),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        # A finished SAE has the estimated factor in its weights; one that has not is an unfinished run's.
        "normalize_activations": "none" if given == "expected_average_only_in" else given,
    }
    for key, value in expected.items():
        if saved.get(key, value) != value:
            raise UserError(
                f"the SAE in from_pretrained_path, {folder}, has {key} {saved[key]}, but this run starts from a "
                f"finished SAE with {value}; name another, or change sae.{key}"
            )


def layers_to_load(cfg: LanguageModelSAERunnerConfig[Any], model_config: PretrainedConfig) -> int:
    """Layers of the model that a run without its loss needs: one more than the hook's, if there is one.

    SAELens stops the forward pass at the start of the layer behind the hook; without such a layer, the final norm and
    the unembedding would run for nothing.
    """
    from transformer_lens_r1.loading import hook_layer

    return min(hook_layer(cfg.hook_name) + 2, model_config.num_hidden_layers)


def checked_rows(cfg: LanguageModelSAERunnerConfig[Any]) -> tuple[Dataset, Dataset]:
    """Token rows to train on and rows held out, once they fit the run and its model.

    Raises:
        UserError: see `check_tokenizer` and `load_tokens`.
    """
    # The tokenizer first: it takes a small file, but the rows may take gigabytes from the Hub.
    check_tokenizer(cfg)
    train_rows, held_out_rows = split_rows(cfg, load_tokens(cfg))
    report_epochs(cfg, train_rows)
    return train_rows, held_out_rows


def check_tokenizer(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Compare the tokenizer that made the data, as its `provenance.json` names it, with the model's.

    Raises:
        UserError: the tokens were made with another vocabulary.
    """
    from transformer_lens_r1.loading import load_tokenizer
    from transformer_lens_r1.shared.data import read_provenance
    from transformer_lens_r1.tokenising import vocabulary_hash

    provenance = read_provenance(cfg.dataset_path)
    made_with = (provenance or {}).get("tokenizer") or {}
    if made_with.get("vocabulary_sha256") is None:
        print(f"note: {cfg.dataset_path} does not say which tokenizer made it; taken on trust", file=sys.stderr)
        return
    if vocabulary_hash(load_tokenizer(cfg.model_name, **hub_arguments(cfg))) != made_with["vocabulary_sha256"]:
        raise UserError(
            f"{cfg.dataset_path} was made with the tokenizer of {made_with.get('name')}, in which the same id means "
            f"other text than in that of {cfg.model_name}; tokenise the data for this model, or train on that one"
        )


def load_tokens(cfg: LanguageModelSAERunnerConfig[Any]) -> Dataset:
    """The run's token rows, checked against its context size and the model's vocabulary.

    Raises:
        UserError: no such data set or column, rows of another length, or ids that the model does not have.
    """
    import pyarrow.compute as pc

    from transformer_lens_r1.loading import load_config
    from transformer_lens_r1.shared.data import load_rows, token_column

    rows = load_rows(cfg.dataset_path, columns=("tokens",)).select_columns("tokens")
    column, shortest, longest = token_column(rows, cfg.dataset_path)
    if (shortest, longest) != (cfg.context_size, cfg.context_size):
        spread = shortest if shortest == longest else f"{shortest} to {longest}"
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
    return rows.select(range(len(rows) - held_out)), rows.select(range(len(rows) - held_out, len(rows)))


def norm_estimate_tokens(cfg: LanguageModelSAERunnerConfig[Any]) -> int:
    """Tokens that SAELens reads to estimate the activations' mean norm or covariance, before the first step."""
    return (cfg.sae.normalize_activations in ESTIMATED) * cfg.n_batches_for_norm_estimate * cfg.train_batch_size_tokens


def report_epochs(cfg: LanguageModelSAERunnerConfig[Any], rows: Dataset) -> None:
    """Warn on stderr if the run reads its data more than once, and say how often."""
    available = len(rows) * len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    needed = cfg.training_tokens + norm_estimate_tokens(cfg)
    if needed > available:
        print(
            f"WARNING: the run reads {needed:,} tokens, the norm estimate included, and {cfg.dataset_path} holds "
            f"{available:,} to train on: rows repeat {needed / available:.1f} times",
            file=sys.stderr,
        )
