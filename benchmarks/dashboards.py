"""What the dashboards cost beside one pass of the model over the text, and how often the model runs.

    python benchmarks/dashboards.py --model_path quickstart-run/model --layer 19

100 features of a random SAE whose features fire on 1 % of tokens, on 512 rows of random token ids: neither changes what
the model or the encoder has to do. Each round times, one after the other, the bare pass up to the hook point
(transformers' layers with sdpa), the pass that keeps the features' activations, and making the pages. Printed are
medians of wall-clock seconds and of the process's seconds on the CPUs, which other work on the machine hardly changes;
loading and imports are left out.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from forward import bare_layers

from transformer_lens_r1.shared.arguments import ArgumentParser, add_model_arguments, positive_int, resolve_device
from transformer_lens_r1.shared.errors import UserError, run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "extraction"))
DENSITY = 0.01


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_model_arguments(parser)
    parser.add_argument("--layer", type=int, default=19, help="layer whose output the SAE reads")
    parser.add_argument("--n_features", type=positive_int, default=100, help="features shown")
    parser.add_argument("--n_samples", type=positive_int, default=512, help="rows")
    parser.add_argument("--context_size", type=positive_int, default=256, help="tokens in a row")
    parser.add_argument("--minibatch_size_tokens", type=positive_int, default=16, help="rows in a forward pass")
    parser.add_argument("--rounds", type=positive_int, default=3, help="measurements of each")
    args = parser.parse_args(argv)

    from transformer_lens_r1 import load_config, load_model, load_tokenizer

    config = load_config(args.model_path)
    if not 0 <= args.layer < config.num_hidden_layers:
        raise UserError(f"--layer {args.layer}: the model has layers 0 to {config.num_hidden_layers - 1}")

    import torch
    from feature_pages.activations import store_activations
    from feature_pages.pages import FeatureFacts, token_text, write_feature_page
    from feature_pages.panels import Panels
    from sae_lens.registry import get_sae_class
    from tqdm import tqdm

    device = resolve_device(args.device)
    hook_name = f"blocks.{args.layer}.hook_resid_post"
    tokenizer = load_tokenizer(args.model_path)
    model = load_model(args.model_path, device=device, dtype=args.dtype, n_layers=args.layer + 1, tokenizer=tokenizer)
    to_hook = bare_layers(args.model_path, args.layer, dtype=args.dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (args.n_samples, args.context_size), generator=generator)
    batches = tokens.split(args.minibatch_size_tokens)

    sae_class, config_class = get_sae_class("standard")
    sae = sae_class(config_class(d_in=config.hidden_size, d_sae=8 * config.hidden_size, device=device))
    with torch.no_grad():
        for weights in (sae.W_enc, sae.W_dec):
            weights.copy_(torch.randn(weights.shape, generator=generator))
        sae.fold_W_dec_norm()
        before_relu = to_hook(batches[0].to(device)).float().flatten(0, 1) @ sae.W_enc
        sae.b_enc.copy_(-torch.quantile(before_relu[:2048], 1 - DENSITY, dim=0))
    features = list(range(args.n_features))
    facts = [FeatureFacts(f, f + 1, 0.0, None, 1.0, DENSITY, 1.0, (("wait", 1.0),)) for f in features]

    forward_passes = 0

    def count(*_: object) -> None:
        nonlocal forward_passes
        forward_passes += 1

    model.twin.model.layers[0].register_forward_hook(count)
    measured: dict[str, list[tuple[float, float]]] = defaultdict(list)

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        started = time.perf_counter(), time.process_time()
        yield
        measured[what].append((time.perf_counter() - started[0], time.process_time() - started[1]))

    for _ in range(args.rounds):
        with timed("bare pass"):
            for batch in tqdm(batches, desc="bare pass"):
                to_hook(batch.to(device)).cpu()
        with tempfile.TemporaryDirectory() as name:
            forward_passes = 0
            with timed("pass that keeps activations"):
                stored = store_activations(
                    model,
                    sae,
                    tokens,
                    features,
                    Path(name),
                    hook_name=hook_name,
                    rows_per_batch=args.minibatch_size_tokens,
                )
            with timed("pages"), torch.no_grad():
                panels = Panels(tokens, features, stored, sae=sae, unembedding=model.W_U, hook_name=hook_name)
                decode = token_text(tokenizer)
                for index in tqdm(features, desc="pages"):
                    write_feature_page(Path(name), facts[index], *panels.compute(index), decode)
        print(f"forward passes: {forward_passes} for {len(batches)} batches")
    print(f"{'':<28} {'wall s':>8} {'CPU s':>8}")
    medians = {
        what: [statistics.median(column) for column in zip(*times, strict=True)] for what, times in measured.items()
    }
    for what, (wall, cpu) in medians.items():
        print(f"{what:<28} {wall:8.1f} {cpu:8.1f}")
    bare, keeping, pages = medians.values()
    wall, cpu = ((keeping[i] + pages[i]) / bare[i] for i in range(2))
    print(f"{'all, over the bare pass':<28} {wall:8.2f} {cpu:8.2f}")


if __name__ == "__main__":
    run(main)
