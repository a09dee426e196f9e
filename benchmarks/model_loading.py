"""What loading only the first layers of a model saves: time, and peak memory on the host.

    python benchmarks/model_loading.py --model_path quickstart-run/model --n_layers 10,20,30

Each load is a process of its own, all sizes in turn, several rounds. Printed per size: the median seconds of
`load_model` and of a first forward pass of 8 tokens to the last layer's hook point (imports excluded, files in the page
cache), the largest growth of the process's peak resident memory over both, and the size of the weights. The forward
pass belongs to it because weights are memory-mapped: they come into memory when they are first used.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from transformer_lens_r1.shared.arguments import DTYPES, ArgumentParser, int_list, positive_int
from transformer_lens_r1.shared.errors import UserError, run

LOAD = """
import json, resource, sys, time
import torch
import transformer_lens.model_bridge
from transformers import AutoModelForCausalLM
from transformer_lens_r1 import load_config, load_model, residual_stream

path, dtype, n_layers = sys.argv[1], sys.argv[2], int(sys.argv[3])
load_config(path)
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
model = load_model(path, dtype=dtype, n_layers=n_layers)
loaded = time.perf_counter()
residual_stream(model, torch.arange(8)[None], f"blocks.{n_layers - 1}.hook_resid_post")
forward = time.perf_counter() - loaded
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = sum(tensor.numel() * tensor.element_size() for tensor in model.original_model.parameters())
# ru_maxrss is in KiB, on macOS in bytes
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"load": loaded - started, "forward": forward, "peak": (peak - before) * unit, "weights": weights}))
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_path", required=True, help="Hub id or local folder of the model")
    parser.add_argument("--n_layers", type=int_list, required=True, help="numbers of layers to load, like 10,20,30")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="number format of the weights")
    parser.add_argument("--rounds", type=positive_int, default=3, help="loads of each size")
    args = parser.parse_args(argv)

    measured: dict[int, list[dict[str, float]]] = {n: [] for n in args.n_layers}
    for _ in range(args.rounds):
        for n in args.n_layers:
            command = [sys.executable, "-c", LOAD, args.model_path, args.dtype, str(n)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise UserError(f"loading {n} layers failed: {done.stderr.strip().splitlines()[-1]}")
            measured[n].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'layers':>6} {'load s':>7} {'forward s':>9} {'peak MB':>8} {'weights MB':>10}")
    for n, runs in measured.items():
        load, forward = (statistics.median(one[part] for one in runs) for part in ("load", "forward"))
        peak = max(one["peak"] for one in runs)
        print(f"{n:>6} {load:>7.2f} {forward:>9.2f} {peak / 1e6:>8.0f} {runs[0]['weights'] / 1e6:>10.0f}")


if __name__ == "__main__":
    run(main)
