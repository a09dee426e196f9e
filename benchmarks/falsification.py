"""How much the test of what features mean adds to the forward passes that it needs.

    python benchmarks/falsification.py --model_path quickstart-run/model --layer 19

4 random features of a random SAE, 50 texts of 64 tokens, 5 strategies, on random token ids. Each round times, one after
the other, transformers' bare layers (sdpa) over the injected and the control texts, and `measure_changed`, which makes
these texts, runs them, encodes the features and keeps what is needed of each. Printed are medians. Then, by count and
not measured, the paper's size on an H100, and what encoding all features for each of these texts would take.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

EXTRACTION = Path(__file__).resolve().parent.parent / "extraction"
sys.path.insert(0, str(EXTRACTION))

from forward import bare_layers  # noqa: E402

from transformer_lens_r1.shared.arguments import (  # noqa: E402
    ArgumentParser,
    add_model_arguments,
    positive_int,
    resolve_device,
)
from transformer_lens_r1.shared.errors import run  # noqa: E402

STRATEGIES = ("prepend", "intersperse", "replace", "inject_bigram", "inject_trigram")
# The paper's size, and an H100's dense bfloat16 and TF32 peak at the share that the README assumes.
FEATURES, TEXTS, LENGTH, ALL_FEATURES, WIDTH = 200, 500, 67, 65_536, 4096
FORWARD_FLOPS, BF16, TF32 = 9.1e9, 0.4 * 989e12, 0.4 * 495e12


def paper_size() -> str:
    """Hours on one H100 for 100 features and 100 matched ones, 500 texts and eight strategies, with controls."""
    tokens = FEATURES * TEXTS * LENGTH * (2 * 8 + 1)
    forward = tokens * FORWARD_FLOPS / BF16
    ours, all_columns = (tokens * 2 * WIDTH * columns / TF32 for columns in (FEATURES, ALL_FEATURES))
    return (
        f"by count, the paper's size: {tokens / 1e6:,.0f} M tokens; forward {forward / 3600:.2f} h, the tested "
        f"features' columns {ours / 3600:.3f} h; with all {ALL_FEATURES:,} columns {all_columns / 3600:.2f} h"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument("--layer", type=int, default=19, help="layer whose output is read")
    parser.add_argument("--rounds", type=positive_int, default=5, help="of both in turn")
    parser.add_argument("--threads", type=positive_int, default=2, help="CPU threads")
    args = parser.parse_args(argv)

    import numpy as np
    import torch
    from falsification.material import Experiment, Settings
    from falsification.measure import measure_changed, measure_unchanged, observe
    from reasonscore.sae import encoder_of
    from sae_lens import StandardSAE, StandardSAEConfig

    from transformer_lens_r1 import load_config, load_model, residual_stream

    torch.set_num_threads(args.threads)
    device, hook_name = resolve_device(args.device), f"blocks.{args.layer}.hook_resid_post"
    config = load_config(args.model_path)
    model = load_model(args.model_path, dtype=args.dtype, device=device, n_layers=args.layer + 1)
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=config.hidden_size, d_sae=64, device=device))
    columns = encoder_of(sae, [0, 1, 2, 3])

    def encode(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return columns(residual_stream(model, ids.to(device), hook_name))

    # Few distinct ids, so that each is seen often enough.
    rows = torch.randint(100, 400, (2, 64, 256))
    settings = Settings(comma=50, strategies=STRATEGIES, n_texts=50)
    experiment = Experiment(*(observe(encode, text, settings) for text in rows), settings)
    measured = measure_unchanged(experiment, encode)
    units = [unit for unit in experiment.units() if unit.strategy != experiment.removal]
    texts = [text.ids for unit in units for side in experiment.variants(unit) for text in side]
    lengths = sorted({len(ids) for ids in texts})
    batches = [
        batch
        for length in lengths
        for batch in torch.from_numpy(np.stack([ids for ids in texts if len(ids) == length])).split(
            settings.tokens_per_pass // length
        )
    ]
    to_hook = bare_layers(args.model_path, args.layer, dtype=args.dtype, device=device)
    ratios, seconds = [], []
    for _ in range(args.rounds):
        started = time.perf_counter()
        for batch in batches:
            to_hook(batch.to(device))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        floor, started = time.perf_counter() - started, time.perf_counter()
        for _ in measure_changed(experiment, encode, measured, units):
            pass
        seconds.append(time.perf_counter() - started)
        ratios.append(seconds[-1] / floor)
    print(
        f"{len(texts):,} texts, {sum(map(len, texts)):,} tokens: {statistics.median(seconds):.2f} s, "
        f"{statistics.median(ratios):.3f} of the bare passes ({min(ratios):.3f} to {max(ratios):.3f})"
    )
    print(paper_size())


if __name__ == "__main__":
    run(main)
