"""A grid, the flags of evaluate.py, and the models that it starts."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from engines import count_starts
from lm_eval.api.model import LM
from safetensors.torch import save_file

from lm_eval_sae.engines.hf_model import HFSAE
from transformer_lens_r1.shared.files import hash_file


@pytest.fixture(scope="module")
def evaluate(load_script_for_module: Callable[[str], ModuleType]) -> ModuleType:
    return load_script_for_module("evaluation/evaluate.py")


@pytest.fixture(scope="module")
def sae(make_sae: Callable[..., Path]) -> Path:
    return make_sae("standard")


@pytest.fixture(scope="module")
def grid(sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grid") / "grid.yaml"
    content = {"sae_path": str(sae), "sae_max_activation": 6.5, "strengths": [1, 2.5], "features": [40, 41]}
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def flags(tiny_llama: Path, problems: Path) -> list[str]:
    """Of lm_eval_sae, for the baseline."""
    return [
        "--model", "hf", "--model_args", f"pretrained={tiny_llama},dtype=float32", "--tasks", "quickstart_problems",
        "--device", "cpu", "--batch_size", "4", "--metadata", f"problems={problems}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def scores(sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As compute_score.py writes them."""
    folder = tmp_path_factory.mktemp("scores")
    maxima = torch.linspace(1, 4, 64)
    maxima[7] = 0
    save_file({"max_activation": maxima}, folder / "feature_stats.safetensors")
    (folder / "top_features.csv").write_text("rank,feature,score\n1,12,0.3\n2,40,0.2\n3,7,0.1\n")
    of_sae = {"hook_name": "blocks.1.hook_resid_post", "weights_sha256": hash_file(sae / "sae_weights.safetensors")}
    (folder / "run.json").write_text(json.dumps({"sae": of_sae}))
    return folder


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[LM]:
    """Every model that is made from here on."""
    return count_starts(HFSAE, monkeypatch)
