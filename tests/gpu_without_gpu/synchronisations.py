"""Runs the stages on the pretended device and writes what made the host wait for it.

    python synchronisations.py MODEL SAE FILE

The file is JSON: {stage: {"found": {part of the run: [[what, place, times], …]}, "times": {event: how often}}}.
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import sae_dashboard
import sae_lens
import torch
import transformer_lens
import transformers
from pretended_cuda import PretendedCuda, pretended_cuda, unset_fake_temporarily

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = [REPOSITORY / name for name in ("training", "extraction", "TransformerLens")]
LIBRARIES = [Path(library.__file__).parent for library in (sae_dashboard, sae_lens, transformer_lens, transformers)]
sys.path[:0] = [str(REPOSITORY / "training"), str(REPOSITORY / "extraction")]

from transformer_lens_r1.loading import load_model  # noqa: E402

CONTEXT, VOCABULARY, BATCHES = 64, 300, 4
Found = dict[str, Counter[tuple[str, str]]]


def load(model: str, sae: str) -> tuple[Any, Any, str]:
    """The model's first layers and the SAE, on the device, and the SAE's hook point."""
    from reasonscore.sae import find_sae, load_sae

    with unset_fake_temporarily():
        source = find_sae(sae)
        on_cpu = load_sae(source, device="cpu", dtype="bfloat16")
    layers = int(source.hook_name.split(".")[1]) + 1
    bridge = load_model(model, device="cuda:0", dtype="bfloat16", n_layers=layers)
    return bridge, on_cpu.to("cuda:0"), source.hook_name


def scoring(device: PretendedCuda, model: str, sae: str) -> tuple[Found, dict[str, int]]:
    """The pass over the text, without and with states that are saved after each batch, and continued."""
    from reasonscore.chunks import PassState
    from reasonscore.one_pass import sum_activations

    bridge, encoder, hook_name = load(model, sae)
    tokens = torch.randint(3, VOCABULARY, (16 * BATCHES, CONTEXT))
    state = PassState(Path(tempfile.mkdtemp()), "rank", {})
    device.take()

    def go(**more: Any) -> Counter[tuple[str, str]]:
        groups = {"wait": [(100,), (200, 201)], "so": [(5,)]}
        sums = sum_activations(
            bridge, encoder, tokens, groups, hook_name=hook_name, expand_range=(1, 2), ignored_ids=[7, 8],
            rows_per_batch=16, features_per_block=500, progress=False, **more,
        )  # fmt: skip
        assert sums.by_block.device.type == "cuda"
        return device.take()

    found = {"pass": go(), "pass with states": go(state=state, save_every=0), "continued": go(state=state)}
    return found, {"batches": BATCHES}


def dashboards(device: PretendedCuda, model: str, sae: str) -> tuple[Found, dict[str, int]]:
    """The pass that stores the activations of the features that pages are made of."""
    from feature_pages.activations import store_activations

    bridge, encoder, hook_name = load(model, sae)
    tokens = torch.randint(3, VOCABULARY, (16 * BATCHES, CONTEXT))
    device.take()
    # The state at the end of the pass holds tensors of the device, which cannot be written.
    with mock.patch.object(torch, "save", lambda _, path: Path(path).touch()):
        store_activations(
            bridge, encoder, tokens, [3, 40, 500], Path(tempfile.mkdtemp()), hook_name=hook_name, ignored_ids=[7, 8],
            rows_per_batch=16,
        )  # fmt: skip
    return {"pass": device.take()}, {"batches": BATCHES}


class EnoughSteps(Exception):
    """Ends the training."""


def training(device: PretendedCuda, model: str, sae: str) -> tuple[Found, dict[str, int]]:
    """The norm estimate, and the first steps of a training of 1,000."""
    import wandb
    import yaml
    from datasets import Dataset
    from sae_training.activations import ActivationSource, ActivationStream
    from sae_training.config import build_config, extra_settings, read_config
    from sae_training.runner import Runner
    from sae_training.trainer import Trainer

    folder = Path(tempfile.mkdtemp())
    settings = {
        "model_name": model, "hook_name": "blocks.2.hook_resid_post", "dataset_path": "rows", "context_size": CONTEXT,
        "exclude_special_tokens": [5, 6], "device": "cuda:0", "training_tokens": 512 * 1000, "lr": 5e-5,
        "train_batch_size_tokens": 512, "store_batch_size_prompts": 16, "n_batches_in_buffer": 64,
        "n_batches_for_norm_estimate": 2, "n_eval_batches": 1, "checkpoint_path": None,
        "output_path": str(folder / "sae"), "logger": {"log_to_wandb": True, "wandb_log_frequency": 10},
        "sae": {
            "d_in": 256, "d_sae": 512, "apply_b_dec_to_input": False, "l1_coefficient": 5,
            "normalize_activations": "expected_average_only_in",
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    values = read_config(folder / "config.yaml", [])
    cfg, own = build_config(values), extra_settings(values)
    tokens = torch.randint(0, VOCABULARY, (400, CONTEXT))
    rows = Dataset.from_dict({"tokens": tokens.numpy()})
    bridge = load_model(model, device="cuda:0", dtype="bfloat16", n_layers=3)
    run = Runner(cfg, bridge, rows, rows.select(range(16)), own)
    found: Found = {}
    times: Counter[str] = Counter()

    def counted(owner: Any, name: str, event: str) -> Any:
        method = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            times[event] += 1
            return method(*args, **kwargs)

        return mock.patch.object(owner, name, call)

    def between_steps(trainer: Trainer) -> None:
        if trainer.n_training_steps == 0 and trainer.norm_batches == 2:
            found["norm estimate"] = device.take()
            times.update({f"norm {event}": times.pop(event) for event in list(times)})
        elif trainer.n_training_steps == 25:
            raise EnoughSteps

    def backward(_loss: torch.Tensor) -> None:
        for parameter in run.sae.parameters():
            parameter.grad = torch.empty_like(parameter)

    trainer = Trainer(
        sae=run.sae, data_provider=run.stream, evaluator=None, cfg=cfg.to_sae_trainer_config(),
        between_steps=between_steps, save_snapshot=lambda _: None,
    )  # fmt: skip
    device.take()
    with (
        counted(ActivationSource, "activations", "passes"),
        counted(ActivationStream, "_refill", "refills"),
        counted(Trainer, "_train_step", "steps"),
        mock.patch.object(wandb, "log", lambda *_, **__: times.update(["logs"])),
        mock.patch.object(torch.Tensor, "backward", backward),
    ):
        try:
            trainer.fit()
        except EnoughSteps:
            found["steps"] = device.take()
    return found, dict(times)


if __name__ == "__main__":
    stages: dict[str, Callable[..., tuple[Found, dict[str, int]]]] = {
        "scoring": scoring, "dashboards": dashboards, "training": training,
    }  # fmt: skip
    model, sae, file = sys.argv[1:]
    results = {}
    for stage, run in stages.items():
        # That the machine has no such device is what makes it a pretended one.
        with (
            mock.patch("transformer_lens_r1.loading.resolve_device", str),
            pretended_cuda([*STAGES, *LIBRARIES]) as device,
        ):
            found, times = run(device, model, sae)
        lists = {part: [[*key, count] for key, count in sorted(of.items())] for part, of in found.items()}
        results[stage] = {"found": lists, "times": times}
    Path(file).write_text(json.dumps(results))
