"""Baseline and steered evaluations as a report: accuracy, length, and how both differ from the baseline.

Reads the results_*.json and samples_*.jsonl that lm-eval wrote anywhere below the given folders, and compares each
steered run with the baseline of the same task and model, question by question.

    python evaluation/summarize.py --results evaluation/results --output_dir evaluation/results/report

Writes summary.md, summary.csv and words.csv (controls.csv if there are controls), report.html with the figures (which
also lie in figures/), and for every steered run questions_<n>.html, where single answers stand side by side; prints the
table. The pages need no network.
Of several runs that differ in nothing but their date, the latest counts. A row that cannot support a claim has its
warning beside it; runs that answered different questions are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from report.controls import place_features
from report.figures import draw_figures
from report.pages import TITLE_END, write_question_page, write_report_page
from report.reasoning_words import WordCounter
from report.rows import summarize
from report.runs import read_runs
from report.tables import main_table, write_tables

from transformer_lens_r1.shared.arguments import ArgumentParser, non_negative_int, positive_int
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder
from transformer_lens_r1.shared.vocabulary import read_vocabulary

VOCABULARY = Path(__file__).resolve().parent.parent / "extraction" / "reason_tokens.json"
REPORT = "report.html"
OWN_FILES = (
    REPORT,
    "summary.md",
    "summary.csv",
    "words.csv",
    "controls.csv",
    "questions_*.html",
    "figures",
    "figures/*.svg",
)
"""All that a report's folder can hold."""


def check_report_folder(path: Path) -> None:
    """Make sure that a report can be written to the folder ``path`` and replaces nothing but an earlier report.

    Args:
        path: where the report is to go.

    Raises:
        UserError: it is a file, holds anything that is not a report's, or lies where nothing can be written.
    """
    check_output_folder(path, REPORT, name="--output_dir", own=OWN_FILES)
    # Another program's report may have the same names, but not the page's first lines.
    if (path / REPORT).is_file():
        with (path / REPORT).open(encoding="utf-8", errors="replace") as page:
            if TITLE_END not in page.read(1000):
                raise UserError(f"--output_dir {path} holds another program's {REPORT}; name another folder")


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, metavar="DIR", help="folders, searched to any depth"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the report; an earlier one goes")
    parser.add_argument(
        "--tokens_str_path", type=Path, default=VOCABULARY, metavar="FILE", help="reasoning words, a JSON list"
    )
    parser.add_argument("--n_resamples", type=positive_int, default=10_000, help="of the bootstrap")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--answers_shown", type=positive_int, default=4, help="of a question with several answers, how many to show"
    )
    args = parser.parse_args(argv)
    words = WordCounter(read_vocabulary(args.tokens_str_path))
    for folder in args.results:
        if folder.is_dir() and folder.resolve().is_relative_to(args.output_dir.resolve()):
            raise UserError(f"--output_dir {args.output_dir} holds the results {folder}, and is replaced as a whole")
    check_report_folder(args.output_dir)
    runs = read_runs(args.results, words=words)

    draws = {"n_resamples": args.n_resamples, "seed": args.seed}
    rows = summarize(runs, words=words.words, **draws)
    placed = place_features(rows)
    pictures = draw_figures(rows)
    with atomic_directory(args.output_dir) as folder:
        compared = [place for place, row in enumerate(rows) if row.compared]
        pages = {place: f"questions_{number}.html" for number, place in enumerate(compared, 1)}
        for place, page in pages.items():
            write_question_page(folder / page, rows[place], words, report=REPORT, answers_shown=args.answers_shown)
        for picture in pictures:
            (folder / "figures").mkdir(exist_ok=True)
            (folder / "figures" / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
        write_report_page(folder / REPORT, rows, placed, pictures=pictures, question_pages=pages, **draws)
        write_tables(folder, rows, placed, **draws)
    print(main_table(rows), end="")
    print(f"Written to {args.output_dir / REPORT}, summary.md, summary.csv and words.csv")


if __name__ == "__main__":
    run(main)
