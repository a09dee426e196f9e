"""A real, if short, training run on SmolLM2 that several tests look at."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import datasets
import pytest
import yaml

CONTEXT, LAYER, WIDTH, FEATURES = 64, 3, 576, 1152


@pytest.fixture(scope="session")
def smollm2_tokens(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 tokens of SmolLM2's, of English prose that every Python brings along: the language reference."""
    from transformers import AutoTokenizer

    texts = [topics[name] for name in sorted(topics)]
    ids = [token for text in AutoTokenizer.from_pretrained(smollm2)(texts)["input_ids"] for token in text]
    rows = [ids[at : at + CONTEXT] for at in range(0, len(ids) - CONTEXT + 1, CONTEXT)][:600]
    folder = tmp_path_factory.mktemp("smollm2-tokens")
    datasets.Dataset.from_dict({"tokens": rows}).to_parquet(str(folder / "train-00000.parquet"))
    return folder


@pytest.fixture(scope="session")
def smollm2_config(smollm2: Path, smollm2_tokens: Path) -> Callable[..., dict[str, Any]]:
    """A function from the folder of a run, and keys to change, to its config."""

    def config(folder: Path, **values: Any) -> dict[str, Any]:
        return {
            "model_name": str(smollm2),
            "model_from_pretrained_kwargs": {"dtype": "float32"},
            "hook_name": f"blocks.{LAYER}.hook_resid_post",
            "dataset_path": str(smollm2_tokens),
            "context_size": CONTEXT,
            "seqpos_slice": [1, None],  # an attention sink is at position 0
            "exclude_special_tokens": [1, 2],
            "sae": {
                "d_in": WIDTH, "d_sae": FEATURES, "apply_b_dec_to_input": False, "l1_coefficient": 2,
                "normalize_activations": "expected_average_only_in",
            },
            "training_tokens": 24_576,
            "train_batch_size_tokens": 512,
            "n_batches_in_buffer": 64,
            "store_batch_size_prompts": 16,
            "n_batches_for_norm_estimate": 4,
            "n_eval_batches": 1,
            "lr": 4e-3,
            "lr_decay_steps": 12,
            "logger": {"log_to_wandb": True, "log_weights_to_wandb": False, "wandb_log_frequency": 5,
                       "eval_every_n_wandb_logs": 5},
            "checkpoint_path": str(folder / "checkpoints"),
            "output_path": str(folder / "sae"),
            **values,
        }  # fmt: skip

    return config


@pytest.fixture(scope="session")
def smollm2_run(
    smollm2_config: Callable[..., dict[str, Any]], repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run, W&B's offline files included."""
    folder = tmp_path_factory.mktemp("smollm2-run")
    (folder / "config.yaml").write_text(yaml.safe_dump(smollm2_config(folder)))
    subprocess.run(
        [sys.executable, str(repository / "training" / "train_sae.py"), str(folder / "config.yaml")],
        check=True, env={**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(folder)},
    )  # fmt: skip
    return folder
