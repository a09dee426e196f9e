"""What steering costs in vLLM: baseline, steered, and the whole SAE at every token, eager and compiled.

    python benchmarks/steering.py --model_path quickstart-run/model --layer 19

The engines of one kind are started together and generate the same number of tokens from the same prompts in turn,
several rounds, each round beginning with another one. The SAE has random weights. Printed for each number of
sequences: tokens/s (median of the rounds), the ratio to the baseline engine of the same kind (median, least and
greatest of the rounds' ratios), and the peak resident memory of the engine's processes (Linux; on a GPU it is the
host's).

    baseline   an engine that cannot steer
    unsteered  an engine that can, none of its requests steered
    steered    the same engine, each request with one of 32 interventions (a feature and a strength of its own)
    full SAE   the layer's output encoded and decoded with all features, one of them set, the error added back
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import psutil  # noqa: E402

from lm_eval_sae.errors import UserError, run  # noqa: E402
from transformer_lens_r1.shared.arguments import ArgumentParser, int_list, positive_int  # noqa: E402

if TYPE_CHECKING:
    from argparse import Namespace

    from lm_eval_sae.engines.vllm_model import VLLMSAE
    from lm_eval_sae.steering.arguments import Steering

INTERVENTIONS = 32
KV_CACHE_BYTES = 2**30  # of each engine
GPU_SHARE = 0.3  # of a GPU's memory for each engine: three run side by side


def save_random_sae(folder: Path, *, d_in: int, d_sae: int, layer: int) -> None:
    """A standard SAE with random weights and unit decoder rows, as SAELens would save it."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    weights = {
        "W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d_in),
    }  # fmt: skip
    save_file(weights, folder / "sae_weights.safetensors")
    cfg = {
        "architecture": "standard", "d_in": d_in, "d_sae": d_sae, "apply_b_dec_to_input": False,
        "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(cfg))


def start(args: Namespace, *, eager: bool, **arguments: Any) -> tuple[VLLMSAE, set[psutil.Process]]:
    """An engine, and its processes."""
    import torch

    from lm_eval_sae.engines.vllm_model import VLLMSAE

    if torch.cuda.is_available():
        arguments["gpu_memory_utilization"] = GPU_SHARE
    before = set(psutil.Process().children(recursive=True))
    model = VLLMSAE(
        args.model_path, dtype=args.dtype, max_model_len=512, max_num_seqs=max(args.sequences), enforce_eager=eager,
        kv_cache_memory_bytes=KV_CACHE_BYTES, **arguments,
    )  # fmt: skip
    return model, set(psutil.Process().children(recursive=True)) - before


def start_variants(args: Namespace, sae: Path, *, eager: bool) -> list[Variant]:
    """All of one kind."""
    from lm_eval_sae.steering.arguments import read_steering

    one = {"sae_path": str(sae), "sae_max_activation": 1.0}
    steerings = [read_steering({**one, "sae_feature_idx": i, "sae_strength": 1 + i / 8}) for i in range(INTERVENTIONS)]
    full = {"path": str(sae), "layer": args.layer, "feature": 7, "value": 1.0}
    baseline = start(args, eager=eager)
    steered = start(args, eager=eager, layers={args.layer: 1})
    every_feature = start(
        args, eager=eager, worker_cls="full_sae_worker.FullSAEWorker", additional_config={"full_sae": full}
    )
    return [
        Variant("baseline", *baseline, [None]),
        Variant("unsteered", *steered, [None]),
        Variant("steered", *steered, steerings),
        Variant("full SAE", *every_feature, [None]),
    ]


@dataclass
class Variant:
    """A running engine, what its requests ask for in turn, and what was measured of it."""

    name: str
    model: VLLMSAE
    processes: set[psutil.Process]
    steerings: list[Steering | None]
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def generate(self, sequences: int, *, tokens: int) -> None:
        """Times one batch of greedy completions of exactly `tokens` tokens each."""
        from lm_eval_sae.engines.vllm_model import SamplingParams, steered

        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        params = [steered(greedy, self.steerings[i % len(self.steerings)]) for i in range(sequences)]
        prompts = [
            f"Question {i}. Wait, let me think about this again: what is {i} + {i * i}?" for i in range(sequences)
        ]
        ids = self.model.tok_encode(prompts)
        started = time.perf_counter()
        self.model.engine.generate(ids, params, progress=False)
        self.seconds.setdefault(sequences, []).append(time.perf_counter() - started)

    def peak_mib(self) -> float:
        """Peak resident memory of the engine's processes, added up."""
        total = 0
        for process in self.processes:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except FileNotFoundError:
                continue
            total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        return total / 1024


def measure(variants: list[Variant], sequences: int, *, tokens: int, rounds: int) -> None:
    """Times every variant once in each round; what is first in one round is last in the next."""
    for variant in variants:
        variant.generate(sequences, tokens=tokens)
        variant.seconds[sequences].clear()  # the first batch warms up
    for number in range(rounds):
        first = number % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            variant.generate(sequences, tokens=tokens)


def report(variants: list[Variant], sequences: int, *, tokens: int, kind: str) -> None:
    """Prints one table; the first variant, the baseline, is the measure."""
    print(f"\n{sequences} sequences of {tokens} tokens, {len(variants[0].seconds[sequences])} rounds")
    for variant in variants:
        seconds = variant.seconds[sequences]
        ratios = [a / b for a, b in zip(variants[0].seconds[sequences], seconds, strict=True)]
        speed = sequences * tokens / statistics.median(seconds)
        print(
            f"  {kind:<9}{variant.name:<10}{speed:8.0f} tokens/s   {statistics.median(ratios):.3f} of baseline "
            f"({min(ratios):.3f} to {max(ratios):.3f})   peak {variant.peak_mib():6.0f} MiB",
            flush=True,
        )


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model_path", required=True, help="folder or Hub id of the model")
    parser.add_argument("--layer", type=int, default=19, help="layer whose output is changed")
    parser.add_argument("--expansion", type=positive_int, default=16, help="features per dimension of the SAE")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the model")
    parser.add_argument("--sequences", type=int_list, default=[16, 64], help="sequences at once, separated by commas")
    parser.add_argument("--tokens", type=positive_int, default=64, help="tokens of each completion")
    parser.add_argument("--rounds", type=positive_int, default=5, help="times that every variant is timed")
    parser.add_argument("--kinds", default="eager,compiled", help="eager, compiled or both")
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    if not set(kinds) <= {"eager", "compiled"}:
        raise UserError(f"--kinds is {args.kinds}, expected eager, compiled or both, separated by a comma")

    import transformers

    config = transformers.AutoConfig.from_pretrained(args.model_path)
    with tempfile.TemporaryDirectory() as folder:
        sae = Path(folder)
        save_random_sae(sae, d_in=config.hidden_size, d_sae=args.expansion * config.hidden_size, layer=args.layer)
        for kind in kinds:
            variants = start_variants(args, sae, eager=kind == "eager")
            for sequences in args.sequences:
                measure(variants, sequences, tokens=args.tokens, rounds=args.rounds)
                report(variants, sequences, tokens=args.tokens, kind=kind)
            for model in {id(variant.model): variant.model for variant in variants}.values():
                model.close()


if __name__ == "__main__":
    run(main)
