"""What a training run will take, computed from its configuration and the model's config.json alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sae_training import plan_memory
from sae_training.plan_memory import BYTES, ModelSize
from transformer_lens_r1.loading import hook_layer
from transformer_lens_r1.shared.arguments import ArgumentParser, fraction, positive_int
from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from sae_lens import LanguageModelSAERunnerConfig
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Gpu:
    """Peak rates of matrix products in FLOP/s, without sparsity; memory in bytes; bandwidths in bytes/s."""

    name: str
    bfloat16: float
    tf32: float
    float32: float
    memory: float
    memory_bandwidth: float
    link: float  # to another GPU of its node, each way


# From NVIDIA's data sheets: H100 and H200 Tensor Core GPU (SXM), A100 80GB Tensor Core GPU (SXM), L40S, and the
# whitepaper of the Ada GPU architecture for the GeForce RTX 4090 (16-bit rate with float32 accumulation). The sheets of
# H100, H200 and L40S give rates with sparsity, twice these. Links are NVLink, for which the sheets add up both
# ways, or PCIe 4.0 x16.
GPUS = {
    "h100": Gpu("H100 SXM", 989.4e12, 494.7e12, 66.9e12, 80e9, 3.35e12, 450e9),
    "h200": Gpu("H200 SXM", 989.4e12, 494.7e12, 66.9e12, 141e9, 4.8e12, 450e9),
    "a100": Gpu("A100 SXM", 312e12, 156e12, 19.5e12, 80e9, 2.04e12, 300e9),
    "l40s": Gpu("L40S", 362.1e12, 183.2e12, 91.6e12, 48e9, 864e9, 32e9),
    "rtx-4090": Gpu("GeForce RTX 4090", 165.2e12, 82.6e12, 82.6e12, 24e9, 1.01e12, 32e9),
}
GPUS_OF_A_NODE = 8
NODE_LINK = 50e9  # bytes/s of a GPU to other nodes, each way: InfiniBand NDR, 400 Gbit/s for each GPU
# Part of a GPU's peak rate that is reached. A guess: a large product alone reaches 0.7 on an H100, and attention, norms
# and Adam, which are bound by memory, run while no product does.
UTILISATION = 0.4
# Part of a GPU's memory that the driver, its context and the allocator's gaps take.
RESERVE = 0.08


@dataclass
class Plan:
    """The figures of a run: counts, bytes, floating-point operations, hours."""

    gpu: Gpu
    utilisation: float
    model_parameters: int
    loaded_layers: int
    used_layers: int
    all_layers: int
    sae_parameters: int
    steps: int
    batch: int
    norm_tokens: int
    evaluations: int
    evaluation_tokens: int
    memory: dict[str, int]
    peak: dict[str, int]  # of each device
    work: dict[str, float]
    overlap: bool  # model and SAE work at the same time
    n_gpus: int  # that share out each batch
    reduced_bytes: float  # that a GPU sends, and receives, in a step: gradients in float32
    hours: dict[str, float] = field(default_factory=dict)
    alternatives: dict[str, float] = field(default_factory=dict)  # total hours in other number formats
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    kept: int = 0
    snapshots: int = 0
    snapshot_bytes: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the SAE is trained on."""
        return self.steps * self.batch

    @property
    def link(self) -> float:
        """Bytes/s between neighbours in the ring of GPUs, at its slowest place."""
        return self.gpu.link if self.n_gpus <= GPUS_OF_A_NODE else NODE_LINK

    @property
    def communication_hours(self) -> float:
        """Of averaging gradients, the part that is hidden behind the backward pass included."""
        return self.steps * self.reduced_bytes / self.link / 3600

    def waiting_hours(self, sae_hours: float) -> float:
        """Of `communication_hours`, those in which nothing else is done.

        The decoder's gradient, half of all, is there first. It is averaged during the encoder's, which is one of the
        five matrix products of a step.
        """
        half = self.communication_hours / 2
        return half + max(0.0, half - sae_hours / 5)

    @property
    def update_hours(self) -> float:
        """Of what several GPUs do not share: clipping and Adam, which read or write 10 numbers for each weight."""
        moved = 10 * self.memory["SAE"]
        return (1 - 1 / self.n_gpus) * self.steps * moved / self.gpu.memory_bandwidth / 3600

    @property
    def total_hours(self) -> float:
        """From the first step to the measured SAE."""
        return self.total(self.hours)

    @property
    def disk(self) -> int:
        """Most bytes at once: one more checkpoint than is kept lies there while it is written."""
        checkpoints = (self.kept + 1) * self.checkpoint_bytes
        return self.memory["SAE"] + checkpoints + self.snapshots * self.snapshot_bytes

    @property
    def fits(self) -> bool:
        """Whether every device has room, if each GPU of the run is one of `gpu`."""
        return all(peak <= (1 - RESERVE) * self.gpu.memory for peak in self.peak.values())

    def hours_at(self, model_rate: float, sae_rate: float) -> dict[str, float]:
        """Hours of each part of the work, shared out, at peak rates in FLOP/s; and of what comes with sharing."""
        rates = {name: model_rate if name.startswith("model") else sae_rate for name in self.work}
        reached = {name: rate * self.utilisation * self.n_gpus for name, rate in rates.items()}
        hours = {name: flops / reached[name] / 3600 for name, flops in self.work.items()}
        if self.n_gpus > 1:
            hours["update, not shared"] = self.update_hours
            hours["waiting for gradients"] = self.waiting_hours(hours["SAE, training"])
        return hours

    def total(self, hours: Mapping[str, float]) -> float:
        """Hours of the whole run."""
        sharing = hours.get("update, not shared", 0.0) + hours.get("waiting for gradients", 0.0)
        training = [hours["model, training"], hours["SAE, training"] + sharing]
        together = max(training) if self.overlap else sum(training)
        return together + hours["model, evaluations"] + hours["SAE, evaluations"]


def make_plan(
    cfg: LanguageModelSAERunnerConfig[Any],
    model_config: PretrainedConfig,
    *,
    extra: Mapping[str, Any],
    gpu: Gpu,
    n_gpus: int = 1,
    utilisation: float = UTILISATION,
) -> Plan:
    """The plan of a run.

    Args:
        cfg: what `build_config` made.
        model_config: the model's config.json.
        extra: what `extra_settings` gave.
        gpu: that the run is planned for.
        n_gpus: that share out each batch, one rank each.
        utilisation: part of its peak rate that is reached.

    Raises:
        UserError: an architecture whose memory the formulas do not describe.
    """
    from sae_training.checks import layers_to_load, norm_estimate_tokens
    from sae_training.config import model_dtype
    from sae_training.plan_work import ModelWork, sae_flops

    if cfg.sae.architecture() != "standard":
        raise UserError(
            f"--plan knows the memory of architecture standard, not of {cfg.sae.architecture()}; plan it as standard "
            "(--set sae.architecture=standard) for an estimate"
        )
    d_in, d_sae, context, batch = cfg.sae.d_in, cfg.sae.d_sae, cfg.context_size, cfg.train_batch_size_tokens
    share = batch // n_gpus
    rows, used, all_layers = cfg.store_batch_size_prompts, hook_layer(cfg.hook_name) + 1, model_config.num_hidden_layers
    size, dtype = ModelSize.of_config(model_config), model_dtype(cfg)
    model = ModelWork.of_config(model_config, context=context)
    loss_measured = extra["evaluate_cross_entropy"]
    loaded = all_layers if loss_measured else layers_to_load(cfg, model_config)
    row_tokens = len(range(context)[slice(*cfg.seqpos_slice)])
    held_out = cfg.n_eval_batches * (cfg.eval_batch_size_prompts or rows)
    every = cfg.logger.wandb_log_frequency * cfg.logger.eval_every_n_wandb_logs
    evaluations = 1 + (cfg.total_training_steps // every if cfg.logger.log_to_wandb else 0)
    evaluated_rows = evaluations * held_out
    steps, norm_tokens = math.ceil(cfg.training_tokens / batch), norm_estimate_tokens(cfg)

    sae_bytes = BYTES[cfg.dtype] * plan_memory.sae_parameters(d_in, d_sae)
    in_buffer = plan_memory.buffer_tokens(
        buffer=cfg.n_batches_in_buffer * row_tokens,
        batch=share,
        pass_tokens=rows * context,
        mix_fraction=cfg.activations_mixing_fraction,
    )
    forward = plan_memory.forward_peak_bytes(size, rows=rows, context=context, dtype=dtype)
    evaluation = plan_memory.evaluation_peak_bytes(
        size, d_in=d_in, d_sae=d_sae,
        rows=cfg.eval_batch_size_prompts or rows, context=context, dtype=dtype, loss=loss_measured,
    )  # fmt: skip
    memory = {
        "model": plan_memory.model_bytes(model.parameters(loaded), size, dtype),
        "SAE": sae_bytes,
        "gradients": sae_bytes,
        "Adam's moments": 2 * sae_bytes,
        "activation buffer": BYTES[dtype] * d_in * in_buffer,
        "forward pass, at its peak": forward,
        "SAE step, beside its gradients": plan_memory.step_peak_bytes(d_in, d_sae, share, autocast=cfg.autocast)
        - sae_bytes,
        "an evaluation, at most": sum(evaluation),
    }
    step_flops, forward_flops = sae_flops(cfg.get_training_sae_cfg_dict(), batch)
    work = {
        "model, training": model.flops(used) * (cfg.training_tokens + norm_tokens) / row_tokens,
        "SAE, training": float(step_flops * steps),
        # The loss of the model alone, and with zeros in the SAE's place, are measured once.
        "model, evaluations": float(
            model.flops(all_layers, unembed=True) * (evaluated_rows + 2 * held_out)
            if loss_measured
            else model.flops(used) * evaluated_rows
        ),
        "SAE, evaluations": forward_flops * evaluated_rows * row_tokens / batch,
    }
    plan = Plan(
        gpu=gpu,
        utilisation=utilisation,
        model_parameters=model.parameters(loaded),
        loaded_layers=loaded,
        used_layers=used,
        all_layers=all_layers,
        sae_parameters=plan_memory.sae_parameters(d_in, d_sae),
        steps=steps,
        batch=batch,
        norm_tokens=norm_tokens,
        evaluations=evaluations,
        evaluation_tokens=evaluated_rows * context,
        memory=memory,
        peak=_peaks(cfg, memory, evaluation, n_gpus=n_gpus),
        work=work,
        overlap=bool(cfg.prefetch_llm_batches) and cfg.llm_device != cfg.device,
        n_gpus=n_gpus,
        # Around a ring, first parts of the sum and then the sums.
        reduced_bytes=2 * (n_gpus - 1) / n_gpus * 4 * plan_memory.sae_parameters(d_in, d_sae),
    )
    _set_hours(plan, cfg, exact=extra["float32_matmul_precision"] == "highest", model_16_bit=dtype != "float32")
    if cfg.checkpoint_path is not None:
        minutes = extra["checkpoint_every_minutes"]
        plan.checkpoints = int(60 * plan.total_hours / minutes) if minutes else 0
        plan.checkpoint_bytes = plan_memory.checkpoint_bytes(d_in, d_sae, buffer=n_gpus * memory["activation buffer"])
        plan.kept = extra["checkpoints_kept"]
        plan.snapshots = cfg.n_checkpoints
        plan.snapshot_bytes = plan_memory.snapshot_bytes(d_in, d_sae)
    return plan


def _set_hours(plan: Plan, cfg: LanguageModelSAERunnerConfig[Any], *, exact: bool, model_16_bit: bool) -> None:
    """Fill in the hours of a run, and those of the same run in faster number formats."""
    gpu = plan.gpu
    float32_rate = gpu.float32 if exact else gpu.tf32
    model_16_bit = model_16_bit or cfg.autocast_lm
    sae_16_bit = cfg.dtype != "float32" or cfg.autocast
    model_rate = gpu.bfloat16 if model_16_bit else float32_rate
    plan.hours = plan.hours_at(model_rate, gpu.bfloat16 if sae_16_bit else float32_rate)
    if sae_16_bit:
        return
    if exact:
        hours = plan.hours_at(gpu.bfloat16 if model_16_bit else gpu.tf32, gpu.tf32)
        plan.alternatives["float32_matmul_precision: high"] = plan.total(hours)
    plan.alternatives["autocast: true"] = plan.total(plan.hours_at(model_rate, gpu.bfloat16))


def _peaks(
    cfg: LanguageModelSAERunnerConfig[Any], memory: Mapping[str, int], evaluation: tuple[int, int], *, n_gpus: int
) -> dict[str, int]:
    """Most memory of each device: what stays there, and the larger of what takes turns there."""
    llm, act, sae = cfg.llm_device or cfg.device, cfg.act_store_device or cfg.device, cfg.device
    stays = [(llm, memory["model"]), (act, memory["activation buffer"])]
    stays += [(sae, memory["SAE"] + memory["Adam's moments"])]
    if n_gpus > 1:
        stays += [(sae, memory["gradients"])]  # averaged where they lie, beside those that a backward pass gives
    forward = (llm, memory["forward pass, at its peak"])
    step = (sae, memory["gradients"] + memory["SAE step, beside its gradients"])
    turns = [[forward, step]] if cfg.prefetch_llm_batches else [[forward], [step]]
    turns.append([(llm, evaluation[0]), (sae, evaluation[1])])

    def on(device: str, parts: list[tuple[str, int]]) -> int:
        return sum(size for place, size in parts if place == device)

    devices = dict.fromkeys((llm, sae, act))
    return {device: on(device, stays) + max(on(device, turn) for turn in turns) for device in devices}


def render(plan: Plan, name: str) -> str:
    """The plan as text for a terminal."""
    gpus = plan.gpu.name if plan.n_gpus == 1 else f"{plan.n_gpus} × {plan.gpu.name}"
    lines = [f"plan of {name} for {gpus}, at {plan.utilisation:g} of its peak rate", ""]
    lines.append("parameters")
    layers = f"{plan.loaded_layers} of {plan.all_layers} layers loaded, {plan.used_layers} run"
    lines.append(_row("model", _count(plan.model_parameters), layers))
    lines.append(_row("SAE", _count(plan.sae_parameters)))
    lines += ["", "tokens"]
    lines.append(_row("training", _count(plan.tokens), f"{plan.steps:,} steps of {plan.batch:,}"))
    lines.append(_row("norm estimate", _count(plan.norm_tokens), "read before the first step"))
    lines.append(_row("evaluations", _count(plan.evaluation_tokens), f"held-out rows, {plan.evaluations:,} times"))
    lines += ["", "memory" if plan.n_gpus == 1 else "memory of each GPU"]
    lines += [_row(part, _bytes(size)) for part, size in plan.memory.items()]
    for device, peak in plan.peak.items():
        if device == "cpu":
            lines.append(_row("peak on cpu", _bytes(peak)))
            continue
        verdict = "fits" if peak <= (1 - RESERVE) * plan.gpu.memory else "DOES NOT FIT"
        room = f"{verdict} in {plan.gpu.memory / 1e9:.0f} GB, of which {RESERVE:.0%} are left for driver and gaps"
        lines.append(_row(f"peak on {device}", _bytes(peak), room))
    lines += ["", "work"]
    lines += [_row(part, f"{flops:.3g} FLOP", f"{_time(plan.hours[part])}") for part, flops in plan.work.items()]
    if plan.n_gpus > 1:
        lines.append(_row("update, not shared", "", _time(plan.hours["update, not shared"])))
        waiting = plan.hours["waiting for gradients"]
        each = f"{_time(waiting)}, {waiting / plan.total_hours:.0%} of all; {_time(plan.communication_hours)} at "
        each += f"{plan.link / 1e9:.0f} GB/s, of it the rest during the backward pass"
        lines.append(_row("gradients sent in a step", _bytes(plan.reduced_bytes), each))
    turns = "model and SAE at the same time" if plan.overlap else "one after the other"
    lines.append(_row("total", f"{sum(plan.work.values()):.3g} FLOP", f"{_time(plan.total_hours)}, {turns}"))
    lines += [_row("", "", f"{_time(hours)} with {how}") for how, hours in plan.alternatives.items()]
    lines += ["", "disk"]
    lines.append(_row("SAE", _bytes(plan.memory["SAE"])))
    if plan.snapshots:
        lines.append(_row("a snapshot of the SAE", _bytes(plan.snapshot_bytes), f"{plan.snapshots} kept"))
    if plan.checkpoint_bytes:
        often = f"about {plan.checkpoints:,} written, the last {plan.kept} kept until the end"
        lines.append(_row("a checkpoint", _bytes(plan.checkpoint_bytes), often))
    lines.append(_row("most at once", _bytes(plan.disk)))
    return "\n".join(lines)


def add_plan_arguments(parser: ArgumentParser) -> None:
    """Add ``--plan --gpu --utilisation``."""
    group = parser.add_argument_group("plan")
    group.add_argument("--plan", action="store_true", help="say what the run will take; no weights are loaded")
    group.add_argument("--gpu", choices=GPUS, default="h100", help="the GPU to plan for, each one that the run uses")
    group.add_argument("--gpus", type=positive_int, default=1, help="how many ranks torchrun would start, a GPU each")
    group.add_argument(
        "--utilisation", type=fraction, default=UTILISATION, help="part of the GPU's peak rate to count on"
    )


def _row(name: str, value: str, remark: str = "") -> str:
    return f"  {name:<32}{value:>14}{f'   {remark}' if remark else ''}".rstrip()


def _count(number: float) -> str:
    return f"{number / 1e6:,.1f} M"


def _bytes(number: float) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e8 else f"{number / 1e6:,.2f} MB"


def _time(hours: float) -> str:
    return (
        f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:,.1f} min" if hours >= 1 / 60 else f"{3600 * hours:,.1f} s"
    )
