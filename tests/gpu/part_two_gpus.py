"""Two GPUs: NCCL's sums of two ranks against one GPU's, and tensor-parallel steering against the full SAE.

Without any GPU the ranks are two CPU processes, which add up with gloo. With one GPU the part is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from material import make_material
from measure import Machine, Rows, run_part
from part_scores import load, one_pass
from part_steering import LIMITS, engine_arguments, with_vllm
from reasonscore.chunks import load_sums, save_sums
from reasonscore.one_pass import add_over_ranks

from transformer_lens_r1.shared.ranks import joined_ranks

N_ROWS = 32
RANK = "rank"
"""First argument of a process that torchrun started."""


def rank(work: Path) -> None:
    """One of the ranks: a share of the rows, added up into the first one's sums, which it saves."""
    machine = Machine()
    with joined_ranks() as ranks:
        machine.device = ranks.device(machine.device)
        ranks.connect(machine.device)
        material = make_material(work, machine)
        tokens = material.sizes.tokens(N_ROWS)
        model, sae = load(material, machine.device, dtype="bfloat16")
        sums = one_pass(model, sae, tokens, material, rows=ranks.rows(N_ROWS), rows_per_batch=4)
        add_over_ranks(sums, ranks)
        if ranks.is_first:
            save_sums(work / "sums.safetensors", sums, {})


def check_sums(rows: Rows, work: Path) -> None:
    """The sums of two ranks are those of one process with the same batches."""
    machine = rows.machine
    material = make_material(work, machine)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    # On a CPU the number of threads decides how sums are rounded, and torchrun would choose one.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([*launch, RANK, str(work)], check=True, env=environment)
    both = load_sums(work / "sums.safetensors")[0]
    model, sae = load(material, machine.device, dtype="bfloat16")
    alone = one_pass(model, sae, material.sizes.tokens(N_ROWS), material, rows_per_batch=4).to("cpu")
    name = "NCCL" if machine.is_cuda else "gloo, on the CPU"
    for counted in ("positions_by_block", "n_matches", "n_active", "maximum"):
        same = torch.equal(getattr(both, counted), getattr(alone, counted))
        rows.equal(f"two ranks ({name}): {counted} as of one", same, True)
    apart = (both.by_block - alone.by_block).abs().max() / alone.by_block.max()
    rows.at_most(f"two ranks ({name}): distance of the sums", apart.item(), 1e-9)


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
        rows.note("NCCL sums, tensor-parallel steering", "left out: one GPU")
        return
    check_sums(rows, work)
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
