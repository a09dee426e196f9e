"""Both data sets tokenised, merged, and trained on, through the four scripts as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

TEXT = "wait, so the sum of two and two is four; but maybe it is not. therefore let me check it again "


def test_a_merged_set_trains_through_train_sae_unchanged(
    load_script: Callable[[str], ModuleType], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    conversations = [
        [{"role": "user", "content": TEXT[number % 60 :]}, {"role": "assistant", "content": TEXT * (1 + number % 5)}]
        for number in range(60)
    ]
    thoughts = [
        {
            "problem": TEXT[number % 60 :], "deepseek_reasoning": TEXT * (1 + number % 5), "deepseek_solution": TEXT,
            "domain": "math", "test_cases": None, "starter_code": None,
        }
        for number in range(60)
    ]  # fmt: skip
    sources = {"lmsys": [{"conversation": row} for row in conversations], "openthoughts": thoughts}
    for name, rows in sources.items():
        (tmp_path / f"{name}-source").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}-source" / "train.parquet")
        load_script(f"training/datasets/prepare_{name}_dataset.py").main(
            ["--model_path", str(tiny_llama), "--dataset_path", str(tmp_path / f"{name}-source"),
             "--context_size", "64", "--num_tokens", "6400", "--output_dir", str(tmp_path / name)]
        )  # fmt: skip
    load_script("training/datasets/merge_datasets.py").main(
        [str(tmp_path / "lmsys"), str(tmp_path / "openthoughts"), "--output_dir", str(tmp_path / "merged")]
    )
    assert json.loads((tmp_path / "merged" / "provenance.json").read_text())["rows"] == 200
    config = {
        "model_name": str(tiny_llama),
        "hook_name": "blocks.1.hook_resid_post",
        "dataset_path": str(tmp_path / "merged"),
        "context_size": 64,
        "prepend_bos": False,
        "sae": {"d_in": 256, "d_sae": 512, "l1_coefficient": 1},
        "training_tokens": 4096,
        "train_batch_size_tokens": 256,
        "n_batches_in_buffer": 8,
        "store_batch_size_prompts": 8,
        "n_eval_batches": 1,
        "lr": 0.002,
        "logger": {"log_to_wandb": False},
        "checkpoint_path": None,
        "output_path": str(tmp_path / "sae"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    load_script("training/train_sae.py").main([str(tmp_path / "run.yaml")])
    summary = json.loads((tmp_path / "sae" / "training_summary.json").read_text())
    assert summary["training_tokens"] == 4096
    assert (tmp_path / "sae" / "sae_weights.safetensors").is_file()
