"""Is the test of a feature's meaning right? Features made by hand, of which it is known what they fire on.

    python benchmarks/planted_features.py

Each repetition draws texts, a small Qwen2 and an SAE (benchmarks/planted/) and runs extraction/falsification on them.
Printed: how often each planted feature and its matched control got each verdict, and how often each of the classes of
Ma et al. 2026, as a table for docs/falsification.md. The thresholds were fixed on seeds from 1,000 on.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "extraction"))

from falsification.experiment import Finding, Settings, run_experiment  # noqa: E402
from planted.features import FEATURES, IGNORED, Repetition, draw_repetition  # noqa: E402

from transformer_lens_r1.shared.arguments import ArgumentParser, non_negative_int, positive_int  # noqa: E402
from transformer_lens_r1.shared.errors import run  # noqa: E402

NAMES = (*(planted.name for planted in FEATURES), *(f"control of: {planted.name}" for planted in FEATURES))
EXPECTED = (*(planted.verdict for planted in FEATURES), *["not token"] * len(FEATURES))
VERDICTS = ("token", "mixed", "context", "unclear")
MA_ET_AL = ("token-driven", "partially", "weakly", "context-dependent")


def settings(repetition: Repetition, seed: int) -> Settings:
    n_texts, text_length = repetition.ordinary.shape
    return Settings(
        comma=repetition.vocabulary.comma, ignored_ids=IGNORED, n_texts=n_texts, text_length=text_length, seed=seed
    )


def examine(seed: int) -> list[Finding]:
    """The findings on one repetition's features, in the order of NAMES."""
    repetition = draw_repetition(seed)
    return run_experiment(repetition.encode, repetition.reasoning, repetition.ordinary, settings(repetition, seed))


def table(repetitions: Iterable[Sequence[Finding]]) -> str:
    """Counts of verdicts and classes, as markdown."""
    verdicts, classes = ([Counter[str]() for _ in NAMES] for _ in range(2))
    for findings in repetitions:
        for index, finding in enumerate(findings):
            verdicts[index][finding.verdict] += 1
            classes[index][finding.ma.kind if finding.ma else "none"] += 1
    lines = [f"| feature | expected | {' | '.join((*VERDICTS, *MA_ET_AL))} |", "|---|---|" + "---|" * 8]
    for name, expected, verdict, kind in zip(NAMES, EXPECTED, verdicts, classes, strict=True):
        counts = [*(verdict[key] for key in VERDICTS), *(kind[key] for key in MA_ET_AL)]
        lines.append(f"| {name} | {expected} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    from tqdm import tqdm
    from transformers.utils import logging

    parser = ArgumentParser(__doc__)
    parser.add_argument("--repetitions", type=positive_int, default=100, help="how often all is drawn anew")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the first repetition")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()
    seeds = range(args.seed, args.seed + args.repetitions)
    print(table(examine(seed) for seed in tqdm(seeds, desc="repetitions")))


if __name__ == "__main__":
    run(main)
