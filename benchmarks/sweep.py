"""What a grid of interventions gains in one batch, against its points one after another in the same engine.

    python benchmarks/sweep.py --model_path quickstart-run/model --layer 19

Measured: wall time of a grid of a baseline and nine steered points, at several numbers of questions. Every answer has
a length drawn beforehand (log-normal, cut off), the same both ways, so that only the order of the work differs. The
engine counts steered positions and would fail where one is missed. Both ways run in turn; the first of each warms up.

Computed: the paper's grid, 31 points with an 8B model in bfloat16 on H100s, for AIME-2024 and MATH-500. `simulate` is
continuous batching in a key-value cache of limited size: a step takes as long as reading the weights once, and the keys
and values of all running requests; a prompt, or a request that was preempted, as long as its operations. All at the
card's peak, and nothing else costs time. The lengths of answers are assumed; each is drawn by itself.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from steering import KV_CACHE_BYTES, save_random_sae

from lm_eval_sae.errors import run
from transformer_lens_r1.shared.arguments import ArgumentParser, int_list, positive_int

if TYPE_CHECKING:
    from argparse import Namespace

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
SIGMA = 0.8  # of the logarithm of lengths

# An H100 (SXM) and DeepSeek-R1-Distill-Llama-8B.
BANDWIDTH = 3.35e12  # bytes/s
FLOPS = 989e12  # dense, bfloat16
PARAMETERS = 8.03e9
WEIGHT_BYTES = 2 * PARAMETERS
KV_BYTES = 2 * 32 * 8 * 128 * 2  # of a token: keys and values, layers, heads, width, bytes
CACHE_TOKENS = int((0.92 * 80e9 - WEIGHT_BYTES - 3e9) / KV_BYTES)  # vLLM's share of the card; 3 GB for activations
LIMIT = 32_768  # tokens of an answer
POINTS = 31
PAPER = {  # questions, tokens of a prompt, mean tokens of an answer before it is cut off (assumed)
    "AIME-2024": (30, 150, (6_000, 10_000, 15_000)),
    "MATH-500": (500, 100, (2_000, 3_000, 5_000)),
}


def draw_lengths(shape: tuple[int, ...], *, mean: float, limit: int, seed: int = 0) -> np.ndarray:
    """Tokens of answers, log-normal with this mean before they are cut off at `limit`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, shape)
    return drawn.clip(1, limit).astype(int)


def simulate(lengths: Sequence[int], *, prompt: int, max_num_seqs: int) -> float:
    """Seconds of a continuous batch of requests on one card, first come, first served.

    Args:
        lengths: tokens of each answer.
        prompt: tokens of each prompt.
        max_num_seqs: most requests that run at once.
    """
    waiting = deque((prompt, int(length)) for length in lengths)  # tokens so far, tokens to come
    running: list[list[int]] = []
    seconds = 0.0
    while waiting or running:
        cached = sum(tokens for tokens, _ in running)
        while waiting and len(running) < max_num_seqs and cached + waiting[0][0] + len(running) + 1 <= CACHE_TOKENS:
            running.append(list(waiting.popleft()))
            cached += running[-1][0]
            seconds += running[-1][0] * 2 * PARAMETERS / FLOPS
        room = (CACHE_TOKENS - cached) // len(running)
        if room == 0:
            waiting.appendleft(tuple(running.pop()))
            continue
        steps = min(room, min(to_come for _, to_come in running))
        read = steps * WEIGHT_BYTES + KV_BYTES * (steps * cached + len(running) * steps * (steps + 1) / 2)
        seconds += read / BANDWIDTH
        running = [[tokens + steps, to_come - steps] for tokens, to_come in running if to_come > steps]
    return seconds


def compute() -> None:
    """Prints the paper's grid, one point after another and in one batch, on one card and on eight."""
    print(f"\ncomputed, {POINTS} points, 8B in bfloat16 on H100s, answers of at most {LIMIT:,} tokens (log-normal)")
    for task, (questions, prompt, means) in PAPER.items():
        for mean in means:
            lengths = draw_lengths((POINTS, questions), mean=mean, limit=LIMIT)
            for cards in (1, 8):  # every n-th request goes to the same card; the slowest card decides

                def grid(requests: np.ndarray, cards: int = cards, prompt: int = prompt) -> float:
                    return max(simulate(requests[i::cards], prompt=prompt, max_num_seqs=256) for i in range(cards))

                apart, together = sum(map(grid, lengths)), grid(lengths.T.reshape(-1))
                print(
                    f"  {task:<10}mean {mean:>6,} ({lengths.mean():,.0f} cut off)   {cards} H100   one after another "
                    f"{apart / 3600:5.2f} h, one batch {together / 3600:5.2f} h: {apart / together:.1f} x"
                )


def measure(args: Namespace, sae: Path) -> None:
    """Prints the wall times of both ways, with an SAE of random weights that it makes in a folder."""
    import transformers

    from lm_eval_sae.engines.vllm_engine import positions_of
    from lm_eval_sae.engines.vllm_model import VLLMSAE, SamplingParams, steered
    from lm_eval_sae.steering.arguments import read_steering

    config = transformers.AutoConfig.from_pretrained(args.model_path)
    save_random_sae(sae, d_in=config.hidden_size, d_sae=config.hidden_size, layer=args.layer)
    one = {"sae_path": str(sae), "sae_max_activation": 1.0, "sae_strength": 2.0}
    steerings = [None, *(read_steering({**one, "sae_feature_idx": i}) for i in range(1, args.points))]
    model = VLLMSAE(
        args.model_path, dtype=args.dtype, max_model_len=512, max_num_seqs=args.max_num_seqs,
        enforce_eager=args.eager, kv_cache_memory_bytes=KV_CACHE_BYTES, layers={args.layer: 1},
    )  # fmt: skip

    def generate(prompts: list[list[int]], jobs: list[tuple[int, int, int]]) -> int:
        """Runs (point, question, tokens) in one batch; returns how many positions were steered."""
        params = [
            steered(SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), steerings[point])
            for point, _, tokens in jobs
        ]
        outputs = model.engine.generate([prompts[question] for _, question, _ in jobs], params, progress=False)
        return sum(
            positions_of(output) for output, (point, _, _) in zip(outputs, jobs, strict=True) if steerings[point]
        )

    print(f"measured, {len(steerings)} points, answers of {args.mean_tokens} tokens in the mean, {args.limit} at most")
    for questions in args.questions:
        prompts = model.tok_encode([f"Question {i}. What is {i} + {i * i}? Wait," for i in range(questions)])
        lengths = draw_lengths((len(steerings), questions), mean=args.mean_tokens, limit=args.limit, seed=questions)
        jobs = [
            [(point, question, int(tokens)) for question, tokens in enumerate(of)] for point, of in enumerate(lengths)
        ]
        ways = {
            "one after another": jobs,
            "one batch": [[job for of_question in zip(*jobs, strict=True) for job in of_question]],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds + 1):
            for way, batches in ways.items():
                started = time.perf_counter()
                positions = sum(generate(prompts, batch) for batch in batches)
                seconds[way].append(time.perf_counter() - started)
        apart, together = (statistics.median(times[1:]) for times in seconds.values())
        print(
            f"  {questions:>4} questions, {lengths.sum():,} tokens, {positions:,} positions steered   "
            f"one after another {apart:6.1f} s, one batch {together:6.1f} s: {apart / together:.2f} x",
            flush=True,
        )
    model.close()


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model_path", help="folder or Hub id of the model; none: nothing is measured")
    parser.add_argument("--layer", type=int, default=19, help="layer whose output is changed")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the model")
    parser.add_argument("--eager", action="store_true", help="start the engine without compiling the model")
    parser.add_argument("--points", type=positive_int, default=10, help="of the grid, the baseline among them")
    parser.add_argument("--questions", type=int_list, default=[8, 30, 100], help="numbers of questions")
    parser.add_argument("--mean_tokens", type=positive_int, default=24, help="mean of the answers' lengths")
    parser.add_argument("--limit", type=positive_int, default=96, help="most tokens of an answer")
    parser.add_argument("--max_num_seqs", type=positive_int, default=128, help="requests that run at once")
    parser.add_argument("--rounds", type=positive_int, default=1, help="times that each way is timed")
    args = parser.parse_args()
    if args.model_path:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, Path(folder))
    compute()


if __name__ == "__main__":
    run(main)
