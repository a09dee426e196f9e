"""Two GPUs against one: sums of scoring, dashboards, a training step, speed; tensor-parallel steering.

Without any GPU the ranks are two CPU processes, which add up with gloo. With one GPU the part is left out.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from material import IGNORED, Material, make_material
from measure import Machine, Rows, matmul_precision, run_part
from part_scores import SHOWN, load, one_pass
from part_steering import LIMITS, engine_arguments, with_vllm
from part_training import Run, new_trainer, round_of, speed_of
from reasonscore.chunks import load_sums, save_sums
from reasonscore.one_pass import add_over_ranks

from transformer_lens_r1 import load_model
from transformer_lens_r1.shared.ranks import Ranks, joined_ranks

N_ROWS = 32
ROWS_PER_BATCH = 4  # also on one GPU: the same batches
RANK = "rank"
"""First argument of a process that torchrun started."""
WITH_DASHBOARDS = find_spec("sae_dashboard") is not None


def results(machine: Machine, material: Material, work: Path, name: str, ranks: Ranks) -> None:
    """Write what is compared: `work/NAME.sums`, and `work/NAME.pt` with all the rest."""
    tokens = material.sizes.tokens(N_ROWS)
    model, sae = load(material, machine.device, dtype="bfloat16")
    sums = one_pass(model, sae, tokens, material, rows=ranks.rows(N_ROWS), rows_per_batch=ROWS_PER_BATCH)
    add_over_ranks(sums, ranks)
    found: dict[str, Any] = {}
    if WITH_DASHBOARDS:
        from feature_pages.activations import store_activations

        folder = work / f"{name}.dashboards"
        folder.mkdir(exist_ok=True)
        stored = store_activations(
            model, sae, tokens, list(range(SHOWN)), folder, hook_name=material.sizes.hook_name, ignored_ids=IGNORED,
            rows_per_batch=ROWS_PER_BATCH, ranks=ranks,
        )  # fmt: skip
        found["activations"] = torch.stack([stored.of(index) for index in range(SHOWN)])
        found["correlations"] = stored.correlations.neurons.corrcoef()[0]
    del model, sae
    machine.forget_peak()
    found["gradients"] = clipped_gradients(machine, material, ranks)
    machine.forget_peak()
    model = load_model(material.checkpoint, device=machine.device, dtype="bfloat16")
    one_round, found["steps"] = round_of(Run(material, work / name, machine, steps=10_000), model, ranks)
    found["seconds"], found["peak"] = machine.seconds(one_round), machine.peak_bytes()
    if ranks.is_first:
        save_sums(work / f"{name}.sums", sums, {})
        torch.save(found, work / f"{name}.pt")


def clipped_gradients(machine: Machine, material: Material, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Of a first step on a batch that the ranks share out."""
    sizes = material.sizes
    trainer = new_trainer(machine, sizes.width, sizes.features, sizes.batch, l1=5.0, ranks=ranks)
    trainer.activation_scaler.scaling_factor = 1.0
    own = ranks.rows(sizes.batch)
    with matmul_precision("highest"):
        trainer.step(torch.randn(sizes.batch, sizes.width)[own.start : own.stop])
    # Adam's first moment is a tenth of them.
    return {name: trainer.optimizer.state[p]["exp_avg"].cpu() for name, p in trainer.sae.named_parameters()}


def rank(work: Path) -> None:
    """One of the ranks."""
    machine = Machine()
    with joined_ranks() as ranks:
        machine.device = ranks.device(machine.device)
        ranks.connect(machine.device)
        results(machine, make_material(work, machine), work, "two", ranks)


def check_ranks(rows: Rows, work: Path) -> None:
    """What two ranks find is what one process finds with the same batches."""
    machine = rows.machine
    material = make_material(work, machine)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    # On a CPU the number of threads decides how sums are rounded, and torchrun would choose one.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([*launch, RANK, str(work)], check=True, env=environment)
    results(machine, material, work, "one", Ranks())
    gc.collect()
    name = f"two ranks ({'NCCL' if machine.is_cuda else 'gloo, on the CPU'})"
    both, alone = (load_sums(work / f"{which}.sums")[0] for which in ("two", "one"))
    for counted in ("positions_by_block", "n_matches", "n_active", "maximum"):
        rows.equal(f"{name}: {counted} as of one", torch.equal(getattr(both, counted), getattr(alone, counted)), True)
    apart = (both.by_block - alone.by_block).abs().max() / alone.by_block.max()
    rows.at_most(f"{name}: distance of the sums", apart.item(), 1e-9)

    two, one = (torch.load(work / f"{which}.pt", weights_only=True) for which in ("two", "one"))
    if WITH_DASHBOARDS:
        same = torch.equal(two["activations"], one["activations"])
        rows.equal(f"{name}: dashboards' activations as of one", same, True)
        apart = (two["correlations"] - one["correlations"]).abs().max()
        rows.at_most(f"{name}: distance of the dashboards' correlations", apart.item(), 1e-9)
    else:
        rows.note("dashboards on two ranks", "left out: sae-dashboard is not installed")
    gradients = one["gradients"]
    norm = sum(gradient.square().sum() for gradient in gradients.values()) ** 0.5
    worst = max((two["gradients"][key] - gradient).norm() / norm for key, gradient in gradients.items())
    # How a GPU's products are cut into parts depends on the number of tokens.
    limit = 1e-5 if machine.is_cuda else 1e-6
    rows.at_most(f"{name}: distance of a step's gradients, over their norm", worst.item(), limit)
    run = Run(material, work / "one", machine)
    for count, of in ((1, one), (2, two)):
        what = f"training, model and SAE, ranks: {count}; FLOP/s of each"
        rows.speed(what, **speed_of(run, of["steps"], of["seconds"], ranks=count), peak=of["peak"])
    rows.note(f"{name}: speed of training, times that of one", one["seconds"] / two["seconds"])


def check_tensor_parallel(rows: Rows, work: Path) -> None:
    """Two tensor-parallel ranks give the full SAE's log-likelihoods and count the same positions."""
    from steered import Question, compare, start

    material = make_material(work, rows.machine)
    arguments = engine_arguments(rows.machine, work, dtype="bfloat16", max_num_seqs=8, tensor_parallel_size=2)
    model = start(material, **arguments)
    question = Question(material)
    compare(rows, "tensor parallel 2", model, question, limit=LIMITS["cuda"]["bfloat16"])
    counts = model.model.collective_rpc("steered_positions", args=([case.key for case in question.cases],))
    rows.equal("tensor parallel 2: ranks that count the same", len({str(count) for count in counts}), 1)
    model.close()


def part(rows: Rows, work: Path) -> None:
    if rows.machine.is_cuda and torch.cuda.device_count() < 2:
        rows.note("scoring, dashboards, training and steering on two GPUs", "left out: one GPU")
        return
    check_ranks(rows, work)
    if not rows.machine.is_cuda:
        rows.note("tensor-parallel steering", "left out: no GPU (tests/evaluation/test_vllm_parallel.py has it)")
    elif not with_vllm():
        rows.note("tensor-parallel steering", "left out: vllm and lm-eval are not both installed")
    else:
        check_tensor_parallel(rows, work)


if __name__ == "__main__":
    if sys.argv[1] == RANK:
        rank(Path(sys.argv[2]))
    else:
        run_part(part)
