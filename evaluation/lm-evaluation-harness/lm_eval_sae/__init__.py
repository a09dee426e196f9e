"""Steered evaluation for lm-evaluation-harness: `python -m lm_eval_sae` is `lm_eval` plus the model `hf-sae`."""

from pathlib import Path

TASKS_DIR = Path(__file__).parent / "tasks"

MODELS = {"hf-sae": "lm_eval_sae.engines.hf_model:HFSAE", "vllm-sae": "lm_eval_sae.engines.vllm_model:VLLMSAE"}
FILTERS = {"judge": "lm_eval_sae.judge.filter:JudgeFilter"}


def register_models() -> None:
    """Adds this package's models and filter to lm-eval's registries, by name: they are imported when first used."""
    import lm_eval.models  # noqa: F401  (fills the registry, and so must come first)
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)
    register_filters()


def register_filters() -> None:
    """Adds the filter that the tasks of this package use to lm-eval's registry."""
    import lm_eval.filters  # noqa: F401  (fills the registry, and so must come first)
    from lm_eval.api.registry import filter_registry

    for name, target in FILTERS.items():
        if name not in filter_registry:
            filter_registry.register(name, target=target)
