"""Tiny random checkpoints of every supported architecture, and how far their activations are from a reference."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SIZES = {
    "vocab_size": 327, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
LLAMA_31_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}  # fmt: skip


def rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


# Like Qwen3's: thoughts are kept in the last answer alone, and a prompt without thinking has an empty block of them.
QWEN3_TEMPLATE = """
{%- for message in messages %}
    {%- set thought, _, answer = message.content.rpartition('</think>') if message.role == 'assistant' else ('', '', '') %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if thought and loop.last %}
        {{- '<think>\\n' ~ thought.replace('<think>', '').strip('\\n') ~ '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- (answer.lstrip('\\n') if thought else message.content) ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""  # noqa: E501


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
    "llama 3.2": (
        "llama",
        {"rope_parameters": {**LLAMA_31_ROPE, "factor": 32.0}, "num_hidden_layers": 2, **GROUPED, "head_dim": 32,
         "max_position_embeddings": 131_072, "tie_word_embeddings": True},
    ),
    "qwen2, theta 1e4": ("qwen2", {**GROUPED, "rope_parameters": rope(10_000.0)}),
    "qwen2, theta 1e6, tied": (
        "qwen2", {**GROUPED, "rope_parameters": rope(1_000_000.0), "tie_word_embeddings": True}
    ),
    "qwen2, no grouped queries": ("qwen2", {"rope_parameters": rope(1_000_000.0)}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 24, "rope_parameters": rope(1_000_000.0)}),
    "qwen3, no grouped queries, tied": (
        "qwen3", {"head_dim": 16, "rope_parameters": rope(1_000_000.0), "tie_word_embeddings": True}
    ),
}  # fmt: skip


def save_random_checkpoint(architecture: str, changes: dict[str, Any], folder: Path, *, tokenizer: Path) -> None:
    """Saves a random model of SIZES with `changes`, and the tokenizer of another; Qwen3 has its own chat format."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**SIZES, **changes}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # they start at zero, where a lost one would not show
            torch.nn.init.normal_(parameter)
        if "norm" in name:  # they start at one, likewise
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if architecture == "qwen3":
        loaded.chat_template = QWEN3_TEMPLATE
    loaded.save_pretrained(folder)


def deviation(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference as a part of the reference's largest magnitude."""
    return ((ours.double() - reference.double()).abs().max() / reference.double().abs().max()).item()
