"""How fast training is, part by part, against the least that it must do and against SAELens' own loop.

    python benchmarks/training.py --model_path quickstart-run/model --layer 19 --expansion 16

The floor is the forward pass to the hook, of transformers' layers with sdpa, plus the trainer's own step, both on
tensors that are ready, of the shapes that the run uses. What the run adds (reading tokens, the shuffled buffer, the
progress bar) is the rest.
Rounds of the run, of the floor and of SAELens alternate in one process, so that a machine that is busy at times is so
for all of them; medians over rounds are printed. The norm estimate and the evaluation come apart: they are no part of a
step. Tokens are random, which changes no time.

With `--ranks` several processes share out each batch, and the step of the floor holds the averaging of gradients.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from forward import bare_layers

from transformer_lens_r1.shared.arguments import ArgumentParser, positive_int, resolve_device
from transformer_lens_r1.shared.errors import run
from transformer_lens_r1.shared.ranks import Ranks, joined_ranks

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_path", required=True, help="Hub id or local folder of the model")
    parser.add_argument("--layer", type=int, default=19, help="layer whose residual stream is used")
    parser.add_argument("--expansion", type=positive_int, default=16, help="features per dimension")
    parser.add_argument("--context_size", type=positive_int, default=256, help="tokens in a row")
    parser.add_argument("--batch_size", type=positive_int, default=4096, help="tokens in a training batch")
    parser.add_argument("--rows_per_pass", type=positive_int, default=16, help="rows in a pass of the language model")
    parser.add_argument("--buffer_rows", type=positive_int, default=64, help="rows that the buffer holds")
    parser.add_argument("--rounds", type=positive_int, default=8, help="rounds that are timed of each kind")
    parser.add_argument("--dtype", default="bfloat16", help="number format of the model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--ranks", type=positive_int, default=1, help="processes that torchrun starts, a GPU each")
    parser.add_argument("--without_saelens", action="store_true", help="leave SAELens' own loop out")
    parser.add_argument("--cpu_time", action="store_true", help="count this process's CPU seconds: for a busy machine")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE: other settings, as for train_sae.py")
    args = parser.parse_args()
    if args.ranks > 1 and "RANK" not in os.environ:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(args.ranks)]
        os.execv(sys.executable, [*launch, *sys.argv])
    with joined_ranks() as ranks, tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args.device = resolve_device(ranks.device(args.device))
        ranks.connect(args.device)
        Benchmark(args, Path(folder), ranks).run()


class Enough(Exception):
    """Ends the run once all rounds are timed."""


class Benchmark:
    """Times a real `Trainer.fit`, from between its steps."""

    def __init__(self, args: argparse.Namespace, folder: Path, ranks: Ranks) -> None:
        import torch
        import yaml
        from datasets import Dataset
        from sae_training.config import build_config, extra_settings, model_dtype, read_config
        from sae_training.runner import Runner

        from transformer_lens_r1.loading import load_config, load_model

        model_config = load_config(args.model_path)
        d_in = model_config.hidden_size
        values = {
            "model_name": args.model_path,
            "model_from_pretrained_kwargs": {"dtype": args.dtype},
            "hook_name": f"blocks.{args.layer}.hook_resid_post",
            "dataset_path": "random",
            "context_size": args.context_size,
            "sae": {
                "d_in": d_in, "d_sae": args.expansion * d_in, "apply_b_dec_to_input": False, "l1_coefficient": 5,
                "normalize_activations": "expected_average_only_in",
            },
            "training_tokens": 10_000 * args.batch_size,
            "train_batch_size_tokens": args.batch_size,
            "n_batches_in_buffer": args.buffer_rows,
            "store_batch_size_prompts": args.rows_per_pass,
            "n_batches_for_norm_estimate": 2,
            "n_eval_batches": 1,
            "lr": 5e-5,
            "logger": {"log_to_wandb": False},
            "checkpoint_path": None,
            "output_path": str(folder / "sae"),
            "device": args.device,
        }  # fmt: skip
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(values))
        values = read_config(config, args.set)
        self.args, self.cfg, extra = args, build_config(values), extra_settings(values)
        self.ranks, self.share = ranks, args.batch_size // ranks.size
        n_rows = 4 * args.buffer_rows + 2 * args.rows_per_pass
        tokens = torch.randint(0, model_config.vocab_size, (n_rows, args.context_size))
        rows = Dataset.from_dict({"tokens": tokens.numpy()})
        n_layers = None if extra["evaluate_cross_entropy"] else min(args.layer + 2, model_config.num_hidden_layers)
        dtype = model_dtype(self.cfg)
        model = load_model(args.model_path, device=args.device, dtype=dtype, n_layers=n_layers)
        self.to_hook = bare_layers(args.model_path, args.layer, dtype=dtype, device=args.device)
        held_out = rows.select(range(args.rows_per_pass))
        self.runner = Runner(self.cfg, model, rows, held_out, extra, ranks)
        self.stream, self.source = self.runner.stream, self.runner.stream.source
        self.tokens = tokens[: args.rows_per_pass]
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.store: Any = None
        self.saelens: Any = None

    def run(self) -> None:
        """Train until all rounds are timed, and print the figures."""
        from sae_training.trainer import Trainer

        self.trainer = Trainer(
            sae=self.runner.sae,
            data_provider=self.stream,
            evaluator=self.runner.evaluator,
            cfg=self.cfg.to_sae_trainer_config(),
            between_steps=self.between_steps,
            save_snapshot=lambda trainer: None,
            ranks=self.ranks,
        )
        self.spent, self.rounds, self.at_round = 0.0, -1, 0  # the first round fills the buffer and is not counted
        self.resumed = self.now()
        with suppress(Enough):
            self.trainer.fit()
        self.evaluate()
        if self.ranks.is_first:
            self.report()

    def between_steps(self, trainer: Any) -> None:
        """Add the step that has just ended to its round; where the round is over, time the others."""
        self.spent += self.now() - self.resumed
        if trainer.n_training_steps == 0:
            self.seconds["norm estimate"].append(self.spent)
            self.spent = 0.0
        elif self.stream.left < self.stream.batch_size:
            self.steps_in_round = trainer.n_training_steps - self.at_round
            self.at_round = trainer.n_training_steps
            self.rounds += 1
            if self.rounds > 0:
                self.seconds["run"].append(self.spent / self.steps_in_round)
                self.time_floor(trainer)
                if self.ranks.size == 1 and not self.args.without_saelens:
                    self.time_saelens()
            self.spent = 0.0
            if self.rounds == self.args.rounds:
                raise Enough
        self.resumed = self.now()

    def time_floor(self, trainer: Any) -> None:
        """The forward pass and the step, on ready tensors."""
        import torch

        ids = self.source.to_model(self.tokens)
        batch = torch.randn(self.share, self.cfg.sae.d_in, device=self.cfg.device)
        passes = self.steps_in_round * self.share / self.tokens_per_pass()
        for _ in range(max(1, round(passes))):
            with torch.no_grad(), self.source.precision(), self.timed("forward"):
                self.to_hook(ids)
        state = trainer.n_training_samples
        for _ in range(self.steps_in_round):
            with self.timed("step"):
                trainer.step(batch)
        trainer.n_training_samples = state

    def tokens_per_pass(self) -> int:
        """Activations that a pass of the model gives."""
        return int(self.source.positions(self.tokens).sum())

    def time_saelens(self) -> None:
        """As many steps of SAELens' own store and trainer, on the same model."""
        from sae_lens.saes.sae import TrainingSAE
        from sae_lens.training.sae_trainer import SAETrainer

        if self.saelens is None:
            self.peak_memory = peak_memory(self.cfg.device)  # of the run alone
            self.store = self.runner.activations_store
            sae = TrainingSAE.from_dict(self.cfg.get_training_sae_cfg_dict()).to(self.cfg.device)
            self.saelens = SAETrainer(sae=sae, data_provider=self.store, cfg=self.cfg.to_sae_trainer_config())
            self.saelens.activation_scaler.scaling_factor = self.trainer.activation_scaler.scaling_factor
            for _ in range(self.steps_in_round):
                self.saelens.step(next(self.store))
        started = self.now()
        for _ in range(self.steps_in_round):
            self.saelens.step(next(self.store))
        self.seconds["saelens"].append((self.now() - started) / self.steps_in_round)

    def evaluate(self) -> None:
        """One held-out evaluation of a pass of rows, and a second one, which knows the model's own loss."""
        for name in ("first evaluation", "evaluation"):
            with self.timed(name):
                self.runner.evaluator.quality(self.trainer.sae, self.trainer.activation_scaler)

    def report(self) -> None:
        """Print medians over rounds."""
        args, median = self.args, {name: statistics.median(values) for name, values in self.seconds.items()}
        batch, per_pass = args.batch_size, self.tokens_per_pass()
        forward = median["forward"] * self.share / per_pass
        floor, whole = forward + median["step"], median["run"]
        # Each round has its own ratio: what slows the machine for a while slows both.
        steps, passes = len(self.seconds["step"]) // args.rounds, len(self.seconds["forward"]) // args.rounds
        ratios = []
        for index, seconds in enumerate(self.seconds["run"]):
            of_round = [
                statistics.mean(self.seconds[name][index * n : (index + 1) * n])
                for name, n in (("forward", passes), ("step", steps))
            ]
            ratios.append((of_round[0] * self.share / per_pass + of_round[1]) / seconds)
        ratio = statistics.median(ratios)
        lines = [
            ("forward to the hook", forward, ""),
            ("SAE step", median["step"], ""),
            ("floor, their sum", floor, f"{batch / floor:,.0f} tokens/s"),
            ("the run", whole, f"{batch / whole:,.0f} tokens/s, {ratio:.3f} of the floor's speed"),
            ("  of it tokens, buffer, progress bar", whole - floor, f"spread of the ratio {spread(ratios)}"),
        ]
        if "saelens" in median:
            gains = [theirs / ours for theirs, ours in zip(self.seconds["saelens"], self.seconds["run"], strict=True)]
            note = f"{batch / median['saelens']:,.0f} tokens/s; the run is {statistics.median(gains):.2f} × as fast"
            lines.append(("SAELens' own loop", median["saelens"], note))
        clock = "CPU seconds" if args.cpu_time else "seconds"
        sizes = f"{batch:,} tokens, {self.cfg.sae.d_sae:,} features"
        sizes += f" on {self.ranks.size} ranks" if self.ranks.size > 1 else ""
        print(f"\n{clock} per step of {sizes}; medians of {args.rounds} rounds")
        for name, seconds, note in lines:
            print(f"  {name:<38}{seconds:>9.4f}  {note}")
        print("apart from the steps, in seconds")
        print(f"  {'norm estimate, per batch':<38}{median['norm estimate']:>9.4f}")
        rows, first = len(self.runner.evaluator.rows), median["first evaluation"]
        print(f"  {f'evaluation of {rows} rows':<38}{median['evaluation']:>9.4f}  the first of a run {first:.4f}")
        peak = getattr(self, "peak_memory", peak_memory(self.cfg.device)) / 2**30
        print(f"peak memory {peak:.2f} GiB ({'torch, on the GPU' if 'cuda' in args.device else 'resident'})")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long the block takes."""
        started = self.now()
        yield
        self.seconds[name].append(self.now() - started)

    def now(self) -> float:
        """Seconds, once the GPU has finished."""
        if "cuda" in self.args.device:
            import torch

            torch.cuda.synchronize()
        return time.process_time() if self.args.cpu_time else time.perf_counter()


def spread(values: list[float]) -> str:
    """The smallest and largest."""
    return f"{min(values):.3f} to {max(values):.3f}"


def peak_memory(device: str) -> int:
    """Bytes: allocated on the GPU, or resident."""
    if "cuda" in device:
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    run(main)
