"""What a training run will take, computed from its configuration and the model's config.json alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sae_training import plan_memory as formulas
from sae_training.checks import norm_estimate_tokens
from sae_training.plan_memory import BYTES, ModelSize
from transformer_lens_r1.loading import hook_layer
from transformer_lens_r1.shared.arguments import ArgumentParser, fraction
from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from sae_lens import LanguageModelSAERunnerConfig


@dataclass(frozen=True)
class Gpu:
    """Peak rates of matrix products in FLOP/s, without sparsity, and memory in bytes."""

    name: str
    bfloat16: float
    tf32: float
    float32: float
    memory: float


# From NVIDIA's data sheets: H100 and H200 Tensor Core GPU (SXM), A100 80GB Tensor Core GPU (SXM), L40S, and the
# whitepaper of the Ada GPU architecture for the GeForce RTX 4090 (16-bit rate with float32 accumulation). The sheets of
# H100, H200 and L40S give rates with sparsity, which are twice these.
GPUS = {
    "h100": Gpu("H100 SXM", 989.4e12, 494.7e12, 66.9e12, 80e9),
    "h200": Gpu("H200 SXM", 989.4e12, 494.7e12, 66.9e12, 141e9),
    "a100": Gpu("A100 SXM", 312e12, 156e12, 19.5e12, 80e9),
    "l40s": Gpu("L40S", 362.1e12, 183.2e12, 91.6e12, 48e9),
    "rtx-4090": Gpu("GeForce RTX 4090", 165.2e12, 82.6e12, 82.6e12, 24e9),
}
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
    tokens: int
    steps: int
    batch: int
    norm_tokens: int
    evaluations: int
    evaluation_tokens: int
    memory: dict[str, int]
    peak: dict[str, int] = field(default_factory=dict)  # of each device
    work: dict[str, float] = field(default_factory=dict)
    hours: dict[str, float] = field(default_factory=dict)
    total_hours: float = 0.0
    overlap: bool = False
    alternatives: dict[str, float] = field(default_factory=dict)  # total hours in other number formats
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    kept: int = 0
    snapshots: int = 0
    snapshot_bytes: int = 0
    disk: int = 0

    @property
    def fits(self) -> bool:
        """Whether every device has room, if each GPU of the run is one of `gpu`."""
        return all(peak <= (1 - RESERVE) * self.gpu.memory for peak in self.peak.values())


def make_plan(
    cfg: LanguageModelSAERunnerConfig[Any],
    size: ModelSize,
    *,
    own: Mapping[str, Any],
    loaded_layers: int,
    model_dtype: str,
    gpu: Gpu,
    utilisation: float = UTILISATION,
) -> Plan:
    """The plan of a run.

    Args:
        cfg: what `build_config` made.
        size: of the whole model.
        own: what `own_settings` gave.
        loaded_layers: how many of the model's layers are loaded.
        model_dtype: the language model's number format.
        gpu: that the run is planned for.
        utilisation: part of its peak rate that is reached.

    Raises:
        UserError: an architecture whose work the formulas do not describe.
    """
    if cfg.sae.architecture() != "standard":
        raise UserError(
            f"--plan knows the work of architecture standard, not of {cfg.sae.architecture()}; plan it as standard "
            "(--set sae.architecture=standard) for an estimate"
        )
    d_in, d_sae, context, batch = cfg.sae.d_in, cfg.sae.d_sae, cfg.context_size, cfg.train_batch_size_tokens
    rows, used = cfg.store_batch_size_prompts, hook_layer(cfg.hook_name) + 1
    loss_measured = own["evaluate_cross_entropy"]
    row_tokens = len(range(context)[slice(*cfg.seqpos_slice)])
    norm_tokens = norm_estimate_tokens(cfg)
    held_out = cfg.n_eval_batches * (cfg.eval_batch_size_prompts or rows)
    every = cfg.logger.wandb_log_frequency * cfg.logger.eval_every_n_wandb_logs
    evaluations = 1 + (cfg.total_training_steps // every if cfg.logger.log_to_wandb else 0)
    steps = math.ceil(cfg.training_tokens / batch)

    sae_bytes = BYTES[cfg.dtype] * formulas.sae_parameters(d_in, d_sae)
    buffer = (
        BYTES[model_dtype]
        * d_in
        * formulas.buffer_tokens(
            buffer=cfg.n_batches_in_buffer * row_tokens,
            batch=batch,
            pass_tokens=rows * context,
            mix_fraction=cfg.activations_mixing_fraction,
        )
    )
    step = formulas.step_peak_bytes(d_in, d_sae, batch, autocast=cfg.autocast)
    plan = Plan(
        gpu=gpu,
        utilisation=utilisation,
        model_parameters=formulas.model_parameters(size, loaded_layers),
        loaded_layers=loaded_layers,
        used_layers=used,
        all_layers=size.n_layers,
        sae_parameters=formulas.sae_parameters(d_in, d_sae),
        tokens=steps * batch,
        steps=steps,
        batch=batch,
        norm_tokens=norm_tokens,
        evaluations=evaluations,
        evaluation_tokens=evaluations * held_out * context,
        memory={
            "model": formulas.model_bytes(size, loaded_layers, model_dtype),
            "SAE": sae_bytes,
            "gradients": sae_bytes,
            "Adam's moments": 2 * sae_bytes,
            "activation buffer": buffer,
            "forward pass, at its peak": formulas.forward_peak_bytes(
                size, used, rows=rows, context=context, dtype=model_dtype
            ),
            "SAE step, beside its gradients": step - sae_bytes,
        },
    )

    passes = (cfg.training_tokens + norm_tokens) / row_tokens  # rows of the data that the model reads
    evaluated_rows = evaluations * held_out
    plan.work = {
        "model, training": formulas.model_flops(size, used, rows=1, context=context) * passes,
        "SAE, training": float(
            formulas.sae_step_flops(d_in, d_sae, plan.tokens, input_gradient=cfg.sae.apply_b_dec_to_input)
        ),
        "model, evaluations": float(
            # The loss of the model alone, and with zeros in the SAE's place, are measured once.
            formulas.model_flops(size, size.n_layers, rows=evaluated_rows + 2 * held_out, context=context, unembed=True)
            if loss_measured
            else formulas.model_flops(size, used, rows=evaluated_rows, context=context)
        ),
        "SAE, evaluations": float(formulas.sae_forward_flops(d_in, d_sae, evaluated_rows * row_tokens)),
    }
    model_16_bit = model_dtype != "float32" or cfg.autocast_lm
    sae_16_bit = cfg.dtype != "float32" or cfg.autocast
    plan.overlap = bool(cfg.prefetch_llm_batches) and cfg.llm_device != cfg.device
    float32_rate = gpu.float32 if own["float32_matmul_precision"] == "highest" else gpu.tf32
    model_rate = gpu.bfloat16 if model_16_bit else float32_rate
    plan.hours = _hours(plan.work, model_rate, gpu.bfloat16 if sae_16_bit else float32_rate, utilisation)
    plan.total_hours = _total(plan.hours, plan.overlap)
    if not sae_16_bit:
        if float32_rate != gpu.tf32:
            tf32_model = gpu.bfloat16 if model_16_bit else gpu.tf32
            hours = _hours(plan.work, tf32_model, gpu.tf32, utilisation)
            plan.alternatives["float32_matmul_precision: high"] = _total(hours, plan.overlap)
        hours = _hours(plan.work, model_rate, gpu.bfloat16, utilisation)
        plan.alternatives["autocast: true"] = _total(hours, plan.overlap)

    evaluation = formulas.evaluation_peak_bytes(
        size, size.n_layers if loss_measured else used, d_in=d_in, d_sae=d_sae,
        rows=cfg.eval_batch_size_prompts or rows, context=context, dtype=model_dtype, loss=loss_measured,
    )  # fmt: skip
    plan.memory["an evaluation, at most"] = sum(evaluation)
    plan.peak = _peaks(cfg, plan.memory, evaluation)
    if cfg.checkpoint_path is not None:
        minutes = own["checkpoint_every_minutes"]
        plan.checkpoints = int(60 * plan.total_hours / minutes) if minutes else 0
        plan.checkpoint_bytes = formulas.checkpoint_bytes(d_in, d_sae, buffer=buffer)
        plan.kept = own["checkpoints_kept"]
        plan.snapshots = cfg.n_checkpoints
        plan.snapshot_bytes = formulas.snapshot_bytes(d_in, d_sae)
    # One more checkpoint than is kept lies there while it is written; an interruption writes them too.
    plan.disk = sae_bytes + (plan.kept + 1) * plan.checkpoint_bytes + plan.snapshots * plan.snapshot_bytes
    return plan


def _hours(work: Mapping[str, float], model_rate: float, sae_rate: float, utilisation: float) -> dict[str, float]:
    rates = {name: model_rate if name.startswith("model") else sae_rate for name in work}
    return {name: flops / (rates[name] * utilisation) / 3600 for name, flops in work.items()}


def _total(hours: Mapping[str, float], overlap: bool) -> float:
    training = [hours["model, training"], hours["SAE, training"]]
    return (max(training) if overlap else sum(training)) + hours["model, evaluations"] + hours["SAE, evaluations"]


def _peaks(
    cfg: LanguageModelSAERunnerConfig[Any], memory: Mapping[str, int], evaluation: tuple[int, int]
) -> dict[str, int]:
    """Most memory of each device: what stays there, and the larger of what takes turns there."""
    llm, act, sae = cfg.llm_device or cfg.device, cfg.act_store_device or cfg.device, cfg.device
    stays = [(llm, memory["model"]), (act, memory["activation buffer"])]
    stays += [(sae, memory["SAE"] + memory["Adam's moments"])]
    forward = (llm, memory["forward pass, at its peak"])
    step = (sae, memory["gradients"] + memory["SAE step, beside its gradients"])
    turns = [[forward, step]] if cfg.prefetch_llm_batches else [[forward], [step]]
    turns.append([(llm, evaluation[0]), (sae, evaluation[1])])
    peaks = {}
    for device in dict.fromkeys((llm, sae, act)):
        peaks[device] = sum(size for where, size in stays if where == device) + max(
            sum(size for where, size in turn if where == device) for turn in turns
        )
    return peaks


def render(plan: Plan, name: str) -> str:
    """The plan as text for a terminal."""
    lines = [f"plan of {name} for {plan.gpu.name}, at {plan.utilisation:g} of its peak rate", ""]
    lines.append("parameters")
    layers = f"{plan.loaded_layers} of {plan.all_layers} layers loaded, {plan.used_layers} run"
    lines.append(_row("model", _count(plan.model_parameters), layers))
    lines.append(_row("SAE", _count(plan.sae_parameters)))
    lines += ["", "tokens"]
    lines.append(_row("training", _count(plan.tokens), f"{plan.steps:,} steps of {plan.batch:,}"))
    lines.append(_row("norm estimate", _count(plan.norm_tokens), "read before the first step"))
    lines.append(_row("evaluations", _count(plan.evaluation_tokens), f"held-out rows, {plan.evaluations:,} times"))
    lines += ["", "memory"]
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
    group.add_argument(
        "--utilisation", type=fraction, default=UTILISATION, help="part of the GPU's peak rate to count on"
    )


def print_plan(values: Mapping[str, Any], *, name: str, gpu: str, utilisation: float) -> None:
    """Print the plan of the config that `read_config` gave.

    Raises:
        UserError: the config is wrong, or does not fit its model; or the utilisation is 0.
    """
    from sae_training.checks import check_model, hub_arguments
    from sae_training.config import build_config, model_dtype, own_settings
    from transformer_lens_r1.loading import load_config

    if utilisation == 0:
        raise UserError("--utilisation 0: expected more than 0, at most 1")
    cfg = build_config(values)
    up_to_the_hook, own = check_model(cfg), own_settings(values)
    size = ModelSize.of_config(load_config(cfg.model_name, **hub_arguments(cfg)))
    plan = make_plan(
        cfg,
        size,
        own=own,
        loaded_layers=size.n_layers if own["evaluate_cross_entropy"] else up_to_the_hook,
        model_dtype=model_dtype(cfg),
        gpu=GPUS[gpu],
        utilisation=utilisation,
    )
    print(render(plan, name))


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
