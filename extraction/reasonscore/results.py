"""The folder of scores: what is in it, writing it, reading it back, and what it says to people."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from reasonscore.score import ActivationSums, ReasonScores, rank_features, reason_scores
from reasonscore.chunks import find_chunks, merge_chunks
from reasonscore.bootstrap import MIN_BLOCKS, Stability, bootstrap_top_features
from torch import Tensor

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import atomic_directory, write_json

SCORES, STATS, TABLE, RUN = "feature_scores.pt", "feature_stats.safetensors", "top_features.csv", "run.json"


class Settings(NamedTuple):
    """How scores are made from sums, beyond what the sums say."""

    alpha: float
    topk: int
    """Best features in the table and the pictures."""
    quantile: float
    """Of all scores, marked in the picture."""
    n_bootstrap: int
    """Resamples; 0 for no intervals."""
    seed: int


class Result(NamedTuple):
    """Everything that a folder of scores says."""

    scores: ReasonScores
    sums: ActivationSums
    stability: Stability | None
    words: list[str]
    settings: Settings

    @property
    def threshold(self) -> float:
        """The score at the quantile."""
        return self.scores.score.quantile(self.settings.quantile).item()

    @property
    def n_above(self) -> int:
        """Features that score above the quantile."""
        return int((self.scores.score > self.threshold).sum())


def compute_result(sums: ActivationSums, words: Sequence[str], settings: Settings) -> Result:
    """Scores and intervals from the sums of all features.

    Always on the CPU, so that chunks merged on one machine give bit for bit what one pass on another did.
    """
    sums = sums.to("cpu")
    scores = reason_scores(sums.by_set, sums.n_positions, alpha=settings.alpha)
    stability = None
    if settings.n_bootstrap and len(sums.by_block) < MIN_BLOCKS:
        print(f"note: too few rows for intervals of the scores: {len(sums.by_block)}, expected {MIN_BLOCKS} or more")
    elif settings.n_bootstrap:
        stability = bootstrap_top_features(
            sums, alpha=settings.alpha, k=settings.topk, n_resamples=settings.n_bootstrap, seed=settings.seed
        )
    return Result(scores, sums, stability, list(words), settings)


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
    return {name: value.float().contiguous() for name, value in statistics.items()}


def all_statistics(result: Result) -> dict[str, Tensor]:
    """`feature_statistics`, and where there was a bootstrap the ends of each top feature's 95 % interval.

    These are float32 [d_sae] too, by the names `score_low` and `score_high`, and NaN for all other features.
    """
    statistics = feature_statistics(result.scores, result.sums)
    if result.stability is not None:
        for name, values in (("score_low", result.stability.low), ("score_high", result.stability.high)):
            statistics[name] = torch.full_like(statistics["score"], float("nan"))
            statistics[name][result.stability.features] = values.float()
    return statistics


def write_scores(folder: Path, result: Result, record: dict[str, Any]) -> None:
    """Write scores, statistics, the table of the best, pictures and the record of the run; whole or not at all.

    Args:
        folder: where to; an earlier result there is replaced as a whole.
        result: what `compute_result` gave.
        record: what is known of the run besides: arguments, SAE, versions.
    """
    from safetensors.torch import save_file
    from reasonscore.plots import draw_scores, draw_words

    statistics = feature_statistics(result.scores, result.sums)
    with atomic_directory(folder) as temporary:
        torch.save(statistics["score"], temporary / SCORES)
        metadata = {"words": json.dumps(result.words, ensure_ascii=False)}
        save_file(all_statistics(result), temporary / STATS, metadata=metadata)
        _write_table(temporary / TABLE, result, statistics)
        draw_scores(temporary / "feature_scores.png", result)
        draw_words(temporary / "top_features.png", result)
        write_json(temporary / RUN, {**run_counts(result.sums, result.words), **_bootstrap_record(result), **record})


def _write_table(path: Path, result: Result, statistics: dict[str, Tensor]) -> None:
    names = [name for name in statistics if name not in ("score", "word_means")]
    words, stability = result.words, result.stability
    means = [f"mean:{word}" for word in words]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["rank", "feature", "score", "score_low", "score_high", "in_top_k", *names, "best_word", *means])
        best = rank_features(statistics["score"])[: result.settings.topk].tolist()
        for index, feature in enumerate(best):
            word_means = statistics["word_means"][feature]
            columns = (stability.low, stability.high, stability.in_top_k) if stability is not None else ()
            table.writerow(
                [index + 1, feature, f"{statistics['score'][feature]:.9g}"]
                + ([f"{column[index]:.9g}" for column in columns] or [""] * 3)
                + [f"{statistics[name][feature]:.9g}" for name in names]
                + [words[int(word_means.argmax())]]
                + [f"{value:.9g}" for value in word_means]
            )


def run_counts(sums: ActivationSums, words: Sequence[str]) -> dict[str, Any]:
    """Tokens and matches, for the record of the run."""
    positions = sums.n_positions.tolist()
    return {
        "reasoning_tokens": positions[-2],
        "other_tokens": positions[-1],
        "words": {
            word: {"matches": matches, "tokens": tokens}
            for word, matches, tokens in zip(words, sums.n_matches.tolist(), positions[:-2], strict=True)
        },
    }


def _bootstrap_record(result: Result) -> dict[str, Any]:
    settings, stability = result.settings, result.stability
    record: dict[str, Any] = {
        "quantile": {"q": settings.quantile, "score": result.threshold, "features_above": result.n_above},
        "bootstrap": None,
    }
    if stability is not None:
        record["bootstrap"] = {
            "resamples": settings.n_bootstrap,
            "blocks": len(result.sums.by_block),
            "k": len(stability.features),
            "overlap": stability.overlap,
        }
    return record


def print_summary(result: Result, *, top: int = 10) -> None:
    """The best features, how sure their scores are and how often each word occurred, as tables on the terminal."""
    statistics = feature_statistics(result.scores, result.sums)
    stability, words = result.stability, result.words
    interval = f"{'95 % interval':>22} " if stability is not None else ""
    print(f"\n{'rank':>4} {'feature':>8} {'ReasonScore':>12} {interval}", end="")
    print(f"{'max act':>9} {'fires':>8} {'entropy':>8}  best word")
    best = rank_features(statistics["score"])[: min(top, result.settings.topk)].tolist()
    for index, feature in enumerate(best):
        row = {name: value[feature] for name, value in statistics.items()}
        if stability is not None:
            interval = f"{f'{stability.low[index]:.2e} to {stability.high[index]:.2e}':>22} "
        print(
            f"{index + 1:>4} {feature:>8} {row['score'].item():>12.3e} {interval}{row['max_activation'].item():>9.3f} "
            f"{row['firing_frequency'].item():>8.3%} {row['entropy'].item():>8.3f}  "
            f"{words[int(row['word_means'].argmax())]}"
        )
    matches = dict(zip(words, result.sums.n_matches.tolist(), strict=True))
    print("\nmatches of each word: " + ", ".join(f"{word} {count:,}" for word, count in matches.items()))
    never = [word for word, count in matches.items() if count == 0]
    if never:
        print(f"note: never found in the text, and so lowering every entropy: {', '.join(never)}")
    if stability is not None:
        print(
            f"stability: other text of this kind would keep {stability.overlap:.0%} of the best "
            f"{len(stability.features)} features ({result.settings.n_bootstrap:,} resamples of "
            f"{len(result.sums.by_block)} blocks of rows)"
        )


class SavedScores(NamedTuple):
    """What a folder of scores holds."""

    statistics: dict[str, Tensor]
    words: list[str]
    run: dict[str, Any]

    def digest(self) -> str:
        """SHA-256 of all statistics: the same for scores of one pass and for the chunks that they were split into."""
        from safetensors.torch import save

        return hashlib.sha256(save(self.statistics)).hexdigest()


def read_scores(folder: Path) -> SavedScores:
    """Read back what `write_scores` wrote, or put together the chunks that lie there instead.

    Raises:
        UserError: there are no scores in the folder, or some of its chunks are missing or of different runs.
    """
    from safetensors import SafetensorError, safe_open

    if not (folder / RUN).is_file() and find_chunks(folder):
        return _read_chunks(folder)
    for name in (SCORES, STATS, RUN):
        if not (folder / name).is_file():
            raise UserError(f"no scores in {folder}: {name} is missing; run extraction/compute_score.py first")
    try:
        with safe_open(folder / STATS, framework="pt") as file:
            statistics = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            words = json.loads(file.metadata()["words"])
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if not {"score", "max_activation", "firing_frequency", "entropy", "word_means"} <= statistics.keys():
            raise KeyError(f"{STATS} lacks statistics")
        run["sae"]["weights_sha256"], run["tokens"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the scores in {folder} are damaged ({error}); run compute_score.py again") from error
    return SavedScores(statistics, words, run)


def _read_chunks(folder: Path) -> SavedScores:
    sums, about = merge_chunks(folder)
    words, settings = about["words"], Settings(**about["settings"])
    result = compute_result(sums, words, settings)
    run = {**run_counts(sums, words), **about["record"]}
    return SavedScores(all_statistics(result), words, run)
