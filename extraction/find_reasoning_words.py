"""Words and phrases that mark reasoning against solutions: where a vocabulary for ReasonScore comes from.

Each word, and each phrase of two or three, is ranked by the z of its log-odds between the two texts (formulas:
vocabulary_search/log_odds.py; what counts as a word: vocabulary_search/counting.py), beside its frequency in the
language at large. The text is read twice and never held in memory.

    python extraction/find_reasoning_words.py --dataset_path open-thoughts/OpenThoughts-114k \\
        --dataset_config metadata --output_dir extraction/reasoning_words

The output folder holds reasoning_words.csv (everything, ranked), reasoning_words.png, reason_tokens.json (the best
--top, to choose from by hand, for compute_score.py --tokens_str_path) and run.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from transformer_lens_r1.shared.arguments import ArgumentParser, non_negative_float, positive_int
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder, display_name
from transformer_lens_r1.shared.locks import locked
from transformer_lens_r1.shared.records import add_max_bad_rows, bad_rows_info, check_bad_rows
from transformer_lens_r1.shared.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from vocabulary_search.counting import PairedTexts

PUBLISHED = Path(__file__).resolve().parent / "reason_tokens.json"
NOT_SPLIT = ("ja", "ko", "zh")
"""Languages of wordfreq that need a program to find their words."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what argparse alone can refuse refused."""
    parser = ArgumentParser(description=__doc__)
    text = parser.add_argument_group("text")
    text.add_argument("--dataset_path", required=True, help="Hub id or folder of a data set")
    text.add_argument("--dataset_config", help="its configuration, if it has several")
    text.add_argument("--dataset_revision", help="branch, tag or commit of the data set on the Hub")
    text.add_argument("--reasoning_column", default="deepseek_reasoning", help="column with the reasoning")
    text.add_argument("--solution_column", default="deepseek_solution", help="column with the solutions")
    text.add_argument("--column_name", help="in place of these two: one column, with <think>…</think> in its text")
    add_max_bad_rows(text)
    search = parser.add_argument_group("search")
    search.add_argument(
        "--min_count", type=positive_int, default=1000, help="occurrences in both texts together that an entry needs"
    )
    search.add_argument("--top", type=positive_int, default=40, help="best entries in the new vocabulary and picture")
    search.add_argument(
        "--language", default="en", help="whose general frequencies to compare with, as wordfreq names it"
    )
    search.add_argument(
        "--prior_weight", type=non_negative_float, default=0.01, help="of the counts of both texts, which are the prior"
    )
    search.add_argument(
        "--tokens_str_path",
        type=Path,
        default=PUBLISHED,
        help="vocabulary whose ranks are told (default: the one that the paper published)",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the results")
    args = parser.parse_args(argv)
    if args.prior_weight == 0:
        parser.error(
            "--prior_weight 0: a word that one text lacks would have infinite odds; give a small number like 1e-4"
        )
    return args


def check_language(language: str) -> None:
    """Raise `UserError` unless wordfreq knows the language and its words stand between spaces."""
    from wordfreq import available_languages

    known = sorted(set(available_languages()) - set(NOT_SPLIT))
    if language not in known:
        raise UserError(f"--language {language}: expected one of {', '.join(known)}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    from vocabulary_search.results import TABLE

    check_output_folder(args.output_dir, TABLE)
    with locked(args.output_dir):
        find_words(args)


def open_texts(args: argparse.Namespace) -> tuple[PairedTexts, str | None]:
    """Reasoning and solution of each row, and the commit of the Hub that they are of."""
    from vocabulary_search.counting import PairedTexts, split_columns, split_thought

    from transformer_lens_r1.shared.data import stream_rows

    columns: tuple[str, ...] = (args.reasoning_column, args.solution_column)
    split = partial(split_columns, columns=columns)
    if args.column_name is not None:
        columns = (args.column_name,)
        split = partial(split_thought, column=args.column_name)
    stream = stream_rows(args.dataset_path, columns=columns, name=args.dataset_config, revision=args.dataset_revision)
    return PairedTexts(stream, split, stream.n_rows), stream.commit


class Counted(NamedTuple):
    """What two readings of the text gave."""

    counts: dict[str, tuple[int, int]]
    """Of each frequent word and phrase, in reasoning and in solutions."""
    n_words: tuple[int, int]
    short_by: dict[str, int]
    """By how much the counts of each kind may be too small."""


def count_entries(texts: PairedTexts, args: argparse.Namespace, source: str) -> Counted:
    """Read the text twice: for words, and for phrases of those that are frequent enough."""
    from vocabulary_search.counting import count_phrases, count_words
    from vocabulary_search.results import RUN

    words, n_words = count_words(texts)
    check_bad_rows(texts.faults, n_records=texts.n_rows, max_bad_rows=args.max_bad_rows, where=source, listed_in=RUN)
    counts = words.frequent(args.min_count)
    if 0 in n_words:
        raise UserError(f"the {('reasoning', 'solutions')[n_words.index(0)]} of {source} hold no words")
    if not counts:
        raise UserError(
            f"none of the {sum(n_words):,} words of {source} occurs {args.min_count:,} times: give a smaller "
            "--min_count"
        )
    short_by = {"words": words.short_by}
    del words  # its memory is for the phrases
    for length, phrases in count_phrases(texts, list(counts)).items():
        counts |= {" ".join(gram): both for gram, both in phrases.frequent(args.min_count).items()}
        short_by[f"phrases of {length}"] = phrases.short_by
    for what, most in short_by.items():
        if most:
            print(f"note: to bound the memory rare {what} were forgotten: no count is short by more than {most:,}")
    return Counted(counts, n_words, short_by)


def find_words(args: argparse.Namespace) -> None:
    """Count, rank, and write what came out."""
    reference = read_vocabulary(args.tokens_str_path)
    check_language(args.language)
    from vocabulary_search.log_odds import rank_entries
    from vocabulary_search.results import summary, write_results

    from transformer_lens_r1.shared.data import split_revision

    texts, commit = open_texts(args)
    path, revision = split_revision(args.dataset_path)
    source = display_name(path)
    counted = count_entries(texts, args, source)
    table = rank_entries(counted.counts, counted.n_words, prior_weight=args.prior_weight, language=args.language)
    record = {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "source": source,
        "revision": args.dataset_revision or revision,
        "commit": commit,
        "rows": texts.n_rows,
        **bad_rows_info(texts.faults),
        "words_in_reasoning": counted.n_words[0],
        "words_in_solutions": counted.n_words[1],
        "counts_short_by_at_most": counted.short_by,
        "versions": {name: version(name) for name in ("wordfreq", "regex", "datasets")},
    }
    with atomic_directory(args.output_dir) as folder:
        write_results(folder, table, reference, args.top, record)
    print("\n".join(summary(table, reference, args.top)))
    print(f"wrote {len(table):,} words and phrases to {args.output_dir}")


if __name__ == "__main__":
    run(main)
