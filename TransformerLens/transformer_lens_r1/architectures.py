"""The architectures that every stage takes, and the models that are known by their names alone.

The next architecture is an entry here and in `lm_eval_sae/steering/arguments.py`, which installs alone, and a kind of
checkpoint in tests/random_checkpoints.py. The stages rely on what these have in common: in transformers all layers are
alike, lie in `model.model.layers`, and return the residual stream; in vLLM they return it as (MLP output, residual).
"""

from typing import NamedTuple


class Architecture(NamedTuple):
    """A class of causal language models."""

    class_name: str
    """In transformers and in vLLM."""
    numbers_ungrouped_heads: bool = False
    """HookedTransformer wants the number of key-value heads even if every head has its own keys and values."""
    qk_norm: bool = False
    """Queries and keys are normalised in each head."""


# By the `model_type` of config.json.
ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM"),
    "qwen2": Architecture("Qwen2ForCausalLM", numbers_ungrouped_heads=True),
    "qwen3": Architecture("Qwen3ForCausalLM", qk_norm=True),
}
CLASS_NAMES = tuple(architecture.class_name for architecture in ARCHITECTURES.values())
*_first, _last = (name.removesuffix("ForCausalLM") for name in CLASS_NAMES)
SUPPORTED = f"{', '.join(_first)} or {_last}"  # for messages and help

R1_DISTILLS = tuple(
    f"deepseek-ai/DeepSeek-R1-Distill-{size}"
    for size in ("Llama-8B", "Llama-70B", "Qwen-1.5B", "Qwen-7B", "Qwen-14B", "Qwen-32B")
)
_FAMILIES = {
    "Qwen/Qwen3-": (("0.6B", "1.7B", "4B", "8B", "14B"), ("", "-Base")),
    "Qwen/Qwen3-32B": (("",), ("",)),  # of which there is no base model
    "Qwen/Qwen2.5-": (("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"), ("", "-Instruct")),
    "meta-llama/Llama-3.2-": (("1B", "3B"), ("", "-Instruct")),
}
KNOWN_MODELS = R1_DISTILLS + tuple(
    f"{family}{size}{kind}" for family, (sizes, kinds) in _FAMILIES.items() for size in sizes for kind in kinds
)
