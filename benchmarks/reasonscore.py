"""What ReasonScore costs: one pass against its floor, and against the method that runs the model for every 48 features.

    python benchmarks/reasonscore.py --model_path quickstart-run/model --dataset_path tests/fixtures/text

SAEs of random weights, made on the fly, for the model's layer 19; the vocabulary that ships. All variants run in one
process, in turn, several rounds, on the same batches; times are medians. Printed:

    pass     `sum_activations` as extraction/compute_score.py calls it
    floor    transformers' layers up to the hook point (sdpa) and the encode alone, on the same batches: what any
             method must do
    repeated one pass for each 48 features, at 1,024 features run in full (22 passes) on fewer rows; at larger sizes one
             of its passes is timed and multiplied by their number
    memory   growth of the process's peak resident memory over a pass (Linux), activations of one block included

and the growth of a pass with tokens, and the ratio at the paper's sizes, counted in operations.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

EXTRACTION = Path(__file__).resolve().parent.parent / "extraction"
sys.path.insert(0, str(EXTRACTION))

from forward import bare_layers  # noqa: E402

from transformer_lens_r1.shared.arguments import DTYPES, ArgumentParser, int_list, positive_int  # noqa: E402
from transformer_lens_r1.shared.errors import UserError, run  # noqa: E402

if TYPE_CHECKING:
    from sae_lens import SAE

FEATURES_A_PASS = 48
N_SETS = 12
"""Of the paper's vocabulary: ten words, any of them, none of them."""


def random_sae(d_in: int, d_sae: int) -> SAE:
    """A standard SAE with random weights and unit decoder directions; some of its features fire at a token."""
    import torch
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class("standard")
    sae = sae_class(config_class(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d_in, d_sae, generator=generator) / math.sqrt(d_in))
        sae.W_dec.copy_(sae.W_enc.T / sae.W_enc.norm(dim=0)[:, None])
        sae.b_enc.fill_(-10)
    return sae.eval().requires_grad_(False)


def forward_operations(d_model: int, d_kv: int, d_mlp: int, n_layers: int, context_size: int) -> float:
    """Floating-point operations per token of ``n_layers`` Llama layers: two for each weight, and causal attention."""
    weights = 2 * d_model * d_model + 2 * d_model * d_kv + 3 * d_model * d_mlp
    return n_layers * (2 * weights + 4 * d_model * context_size / 2)


def encode_and_sum_operations(d_model: int, features: int) -> float:
    """Operations per token of the encoder and of the sums: membership product, comparison, count and maximum."""
    return features * (2 * d_model + 2 * N_SETS + 4)


def operation_ratio(forward: float, d_model: int, features: int) -> float:
    """How many times as many operations the repeated-pass method takes."""
    passes = math.ceil(features / FEATURES_A_PASS)
    return (passes * forward + encode_and_sum_operations(d_model, features)) / (
        forward + encode_and_sum_operations(d_model, features)
    )


class PeakMemory:
    """Growth of this process's peak resident memory over a call, in bytes; NaN where the system does not tell."""

    def of(self, function: Callable[[], object]) -> float:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = self._read("VmRSS")
        except OSError:
            function()
            return math.nan
        function()
        return self._read("VmHWM") - before

    def _read(self, name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_path", required=True, help="Hub id or local folder, of a small model")
    parser.add_argument("--dataset_path", required=True, help="data set with a column `text`")
    parser.add_argument("--layer", type=int, default=19, help="the SAEs read its output")
    parser.add_argument("--features", type=int_list, default=[1024, 9216, 36864], help="SAE sizes (1024,9216,36864)")
    parser.add_argument("--context_size", type=positive_int, default=256, help="tokens in a row")
    parser.add_argument("--rows", type=positive_int, default=32, help="rows in a pass")
    parser.add_argument("--rows_repeated", type=positive_int, default=8, help="rows for the repeated-pass method")
    parser.add_argument("--minibatch_size_tokens", type=positive_int, default=8, help="rows in a forward pass")
    parser.add_argument("--minibatch_size_features", type=positive_int, default=1024, help="features encoded at once")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the model; SAEs are in float32")
    parser.add_argument("--rounds", type=positive_int, default=5, help="of all variants in turn")
    parser.add_argument("--threads", type=positive_int, default=2, help="CPU threads")
    args = parser.parse_args(argv)

    import torch
    from reasonscore.inputs import sample_rows
    from reasonscore.one_pass import sum_activations
    from reasonscore.sae import encoder_blocks
    from reasonscore.score import group_spellings

    from transformer_lens_r1 import load_config, load_model, load_tokenizer
    from transformer_lens_r1.shared.data import load_rows
    from transformer_lens_r1.shared.vocabulary import read_vocabulary

    torch.set_num_threads(args.threads)
    config, tokenizer = load_config(args.model_path), load_tokenizer(args.model_path)
    if not 0 <= args.layer < config.num_hidden_layers:
        raise UserError(f"--layer {args.layer}: the model's layers are 0 to {config.num_hidden_layers - 1}")
    tokens = sample_rows(
        load_rows(args.dataset_path, columns=("text",)),
        tokenizer,
        column="text",
        context_size=args.context_size,
        prepend_bos=False,
        n_samples=args.rows,
        vocab_size=config.vocab_size,
    )
    if len(tokens) < args.rows:
        raise UserError(
            f"--dataset_path holds {len(tokens)} rows of {args.context_size} tokens; give --rows at most that"
        )
    groups = group_spellings(
        read_vocabulary(EXTRACTION / "reason_tokens.json"),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
    )
    hook_name = f"blocks.{args.layer}.hook_resid_post"
    model = load_model(args.model_path, dtype=args.dtype, n_layers=args.layer + 1, tokenizer=tokenizer)

    to_hook = bare_layers(args.model_path, args.layer, dtype=args.dtype, device="cpu")

    def one_pass(sae: SAE, rows: int, features: slice | None = None, block: int = args.minibatch_size_features) -> None:
        sum_activations(
            model,
            sae,
            tokens[:rows],
            groups,
            hook_name=hook_name,
            expand_range=(1, 2),
            ignored_ids=[tokenizer.eos_token_id],
            rows_per_batch=args.minibatch_size_tokens,
            features_per_block=block,
            features=features,
            progress=False,
        )

    def floor(sae: SAE, rows: int) -> None:
        encoders = [encode for _, encode in encoder_blocks(sae, args.minibatch_size_features)]
        with torch.no_grad():
            for batch in tokens[:rows].split(args.minibatch_size_tokens):
                residual = to_hook(batch).float()
                for encode in encoders:
                    encode(residual)

    def of_48(sae: SAE, index: int) -> None:
        start = index * FEATURES_A_PASS
        one_pass(sae, args.rows_repeated, slice(start, min(start + FEATURES_A_PASS, sae.cfg.d_sae)), FEATURES_A_PASS)

    saes = {features: random_sae(config.hidden_size, features) for features in args.features}
    first = min(args.features)
    n_passes = {features: math.ceil(features / FEATURES_A_PASS) for features in args.features}

    def repeated_in_full() -> None:
        for index in range(n_passes[first]):
            of_48(saes[first], index)

    calls: dict[tuple[str, int], Callable[[], None]] = {}
    for features, sae in saes.items():
        calls["pass", features] = lambda sae=sae: one_pass(sae, args.rows)
        calls["floor", features] = lambda sae=sae: floor(sae, args.rows)
        calls["pass on fewer rows", features] = lambda sae=sae: one_pass(sae, args.rows_repeated)
        calls["48", features] = lambda sae=sae: of_48(sae, 0)
    middle = sorted(args.features)[len(args.features) // 2]
    for share in (4, 2):
        calls[f"1/{share}", middle] = lambda share=share: one_pass(saes[middle], max(1, args.rows // share))
    calls["repeated", first] = repeated_in_full
    times: dict[tuple[str, int], list[float]] = {name: [] for name in calls}
    for round_number in range(args.rounds + 1):
        for name, call in calls.items():
            if round_number == 0 and name[0] == "repeated":
                continue
            started = time.perf_counter()
            call()
            if round_number > 0:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(found) for name, found in times.items()}
    peak = PeakMemory()

    n_tokens = args.rows * args.context_size
    print(f"{n_tokens:,} tokens in rows of {args.context_size}, {args.threads} threads, medians of {args.rounds}")
    print(f"{'features':>9} {'pass s':>8} {'floor s':>8} {'pass/floor':>10} {'repeated/pass':>14} {'memory MB':>10}")
    for features, sae in saes.items():
        took, least = median["pass", features], median["floor", features]
        ratio = statistics.median(a / b for a, b in zip(times["pass", features], times["floor", features], strict=True))
        if features == first:
            repeated, how = median["repeated", first], "run"
        else:
            repeated, how = n_passes[features] * median["48", features], "extrapolated"
        memory = peak.of(lambda sae=sae: one_pass(sae, args.rows))
        print(
            f"{features:>9,} {took:>8.3f} {least:>8.3f} {ratio:>10.3f} "
            f"{repeated / median['pass on fewer rows', features]:>14.1f} {memory / 1e6:>10.0f}"
            f"   ({n_passes[features]} passes, {how})"
        )
    per_token = {
        max(1, args.rows // share): median[name] for share, name in ((4, ("1/4", middle)), (2, ("1/2", middle)))
    }
    per_token[args.rows] = median["pass", middle]
    growth = ", ".join(f"{rows} rows {1e6 * took / rows / args.context_size:.0f}" for rows, took in per_token.items())
    print(f"µs per token at {middle:,} features: {growth}")
    head = config.hidden_size // config.num_attention_heads
    d_kv = head * config.num_key_value_heads
    here = forward_operations(config.hidden_size, d_kv, config.intermediate_size, args.layer + 1, args.context_size)
    for features in args.features:
        print(f"operations, here, {features:,} features: {operation_ratio(here, config.hidden_size, features):,.0f} ×")
    paper = forward_operations(4096, 1024, 14336, 20, 1024)
    print(f"operations, paper (8B, 65,536 features, 1,366 passes): {operation_ratio(paper, 4096, 65536):,.0f} ×")


if __name__ == "__main__":
    run(main)
