"""The folder of scores: writing it, reading it back, and what it says to people."""

from __future__ import annotations

import argparse
import csv
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from reason_score import ActivationSums, ReasonScores
from torch import Tensor

from transformer_lens_r1.errors import UserError
from transformer_lens_r1.files import atomic_directory, hash_file, write_json

if TYPE_CHECKING:
    from inputs import Inputs

SCORES, STATS, TABLE, RUN = "feature_scores.pt", "feature_stats.safetensors", "top_features.csv", "run.json"
TABLE_ROWS = 100
LIBRARIES = ("torch", "transformers", "transformer-lens", "sae-lens", "datasets")


def rank_features(scores: Tensor) -> Tensor:
    """Feature indices from the highest score down; equal scores by index."""
    return torch.sort(scores, descending=True, stable=True).indices


def feature_statistics(scores: ReasonScores, sums: ActivationSums) -> dict[str, Tensor]:
    """Every feature's statistics, float32 [d_sae] (`word_means`: [d_sae, |W|]), by the names they are stored under."""
    n_counted = sums.n_positions[-2:].sum().clamp(min=1)
    statistics = {
        "score": scores.score,
        "mean_reasoning": scores.mean_pos,
        "mean_other": scores.mean_neg,
        "word_means": scores.word_means,
        "entropy": scores.entropy,
        "max_activation": sums.maximum,
        "firing_frequency": sums.n_active.double() / n_counted,
    }
    return {name: value.float().cpu().contiguous() for name, value in statistics.items()}


def write_scores(
    folder: Path,
    scores: ReasonScores,
    sums: ActivationSums,
    words: list[str],
    *,
    args: argparse.Namespace,
    inputs: Inputs,
) -> None:
    """Write the scores, their statistics, the table of the best and the record of the run; whole or not at all."""
    from safetensors.torch import save_file

    statistics = feature_statistics(scores, sums)
    with atomic_directory(folder) as temporary:
        torch.save(statistics["score"], temporary / SCORES)
        save_file(statistics, temporary / STATS, metadata={"words": json.dumps(words, ensure_ascii=False)})
        _write_table(temporary / TABLE, statistics, words)
        write_json(temporary / RUN, _run_record(sums, words, args, inputs))


def _write_table(path: Path, statistics: dict[str, Tensor], words: list[str]) -> None:
    names = [name for name in statistics if name not in ("score", "word_means")]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["rank", "feature", "score", *names, "best_word", *(f"mean:{word}" for word in words)])
        for rank, feature in enumerate(rank_features(statistics["score"])[:TABLE_ROWS].tolist(), start=1):
            word_means = statistics["word_means"][feature]
            values = [statistics["score"][feature], *(statistics[name][feature] for name in names)]
            table.writerow(
                [rank, feature]
                + [f"{value:.9g}" for value in values]
                + [words[int(word_means.argmax())]]
                + [f"{value:.9g}" for value in word_means]
            )


def _run_record(sums: ActivationSums, words: list[str], args: argparse.Namespace, inputs: Inputs) -> dict[str, Any]:
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    source = inputs.source
    positions = sums.n_positions.tolist()
    return {
        "arguments": arguments,
        "ignored_ids": inputs.ignored,
        "rows": len(inputs.tokens),
        "context_size": inputs.tokens.shape[1],
        "tokens": inputs.tokens.numel(),
        "reasoning_tokens": positions[-2],
        "other_tokens": positions[-1],
        "words": {
            word: {"matches": matches, "tokens": tokens}
            for word, matches, tokens in zip(words, sums.n_matches.tolist(), positions[:-2], strict=True)
        },
        "vocabulary_sha256": hash_file(args.tokens_str_path),
        "sae": {
            "architecture": source.architecture,
            "d_in": source.d_in,
            "d_sae": source.d_sae,
            "hook_name": source.hook_name,
            "weights_sha256": source.weights_hash(),
        },
        "versions": {name: version(name) for name in LIBRARIES},
    }


def print_summary(scores: ReasonScores, sums: ActivationSums, words: list[str], *, top: int = 10) -> None:
    """The best features and how often each word occurred, as tables on the terminal."""
    statistics = feature_statistics(scores, sums)
    print(f"\n{'rank':>4} {'feature':>8} {'ReasonScore':>12} {'max act':>9} {'fires':>8} {'entropy':>8}  best word")
    for rank, feature in enumerate(rank_features(statistics["score"])[:top].tolist(), start=1):
        row = {name: value[feature] for name, value in statistics.items()}
        print(
            f"{rank:>4} {feature:>8} {row['score'].item():>12.3e} {row['max_activation'].item():>9.3f} "
            f"{row['firing_frequency'].item():>8.3%} {row['entropy'].item():>8.3f}  "
            f"{words[int(row['word_means'].argmax())]}"
        )
    matches = dict(zip(words, sums.n_matches.tolist(), strict=True))
    print("\nmatches of each word: " + ", ".join(f"{word} {count:,}" for word, count in matches.items()))
    never = [word for word, count in matches.items() if count == 0]
    if never:
        print(f"note: never found in the text, and so lowering every entropy: {', '.join(never)}")


class SavedScores(NamedTuple):
    """What a folder of scores holds."""

    statistics: dict[str, Tensor]
    words: list[str]
    run: dict[str, Any]


def read_scores(folder: Path) -> SavedScores:
    """Read back what `write_scores` wrote.

    Raises:
        UserError: there are no scores in the folder.
    """
    from safetensors import safe_open

    for name in (SCORES, STATS, RUN):
        if not (folder / name).is_file():
            raise UserError(f"no scores in {folder}: {name} is missing; run extraction/compute_score.py first")
    with safe_open(folder / STATS, framework="pt") as file:
        statistics = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        words = json.loads(file.metadata()["words"])
    return SavedScores(statistics, words, json.loads((folder / RUN).read_text(encoding="utf-8")))
