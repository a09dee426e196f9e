"""How much each difference from the published code changes, one at a time, on the laptop's run.

    bash quickstart.sh
    python benchmarks/differences.py --run quickstart-run

Each line changes one option to what the published code does, and compares with the quickstart's own settings:

- scores: how many of the 100 best features stay, how many of the 10 best, and the rank correlation of all scores.
- rotary frequencies: relative change of the residual stream of a model with random weights and Llama 3.1's scaling, as
  SmolLM2 has none. That is no evidence about the 8B model.
- training: quality on held-out rows. The buffer mixes 64 rows in the quickstart, and 32 in one line.
- texts: how many greedy answers to the quickstart's problems, with each of the three best features steered, stay as the
  baseline's and as those of our way of steering, and how many are right.

The scripts of the stages do all of it; this one only calls them. Some 15 minutes on two CPU cores.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy.stats import spearmanr
from transformers import LlamaConfig, LlamaForCausalLM

from transformer_lens_r1 import load_model
from transformer_lens_r1.shared.arguments import ArgumentParser, positive_int
from transformer_lens_r1.shared.errors import run

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("scores", "rope", "training", "texts")
LLAMA_3_SCALING = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def script(path: str, *arguments: object) -> None:
    """Run one of the repository's scripts; what it prints goes to stderr if it fails."""
    command = [sys.executable, str(ROOT / path), *map(str, arguments)]
    environment = {**os.environ, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def scores(run: Path, work: Path, n_samples: int) -> None:
    """What each option of sampling and scoring changes in the scores."""
    dtype = json.loads((run / "scores" / "run.json").read_text())["arguments"]["dtype"]

    def score(name: str, *options: object, sample: Path = run / "sample") -> torch.Tensor:
        script(
            "extraction/compute_score.py", "--model_path", run / "model", "--sae_path", run / "sae", "--dataset_path",
            sample, "--n_samples", n_samples, "--n_bootstrap", 0, "--dtype", dtype, "--ignore_tokens", "1,2",
            "--output_dir", work / name, *options,
        )  # fmt: skip
        return torch.load(work / name / "feature_scores.pt", weights_only=True)

    def sample(name: str, *options: object) -> Path:
        drawn = work / f"sample-{name}"
        source = run / "data" / "openthoughts"
        script(
            "extraction/prepare_openthoughts_subset.py", "--dataset_path", source, "--num_samples", 300, "--output_dir",
            drawn, *options,
        )  # fmt: skip
        return drawn

    ours = score("ours", sample=sample("ours"))
    changes = {
        "windows that cancel at the start of a row": score(
            "windows", "--windows", "published", sample=work / "sample-ours"
        ),
        "rows of text": score("rows", "--rows", "published", sample=work / "sample-ours"),
        "draw of the sample": score("draw", sample=sample("draw", "--draw", "published")),
        "newline for an empty starter_code": score(
            "newline", sample=sample("newline", "--empty_starter_code", "newline")
        ),
        "another seed of ours, for comparison": score("seed", "--seed", 1, sample=work / "sample-ours"),
    }
    print(f"\nscores, {n_samples} rows | of the 100 best stay | of the 10 best stay | rank correlation")
    for name, theirs in changes.items():
        kept = [len(set(ours.topk(k).indices.tolist()) & set(theirs.topk(k).indices.tolist())) for k in (100, 10)]
        print(f"{name} | {kept[0]} | {kept[1]} | {spearmanr(ours, theirs).statistic:.4f}", flush=True)


def rope(work: Path) -> None:
    """The residual stream under the two scalings, at contexts of 1,024."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        head_dim=128, vocab_size=512, max_position_embeddings=131072, rope_parameters=LLAMA_3_SCALING,
    )  # fmt: skip
    checkpoint = work / "llama-3-scaling"
    LlamaForCausalLM(config).save_pretrained(checkpoint)
    tokenizer = ROOT / "tests" / "fixtures" / "tiny-llama"
    for file in tokenizer.glob("*token*"):
        (checkpoint / file.name).write_bytes(file.read_bytes())
    tokens = torch.randint(6, 300, (4, 1024))
    hook, streams = "blocks.3.hook_resid_post", []
    for context in (None, 16384):
        model = load_model(str(checkpoint), dtype="float32", device="cpu", rope_original_context=context)
        streams.append(model.run_with_cache(tokens, names_filter=[hook])[1][hook])
    change = (streams[0] - streams[1]).norm() / streams[0].norm()
    print(f"\nrotary frequencies, random weights, contexts of 1,024 | relative change of the stream {change:.3f}")


def training(run: Path, work: Path, tokens: int) -> None:
    """SAEs that differ in one setting, measured on the same held-out rows."""
    runs = {
        "ours": (),
        "decoder of torch.rand": ("--set", "decoder_init=published"),
        "32 rows in the buffer": ("--set", "n_batches_in_buffer=32"),
        "another seed of ours, for comparison": ("--set", "seed=1"),
    }
    print(f"\ntraining, {tokens:,} tokens | explained variance | L0 | features active on no held-out token")
    for number, (name, options) in enumerate(runs.items()):
        folder = work / f"sae-{number}"
        script(
            "training/train_sae.py", ROOT / "training/configs/quickstart.yaml", *options,
            *[part for value in (f"model_name={run / 'model'}", f"dataset_path={run / 'tokens'}",
                                 f"output_path={folder}", "checkpoint_path=null", f"training_tokens={tokens}")
              for part in ("--set", value)],
        )  # fmt: skip
        held_out = json.loads((folder / "training_summary.json").read_text())["held_out"]
        print(
            f"{name} | {held_out['explained_variance']:.4f} | {held_out['l0']:.1f} | {held_out['silent_features']}",
            flush=True,
        )


def texts(run: Path, work: Path, strength: float) -> None:
    """Greedy answers with the three best features, one at a time, each way of steering."""
    with (run / "scores" / "top_features.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:3]
    by_number = [
        f"{{sae_feature_idx: {row['feature']}, sae_max_activation: {row['max_activation']}, sae_stats: null}}"
        for row in rows
    ]
    by_scores = [row["feature"] for row in rows]
    ways = {
        "ours": ("set", by_scores),
        "published, to the same value": ("published", by_scores),
        "published, the same number taken for raw units": ("published", by_number),
    }
    answers: dict[str, list[str]] = {}
    right: dict[str, int] = {}
    os.environ["QUICKSTART_PROBLEMS"] = str(run / "data" / "problems.jsonl")
    for number, (way, (mode, features)) in enumerate(ways.items()):
        grid, output = work / f"{number}.yaml", work / f"texts-{number}"
        grid.write_text(
            f"sae_path: {run / 'sae'}\nsae_stats: {run / 'scores'}\nsae_max_activation: auto\nsae_mode: {mode}\n"
            f"strengths: [{strength:g}]\nfeatures: [{', '.join(features)}]\n"
        )
        engine = f"pretrained={run / 'model'},dtype=float32,enforce_eager=True,max_model_len=1024"
        script(
            "evaluation/evaluate.py", "--grid", grid, "--output_dir", output, "--tasks", "quickstart_problems",
            "--model", "vllm", "--model_args", f"{engine},kv_cache_memory_bytes=536870912", "--apply_chat_template",
            "--batch_size", "auto",
        )  # fmt: skip
        for file in sorted(output.glob("*/*/samples_*.jsonl")):
            lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
            samples = sorted(lines, key=lambda sample: sample["doc_id"])
            name = way if "-sae-" in file.parts[-3] else "baseline"
            if name == "baseline" and number:
                continue
            answers[name] = answers.get(name, []) + [sample["resps"][0][0] for sample in samples]
            right[name] = right.get(name, 0) + sum(int(sample["exact_match"]) for sample in samples)
    baseline = answers["baseline"] * len(rows)
    print(f"\ntexts, strength {strength:g} | as the baseline's | as ours | right")
    print(f"baseline | – | – | {right['baseline'] * len(rows)} of {len(baseline)}")
    for way in ways:
        same = [sum(map(str.__eq__, answers[way], others)) for others in (baseline, answers["ours"])]
        print(f"{way} | {same[0]} | {same[1]} | {right[way]} of {len(baseline)}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("quickstart-run"), help="folder that quickstart.sh made")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--n_samples", type=positive_int, default=128, help="rows that are scored")
    parser.add_argument("--training_tokens", type=positive_int, default=61_440, help="of each SAE")
    parser.add_argument("--strength", type=float, default=2.0, help="of steering")
    args = parser.parse_args(argv)
    folder = args.run.resolve()
    with tempfile.TemporaryDirectory() as work:
        parts = {
            "scores": lambda: scores(folder, Path(work), args.n_samples),
            "rope": lambda: rope(Path(work)),
            "training": lambda: training(folder, Path(work), args.training_tokens),
            "texts": lambda: texts(folder, Path(work), args.strength),
        }
        for part in args.parts:
            parts[part]()


if __name__ == "__main__":
    run(main)
