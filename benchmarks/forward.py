"""How fast the residual stream is read: `residual_stream` against transformers' bare layers and against the bridge.

    python benchmarks/forward.py --model_path quickstart-run/model --layer 19

    floor     transformers alone: a model of the first layers with sdpa attention, loaded beside the other
    stream    `residual_stream`, which scoring, dashboards and training call
    compiled  the same after `compile_layers` (`--compile`)
    bridge    `TransformerBridge.run_with_cache`, with hook points at every step of attention

All run in one process, in turn, several rounds, on the same random tokens. Printed are tokens/s (medians), and medians
of each round's speed against the floor with their spread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from transformer_lens_r1.shared.arguments import (
    ArgumentParser,
    add_model_arguments,
    int_list,
    positive_int,
    resolve_device,
)
from transformer_lens_r1.shared.errors import run

if TYPE_CHECKING:
    from torch import Tensor


def bare_layers(model_path: str, layer: int, *, dtype: str, device: str) -> Callable[[Tensor], Tensor]:
    """The least that any reader of the residual stream must do: a function of ids [batch, pos].

    The model's last norm, which runs too, takes a thousandth of it.
    """
    import torch
    from transformers import AutoModel

    from transformer_lens_r1 import load_config

    config = load_config(model_path)
    config.num_hidden_layers = layer + 1
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[: layer + 1]
    model = AutoModel.from_pretrained(
        model_path, config=config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).to(device)

    def forward(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(ids, use_cache=False).last_hidden_state

    return forward


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_model_arguments(parser)
    parser.add_argument("--layer", type=int, default=19, help="layer whose output is read")
    parser.add_argument("--context_size", type=int_list, default=[256, 1024], help="tokens in a row (256,1024)")
    parser.add_argument("--tokens", type=positive_int, default=4096, help="in a pass of the model")
    parser.add_argument("--compile", action="store_true", help="also the layers compiled by torch.compile")
    parser.add_argument("--rounds", type=positive_int, default=5, help="of all variants in turn")
    parser.add_argument("--threads", type=positive_int, default=2, help="CPU threads")
    args = parser.parse_args(argv)

    import torch

    from transformer_lens_r1 import load_model, residual_stream
    from transformer_lens_r1.forward import compile_layers

    torch.set_num_threads(args.threads)
    device, hook_name = resolve_device(args.device), f"blocks.{args.layer}.hook_resid_post"

    def load() -> object:
        return load_model(args.model_path, dtype=args.dtype, device=device, n_layers=args.layer + 1)

    def by_bridge(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model.run_with_cache(ids, names_filter=[hook_name], stop_at_layer=args.layer + 1)[1][hook_name]

    model = load()
    variants = {
        "floor": bare_layers(args.model_path, args.layer, dtype=args.dtype, device=device),
        "stream": lambda ids: residual_stream(model, ids, hook_name),
        "bridge": by_bridge,
    }
    if args.compile:
        compiled = load()
        compile_layers(compiled)
        variants["compiled"] = lambda ids: residual_stream(compiled, ids, hook_name)
    for context in args.context_size:
        ids = torch.randint(0, model.cfg.d_vocab, (max(1, args.tokens // context), context), device=device)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for round_number in range(args.rounds + 1):
            for name, forward in variants.items():
                started = time.perf_counter()
                forward(ids)
                if "cuda" in device:
                    torch.cuda.synchronize()
                if round_number > 0:  # the first round warms up, and compiles
                    seconds[name].append(time.perf_counter() - started)
        for name, times in seconds.items():
            speeds = [floor / took for floor, took in zip(seconds["floor"], times, strict=True)]
            print(
                f"context {context:>5}  {name:<9}{ids.numel() / statistics.median(times):>9,.0f} tokens/s  "
                f"{statistics.median(speeds):.3f} of the floor ({min(speeds):.3f} to {max(speeds):.3f})"
            )


if __name__ == "__main__":
    run(main)
