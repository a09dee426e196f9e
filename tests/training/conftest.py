"""What the tests of training/ share: a cache of their own, and a run of seconds on the small model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

CONTEXT, WIDTH, FEATURES = 128, 256, 512


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is taken from, or left in, the user's cache of data sets."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def run_config(tiny_llama: Path, fixture_tokens: Path) -> Callable[..., dict[str, Any]]:
    """A function from the folder of a run, and keys to change, to its config: 64 steps on the small model."""

    def config(folder: Path, **values: Any) -> dict[str, Any]:
        return {
            "model_name": str(tiny_llama),
            "hook_name": "blocks.2.hook_resid_post",
            "dataset_path": str(fixture_tokens),
            "context_size": CONTEXT,
            "prepend_bos": False,
            "exclude_special_tokens": [0, 1, 2],
            "sae": {
                "d_in": WIDTH, "d_sae": FEATURES, "apply_b_dec_to_input": False, "l1_coefficient": 1,
                "normalize_activations": "expected_average_only_in",
            },
            "training_tokens": 16_384,
            "train_batch_size_tokens": 256,
            "n_batches_in_buffer": 8,
            "store_batch_size_prompts": 8,
            "n_batches_for_norm_estimate": 4,
            "n_eval_batches": 2,
            "lr": 2e-3,
            "logger": {"log_to_wandb": False},
            "checkpoint_path": None,
            "output_path": str(folder / "sae"),
            **values,
        }  # fmt: skip

    return config
