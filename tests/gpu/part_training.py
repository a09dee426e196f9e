"""Training: one step against plain autograd, a run that is interrupted, memory against `--plan`, and how fast it is."""

from __future__ import annotations

import contextlib
import gc
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from material import IGNORED, Material, make_material
from measure import REPOSITORY, Machine, Rows, matmul_precision, run_part
from reference import distance, total_norm
from sae_lens import StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE
from sae_training import plan_memory
from sae_training.checkpoints import ExistingRun
from sae_training.config import build_config, extra_settings, read_config
from sae_training.plan import GPUS, make_plan
from sae_training.runner import Runner, Stopped
from sae_training.trainer import Trainer
from safetensors.torch import load_file

from transformer_lens_r1 import load_model, residual_stream
from transformer_lens_r1.shared.ranks import Ranks

PAPER_CONFIG = REPOSITORY / "training" / "configs" / "r1-distill-llama-8b.yaml"
STEPS, STOP_IN = 24, 13  # which is within a round of the buffer
LR = 1e-3
ONE = Ranks()
STEP_KINDS = (("float32", "highest", False), ("tf32", "high", False), ("bfloat16", "high", True))
"""Format of a step's matrix products, `float32_matmul_precision`, `autocast`."""


class Run:
    """A run with the paper's configuration on the model at hand and random tokens; the SAE goes to `folder`."""

    def __init__(self, material: Material, folder: Path, machine: Machine, *, steps: int = STEPS) -> None:
        self.sizes, self.folder, sizes, toy = material.sizes, folder, material.sizes, not machine.is_cuda
        changes = {
            "model_name": material.checkpoint, "dataset_path": "random", "device": machine.device,
            "hook_name": sizes.hook_name, "context_size": sizes.context, "exclude_special_tokens": IGNORED,
            "sae.d_in": sizes.width, "sae.d_sae": sizes.features, "sae.l1_coefficient": 0.1, "sae.l1_warm_up_steps": 0,
            "training_tokens": steps * sizes.batch, "train_batch_size_tokens": sizes.batch, "lr": LR,
            "lr_decay_steps": 0, "n_batches_in_buffer": 16 if toy else 64, "store_batch_size_prompts": 4 if toy else 8,
            "n_batches_for_norm_estimate": 2, "n_eval_batches": 1, "eval_batch_size_prompts": 4, "n_checkpoints": 0,
            "logger.log_to_wandb": "false", "checkpoint_every_minutes": "null", "checkpoints_kept": 1,
            "checkpoint_path": folder / "checkpoints", "output_path": folder / "sae",
        }  # fmt: skip
        values = read_config(PAPER_CONFIG, [f"{key}={value}" for key, value in changes.items()])
        self.cfg, self.own = build_config(values), extra_settings(values)
        rows = Dataset.from_dict({"tokens": sizes.tokens(36 if toy else 260).numpy()})
        self.held_out, self.rows = rows.select(range(4)), rows.select(range(4, len(rows)))

    def runner(self, model: Any, ranks: Ranks = ONE) -> Runner:
        """A runner of its own, once what an earlier one held is free."""
        gc.collect()
        return Runner(self.cfg, model, self.rows, self.held_out, self.own, ranks)

    def trainer(self, runner: Runner, between_steps: Callable[[Trainer], None]) -> Trainer:
        """The runner's trainer, without its checkpoints and evaluations."""
        return Trainer(
            sae=runner.sae, data_provider=runner.stream, cfg=self.cfg.to_sae_trainer_config(),
            between_steps=between_steps, save_snapshot=lambda _: None, ranks=runner.ranks,
        )  # fmt: skip

    def planned_peak(self) -> int:
        """The bytes that `--plan` says."""
        plan = make_plan(
            self.cfg, self.sizes.config(), extra=self.own, gpu=GPUS["h100"],
        )  # fmt: skip
        return plan.peak[self.cfg.device]

    def result(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Weights and summary of the finished run."""
        weights = load_file(self.folder / "sae" / "sae_weights.safetensors")
        return weights, json.loads((self.folder / "sae" / "training_summary.json").read_text())


def new_trainer(machine: Machine, d_in: int, d_sae: int, batch: int, *, l1: float, ranks: Ranks = ONE) -> Trainer:
    """A trainer of an SAE with the weights of seed 0, before its first step."""
    options = {"apply_b_dec_to_input": False, "l1_coefficient": l1, "device": machine.device}
    config = StandardTrainingSAEConfig(d_in=d_in, d_sae=d_sae, **options)
    torch.manual_seed(0)
    sae = StandardTrainingSAE(config).to(machine.device)
    settings = SAETrainerConfig(10 * batch, batch, lr=LR, lr_end=LR, device=machine.device)
    return Trainer(settings, sae, iter([]), between_steps=lambda _: None, save_snapshot=lambda _: None, ranks=ranks)


def check_step(rows: Rows, machine: Machine) -> None:
    """Loss, clipped gradients and Adam's update of a first step, against autograd in float64 on the CPU."""
    d_in, d_sae, batch = (4096, 8192, 1024) if machine.is_cuda else (64, 512, 128)
    l1, scale = 5.0, 2.0
    trainer = new_trainer(machine, d_in, d_sae, batch, l1=l1)
    sae, x = trainer.sae, torch.randn(batch, d_in)
    before = {name: p.detach().cpu().double().requires_grad_() for name, p in sae.named_parameters()}
    trainer.activation_scaler.scaling_factor = scale
    with matmul_precision("highest"):
        loss = trainer.step(x).loss.item()

    scaled = scale * x.double()
    inner = scaled @ before["W_enc"] + before["b_enc"]
    features = torch.relu(inner)
    error = features @ before["W_dec"] + before["b_dec"] - scaled
    expected = (error.square().sum(dim=1) + l1 * (features * before["W_dec"].norm(dim=1)).sum(dim=1)).mean()
    expected.backward()
    rows.at_most("a step: relative difference of the loss", abs(loss / expected.item() - 1), 1e-6)
    moments = {name: trainer.optimizer.state[p]["exp_avg"].cpu().double() for name, p in sae.named_parameters()}
    gradients = {name: moment / 0.1 for name, moment in moments.items()}  # Adam's beta1 is 0.9
    norm, exact_norm = (total_norm(each) for each in (gradients.values(), [p.grad for p in before.values()]))
    # Clipped to 1. A float32 norm of as many numbers as W_enc has is off by some parts in a thousand on a CPU.
    rows.at_most("a step: norm of the clipped gradients, difference to 1", abs(norm / min(exact_norm, 1) - 1), 1e-2)
    # Where the ReLU's input is 0 but for rounding, the encoder's gradient may be one token's more or less.
    clear = inner.detach().abs().amin(dim=0) > 1e-4
    kept = {"W_enc": (slice(None), clear), "b_enc": clear, "W_dec": slice(None), "b_dec": slice(None)}
    worst = max(distance(gradients[k][part] / norm, before[k].grad[part] / exact_norm) for k, part in kept.items())
    rows.at_most("a step: distance of the gradients, each over that norm", worst, 1e-5)
    moves = {name: before[name].detach() - p.detach().cpu() for name, p in sae.named_parameters()}
    worst = max((moves[name] / LR - g / (g.abs() + 1e-8)).abs().max().item() for name, g in gradients.items())
    rows.at_most("a step: Adam's update, difference over the learning rate", worst, 1e-3)


def check_resuming(rows: Rows, material: Material, work: Path, model: Any) -> None:
    """A run, the same run stopped by SIGTERM and resumed, and the memory that the first took against the plan."""
    machine = rows.machine
    machine.forget_peak()
    whole = Run(material, work / "whole", machine)
    whole.runner(model).run()
    check_memory(rows, "a run", machine.peak_bytes(), whole.planned_peak())

    parted = Run(material, work / "parted", machine)
    steps = stopped_in(STOP_IN, parted.runner(model).run)
    checkpoint = ExistingRun(parted.cfg).checkpoint
    rows.equal("interrupted by SIGTERM: checkpoint", checkpoint and checkpoint.name, f"step-{STOP_IN:09d}")
    steps += stopped_in(None, lambda: parted.runner(model).run(checkpoint))
    rows.equal("interrupted and resumed: steps done", steps, STEPS)
    (weights, summary), (resumed, resumed_summary) = whole.result(), parted.result()
    rows.equal("resumed run: tokens", resumed_summary["training_tokens"], summary["training_tokens"])
    differences = torch.cat([(weights[name] - resumed[name]).double().flatten() for name in weights])
    # Adam moves a weight by about the learning rate in a step: other batches, or the same in another order, would show.
    moved = differences.square().mean().sqrt().item() / LR
    rows.at_most("resumed run: difference of weights (rms), in steps of Adam", moved, 1e-2 if machine.is_cuda else 0)
    qualities = [of["held_out"]["explained_variance"] for of in (resumed_summary, summary)]
    rows.note("explained variance on held-out rows", qualities[1])
    rows.at_most("resumed run: relative difference of that", abs(qualities[0] / qualities[1] - 1), 0.02)


def stopped_in(step: int | None, run: Callable[[], object]) -> int:
    """Let a run get SIGTERM in its nth step, and count the steps that it does."""
    original, done = Trainer.step, 0

    def counted(self: Trainer, batch: torch.Tensor) -> Any:
        nonlocal done
        done += 1
        if done == step:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch)

    Trainer.step = counted  # type: ignore[method-assign]
    with contextlib.suppress(Stopped):
        run()
    Trainer.step = original  # type: ignore[method-assign]
    return done


def check_memory(rows: Rows, what: str, measured: int, planned: int) -> None:
    """A check that memory is between 0.75 and 1.05 of what the plan says."""
    if not rows.machine.is_cuda:
        rows.note(f"memory of {what}", f"only on CUDA; the plan says {planned / 1e6:.2f} MB")
        return
    part = measured / planned
    shown = f"{measured / 1e9:.2f} GB, {part:.2f} of the plan's {planned / 1e9:.2f} GB"
    rows.check(f"memory of {what}", shown, "0.75 to 1.05 of the plan's", 0.75 <= part <= 1.05)


def added_bytes(machine: Machine, function: Callable[[], object]) -> int:
    """Bytes that a call takes at its peak beside what is there before it."""
    machine.forget_peak()
    before = torch.cuda.memory_allocated() if machine.is_cuda else 0
    function()
    return machine.peak_bytes() - before


def time_steps(rows: Rows, run: Run, model: Any) -> None:
    """Memory of a forward pass; memory and speed of the SAE's steps alone, in each format."""
    machine, sizes, runner = rows.machine, run.sizes, run.runner(model)
    n_rows = run.cfg.store_batch_size_prompts
    ids = runner.stream.source.to_model(sizes.tokens(n_rows))
    measured = added_bytes(machine, lambda: residual_stream(model, ids, sizes.hook_name))
    check_memory(rows, "a forward pass", measured, plan_memory.forward_peak_bytes(
        sizes.model, rows=n_rows, context=sizes.context, dtype="bfloat16"
    ))  # fmt: skip
    trainer = run.trainer(runner, lambda _: None)
    trainer.activation_scaler.scaling_factor = 1.0
    batch = torch.randn(sizes.batch, sizes.width, device=machine.device)
    trainer.step(batch)  # Adam's moments are made in the first
    for kind, precision, autocast in STEP_KINDS:
        trainer.autocast_if_enabled = torch.autocast(machine.device, torch.bfloat16, enabled=autocast)
        with matmul_precision(precision):
            measured = added_bytes(machine, lambda: trainer.step(batch))
            seconds = machine.seconds(lambda: trainer.step(batch), rounds=8)
        planned = plan_memory.step_peak_bytes(sizes.width, sizes.features, sizes.batch, autocast=autocast)
        check_memory(rows, f"a step in {kind}", measured, planned)
        work = {kind: sizes.step_flops(sizes.batch)}
        rows.speed(
            f"SAE steps in {kind}", tokens=sizes.batch, seconds=seconds, work=work, peak=machine.peak_bytes()
        )  # fmt: skip


class RoundDone(Exception):
    """So many steps are done."""


def round_of(run: Run, model: Any, ranks: Ranks = ONE) -> tuple[Callable[[], None], int]:
    """Steps as `Trainer.fit` does them, ready to be run again and again, and their number.

    One rank refills its buffer twice in as many, two ranks once each; not in the same step, as their rows differ.
    """
    runner = run.runner(model, ranks)
    steps = run.cfg.n_batches_in_buffer * run.sizes.context // run.sizes.batch

    def between_steps(trainer: Trainer) -> None:
        if trainer.n_training_steps > 0 and trainer.n_training_steps % steps == 0:
            raise RoundDone

    trainer = run.trainer(runner, between_steps)

    def one_round() -> None:
        with contextlib.suppress(RoundDone):
            trainer.fit()

    one_round()  # with the norm estimate
    return one_round, steps


def time_run(rows: Rows, run: Run, model: Any) -> None:
    """A round of training."""
    machine = rows.machine
    machine.forget_peak()
    one_round, steps = round_of(run, model)
    rows.speed("training, model and SAE", **speed_of(run, steps, machine.seconds(one_round)), peak=machine.peak_bytes())
    rows.synchronisations(f"two refills and {steps} training steps", one_round)


def speed_of(run: Run, steps: int, seconds: float, *, ranks: int = 1) -> dict[str, Any]:
    """What `Rows.speed` takes, of steps that took so long on a number of GPUs; work is that of each."""
    tokens, sizes = steps * run.sizes.batch, run.sizes
    forward = sizes.forward_flops(sizes.layer + 1) / sizes.context
    work = {"bfloat16": forward * tokens / ranks, "tf32": sizes.step_flops(tokens) / ranks}
    return {"tokens": tokens, "seconds": seconds, "work": work}


def part(rows: Rows, work: Path) -> None:
    machine, material = rows.machine, make_material(work, rows.machine)
    check_step(rows, machine)
    gc.collect()
    model = load_model(material.checkpoint, device=machine.device, dtype="bfloat16")
    check_resuming(rows, material, work, model)
    endless = Run(material, work / "timed", machine, steps=10_000)
    time_steps(rows, endless, model)
    time_run(rows, endless, model)


if __name__ == "__main__":
    run_part(part)
