"""Steered evaluation for lm-evaluation-harness: `python -m lm_eval_sae` is `lm_eval` plus the model `hf-sae`."""

from pathlib import Path

TASKS_DIR = Path(__file__).parent / "tasks"

MODELS = {"hf-sae": "lm_eval_sae.models:HFSAE", "vllm-sae": "lm_eval_sae.vllm_model:VLLMSAE"}


def register_models() -> None:
    """Adds this package's models to lm-eval's registry, by name only: they are imported when first used."""
    import lm_eval.models  # noqa: F401  (fills the registry, and so must come first)
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)
