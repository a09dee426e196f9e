"""Tiny random checkpoints of every kind of Llama and Qwen2 that the two loaders must get right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SIZES = {
    "vocab_size": 327, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
LLAMA_31_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": rope(10_000.0)}),
    "llama, grouped queries": ("llama", {**GROUPED, "rope_parameters": rope(500_000.0)}),
    "llama, tied embeddings": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama, head_dim": ("llama", {**GROUPED, "head_dim": 24}),
    "llama 3.1": (
        "llama",
        {"rope_parameters": LLAMA_31_ROPE, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 131_072},
    ),
    "qwen2, theta 1e4": ("qwen2", {**GROUPED, "rope_parameters": rope(10_000.0)}),
    "qwen2, theta 1e6, tied": (
        "qwen2", {**GROUPED, "rope_parameters": rope(1_000_000.0), "tie_word_embeddings": True}
    ),
    "qwen2, no grouped queries": ("qwen2", {"rope_parameters": rope(1_000_000.0)}),
}  # fmt: skip


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Callable[[str], Path]:
    """A function that saves a random checkpoint of a kind, with the tokenizer of `tiny_llama`, once for all tests."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            architecture, changes = KINDS[kind]
            torch.manual_seed(0)
            if architecture == "llama":
                model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}))
            else:
                model = Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **changes}))
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # they start at zero, where a lost one would not show
                    torch.nn.init.normal_(parameter)
                if "norm" in name:  # they start at one, likewise
                    torch.nn.init.uniform_(parameter, 0.5, 1.5)
            folder = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
            folders[kind] = folder
        return folders[kind]

    return make
