"""The folder of scores: what is in it, writing it, reading it back, and the summary on the terminal."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from reasonscore.bootstrap import MIN_BLOCKS, Stability, bootstrap_top_features
from reasonscore.chunks import find_chunks, merge_chunks
from reasonscore.distinct import decoder_clusters
from reasonscore.sae import find_sae, load_sae
from reasonscore.score import ActivationSums, ReasonScores, rank_features, reason_scores
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import atomic_directory, write_json

CSV = {"index": False, "float_format": "%.9g", "lineterminator": "\r\n"}
"""How tables are written: nine digits say a float32 exactly."""
SCORES, STATS, TABLE, RUN = "feature_scores.pt", "feature_stats.safetensors", "top_features.csv", "run.json"


class Settings(NamedTuple):
    """How scores are made from sums."""

    alpha: float
    topk: int
    """Best features in the table and the pictures."""
    quantile: float
    """Of all scores, marked in the picture."""
    n_bootstrap: int
    """Resamples; 0 for no intervals."""
    seed: int


class Result(NamedTuple):
    """Everything that a folder of scores holds."""

    scores: ReasonScores
    sums: ActivationSums
    clusters: Tensor
    """What `decoder_clusters` gave."""
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

    def statistics(self) -> dict[str, Tensor]:
        """Every feature's statistics, float32 [d_sae] (`word_means`: [d_sae, |W|]), by their names in the file.

        `cluster` is the index of the best feature in the feature's cluster, and NaN beyond the 1,000 best.
        `score_low` and `score_high`, the ends of each top feature's 95 % interval, are there if there was a bootstrap,
        and NaN for all other features.
        """
        n_counted = self.sums.n_positions[-2:].sum().clamp(min=1)
        statistics = {
            "score": self.scores.score,
            "cluster": self.clusters,
            "mean_reasoning": self.scores.mean_pos,
            "mean_other": self.scores.mean_neg,
            "word_means": self.scores.word_means,
            "entropy": self.scores.entropy,
            "max_activation": self.sums.maximum,
            "firing_frequency": self.sums.n_active.double() / n_counted,
            **self.sums.shares,
        }
        if self.stability is not None:
            for name, ends in (("score_low", self.stability.low), ("score_high", self.stability.high)):
                statistics[name] = torch.full_like(self.scores.score, float("nan"))
                statistics[name][self.stability.features] = ends
        return {name: value.float().contiguous() for name, value in statistics.items()}


def compute_result(sums: ActivationSums, decoder: Tensor, words: Sequence[str], settings: Settings) -> Result:
    """Scores, clusters and intervals from the sums of all features and the SAE's decoder rows, [d_sae, d_in].

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
    return Result(scores, sums, decoder_clusters(scores.score, decoder), stability, list(words), settings)


def write_scores(folder: Path, result: Result, record: dict[str, Any]) -> None:
    """Write scores, statistics, the table of the best, pictures and the record of the run; whole or not at all.

    Args:
        folder: where to; an earlier result there is replaced as a whole.
        result: what `compute_result` gave.
        record: what is known of the run besides: arguments, SAE, versions.
    """
    from reasonscore.plots import draw_scores, draw_words

    statistics = result.statistics()
    with atomic_directory(folder) as temporary:
        torch.save(statistics["score"], temporary / SCORES)
        metadata = {"words": json.dumps(result.words, ensure_ascii=False)}
        save_file(statistics, temporary / STATS, metadata=metadata)
        table = top_features(result)
        table.to_csv(temporary / TABLE, **CSV)
        draw_scores(temporary / "feature_scores.png", result)
        draw_words(temporary / "top_features.png", result)
        write_json(temporary / RUN, {**_counts(result), **_bootstrap_record(result), **record})


def top_features(result: Result) -> pd.DataFrame:
    """The best features, one a row, with their statistics, and intervals (empty without a bootstrap)."""
    statistics, stability = result.statistics(), result.stability
    best = rank_features(statistics["score"])[: result.settings.topk]
    # float64, which shows all digits of a float32.
    values = {name: value[best].double().numpy() for name, value in statistics.items()}
    low, high, in_top_k = (stability.low, stability.high, stability.in_top_k) if stability else (float("nan"),) * 3
    word_means = values.pop("word_means")
    columns = {
        "rank": range(1, len(best) + 1),
        "feature": best.numpy(),
        "cluster": pd.array(values.pop("cluster"), dtype="Int64"),  # which has an empty cell for NaN
        "score": values["score"],
        "score_low": low,
        "score_high": high,
        "in_top_k": in_top_k,
        **{name: value for name, value in values.items() if not name.startswith("score")},
        "best_word": [result.words[index] for index in word_means.argmax(axis=1)],
        **{f"mean:{word}": mean for word, mean in zip(result.words, word_means.T, strict=True)},
    }
    return pd.DataFrame(columns)


def _counts(result: Result) -> dict[str, Any]:
    positions, matches = result.sums.n_positions.tolist(), result.sums.n_matches.tolist()
    return {
        "reasoning_tokens": positions[-2],
        "other_tokens": positions[-1],
        "words": {
            word: {"matches": count, "tokens": tokens}
            for word, count, tokens in zip(result.words, matches, positions[:-2], strict=True)
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
    """The best features, how sure their scores are and how often each word occurred, as a table on the terminal."""
    shown = {"score": "{:.3e}", "score_low": "{:.2e}", "score_high": "{:.2e}", "max_activation": "{:.3f}"}
    shown |= {"firing_frequency": "{:.3%}", "entropy": "{:.3f}"}
    table = top_features(result).head(top)[["rank", "feature", "cluster", *shown, "best_word"]].dropna(axis="columns")
    formats = {name: shown[name].format for name in table.columns if name in shown}
    print("\n" + table.to_string(index=False, formatters=formats))
    matches = dict(zip(result.words, result.sums.n_matches.tolist(), strict=True))
    print("\nmatches of each word: " + ", ".join(f"{word} {count:,}" for word, count in matches.items()))
    never = [word for word, count in matches.items() if count == 0]
    if never:
        print(f"note: never found in the text, and so lowering every entropy: {', '.join(never)}")
    if result.stability is not None:
        print(
            f"stability: other text of this kind would keep {result.stability.overlap:.0%} of the best "
            f"{len(result.stability.features)} features ({result.settings.n_bootstrap:,} resamples of "
            f"{len(result.sums.by_block)} blocks of rows)"
        )


class SavedScores(NamedTuple):
    """What a folder of scores holds; of scores that came alone, their `score` and nothing else."""

    statistics: dict[str, Tensor]
    words: list[str]
    run: dict[str, Any]

    @property
    def alone(self) -> bool:
        """Whether there are no statistics beside the scores."""
        return self.statistics.keys() == {"score"}

    def digest(self) -> str:
        """SHA-256 of all statistics: the same for scores of one pass and for the chunks that they were split into."""
        return hashlib.sha256(save(self.statistics)).hexdigest()


def read_scores(folder: Path) -> SavedScores:
    """Read back what `write_scores` wrote, or put together the chunks that lie there instead.

    The published code's scores are taken too: they come alone, as a tensor in a file, or as one file for each chunk.

    Args:
        folder: of the scores, or a file of scores alone.

    Raises:
        UserError: there are no scores, or some of the chunks are missing or of different runs.
    """
    if files := _files_of_scores_alone(folder):
        return SavedScores({"score": torch.cat([_read_scores_alone(file) for file in files])}, [], {})
    if not (folder / RUN).is_file() and find_chunks(folder):
        sums, about = merge_chunks(folder)
        result = compute_result(sums, recorded_decoder(about["record"]), about["words"], Settings(**about["settings"]))
        return SavedScores(result.statistics(), result.words, {**_counts(result), **about["record"]})
    for name in (SCORES, STATS, RUN):
        if not (folder / name).is_file():
            raise UserError(f"no scores in {folder}: {name} is missing; run extraction/compute_score.py first")
    with safe_open(folder / STATS, framework="pt") as file:
        statistics = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        words = json.loads(file.metadata()["words"])
    return SavedScores(statistics, words, json.loads((folder / RUN).read_text(encoding="utf-8")))


def recorded_decoder(record: Mapping[str, Any]) -> Tensor:
    """The decoder rows of the SAE that chunks were computed with, [d_sae, d_in].

    Raises:
        UserError: it is no longer where it was, or has changed.
    """
    path, sae_id, revision, dtype = (record["arguments"][f"sae_{name}"] for name in ("path", "id", "revision", "dtype"))
    source = find_sae(path, sae_id, revision=revision)
    if source.weights_sha256 != record["sae"]["weights_sha256"]:
        raise UserError(f"SAE {source} has changed since the chunks were computed: compute them again")
    return load_sae(source, dtype=dtype).W_dec


def _files_of_scores_alone(path: Path) -> list[Path]:
    """The files of the published code: one with all scores, or one for each chunk of features, by their numbers."""
    if path.is_file():
        return [path]
    if (path / STATS).is_file() or (path / RUN).is_file():
        return []
    if (path / SCORES).is_file():
        return [path / SCORES]
    found = [re.fullmatch(r"feature_scores_(\d+)\.pt", file.name) for file in path.glob("feature_scores_*.pt")]
    chunks = {int(match[1]): path / match[0] for match in found if match}
    missing = [f"feature_scores_{chunk}.pt" for chunk in range(max(chunks, default=-1)) if chunk not in chunks]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: the chunks of scores must be there from 0 on")
    if len(chunks) > 1:
        print(
            f"WARNING: the {len(chunks)} chunks of scores in {path} were each normalised by itself, so the scores of "
            "different chunks do not compare; compute_score.py normalises over all features",
            file=sys.stderr,
        )
    return [chunks[chunk] for chunk in sorted(chunks)]


def _read_scores_alone(file: Path) -> Tensor:
    """float32 [features]."""
    try:
        scores = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # on a file of another kind, the reader stumbles over whatever comes first
        raise UserError(f"{file} is no file of scores, or damaged: torch cannot read it") from error
    if not isinstance(scores, Tensor) or scores.ndim != 1 or not scores.is_floating_point():
        raise UserError(f"{file} is no file of scores: expected a tensor with one number for each feature")
    return scores.float()
