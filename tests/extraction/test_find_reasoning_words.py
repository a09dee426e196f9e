"""find_reasoning_words.py: its counts and log-odds are those of a loop, and what was planted comes first."""

import csv
import json
import math
import random
import unicodedata
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import compute_score
import find_reasoning_words
import pytest
from datasets import Dataset, IterableDataset
from PIL import Image
from vocabulary_search.counting import Counts, PairedTexts, count_phrases, count_words, split_columns, split_thought
from vocabulary_search.log_odds import spellings

from transformer_lens_r1.shared.data import RowStream
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import hash_file
from transformer_lens_r1.shared.vocabulary import read_vocabulary, word_of

COLUMNS = ("deepseek_reasoning", "deepseek_solution")
FILES = {"reasoning_words.csv", "reasoning_words.png", "reason_tokens.json", "run.json"}
ODD = [
    "Let's see—wait.",
    "x2 is \\frac{a}{b}",
    "let\n  me 'think'",
    "snake_case",
    "naïve ÉTÉ l’eau",
    "हिन्दी में",
    "don't''t",
]


def split_by_hand(text: str) -> list[list[str]]:
    """Runs of words that nothing but white space separates, character by character."""
    runs: list[list[str]] = [[]]
    word, text = "", text.lower() + " "
    for place, character in enumerate(text[:-1]):
        is_letter = unicodedata.category(character)[0] in "LM"
        inside = character in "'’" and word and unicodedata.category(text[place + 1])[0] in "LM"
        if is_letter or inside:
            word += character
            continue
        if word:
            runs[-1].append(word)
            word = ""
        if not character.isspace():
            runs.append([])
    if word:
        runs[-1].append(word)
    return runs


def count_by_hand(texts: list[str]) -> tuple[Counter[str], int]:
    """All words and phrases of up to three words, and the number of words."""
    counts: Counter[str] = Counter()
    runs = [run for text in texts for run in split_by_hand(text)]
    for run in runs:
        for length in (1, 2, 3):
            counts.update(" ".join(run[start : start + length]) for start in range(len(run) - length + 1))
    return counts, sum(map(len, runs))


def random_rows(n_rows: int, *, planted: tuple[str, ...] = (), seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose two texts are drawn alike, but for planted pieces in the reasoning, and odd pieces here and there."""
    draw = random.Random(seed)
    pieces = [f"{a}{b}{end}" for a in "bdfgk" for b in ("ala", "eno", "iru") for end in (" ", ", ", " ", "\n")] + ODD

    def text(n: int, more: tuple[str, ...]) -> str:
        words = draw.choices(pieces, k=n) + [f" {piece} " for piece in more]
        draw.shuffle(words)
        return " ".join(words)

    return [dict(zip(COLUMNS, (text(60, planted), text(20, ())), strict=True)) for _ in range(n_rows)]


def save(folder: Path, rows: list[dict[str, Any]]) -> Path:
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return folder


def flags(source: Path, out: Path, **changed: Any) -> list[str]:
    arguments = {"dataset_path": source, "min_count": 5, "output_dir": out, **changed}
    return [f"--{name}={value}" for name, value in arguments.items()]


def read_table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "reasoning_words.csv").open(newline="") as file:
        return {row["entry"]: row for row in csv.DictReader(file)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "source", random_rows(80, planted=("zounds", "zounds", "lo and behold")))


def test_every_number_in_the_table_is_that_of_a_loop_over_the_text(source: Path, tmp_path: Path) -> None:
    find_reasoning_words.main(flags(source, tmp_path / "out", prior_weight=0.25))
    rows = random_rows(80, planted=("zounds", "zounds", "lo and behold"))
    (here, n_here), (there, n_there) = (count_by_hand([row[column] for row in rows]) for column in COLUMNS)
    table = read_table(tmp_path / "out")
    assert set(table) == {entry for entry, count in (here + there).items() if count >= 5}
    assert {"let's", "let me", "l’eau", "हिन्दी", "is", "lo and behold"} <= set(table) and "wait snake" not in table
    for entry, row in table.items():
        prior, prior_total = 0.25 * (here[entry] + there[entry]), 0.25 * (n_here + n_there)
        y, y_there = here[entry] + prior, there[entry] + prior
        delta = math.log(y / (n_here + prior_total - y)) - math.log(y_there / (n_there + prior_total - y_there))
        assert int(row["reasoning_count"]) == here[entry] and int(row["solution_count"]) == there[entry]
        assert float(row["log_odds"]) == pytest.approx(delta, rel=1e-5, abs=1e-9)
        assert float(row["z"]) == pytest.approx(delta / math.sqrt(1 / y + 1 / y_there), rel=1e-5, abs=1e-9)
        assert float(row["reasoning_per_million"]) == pytest.approx(1e6 * here[entry] / n_here, rel=1e-5)
        assert float(row["solution_per_million"]) == pytest.approx(1e6 * there[entry] / n_there, rel=1e-5)
    z = [float(row["z"]) for row in table.values()]
    assert z == sorted(z, reverse=True) and [int(row["rank"]) for row in table.values()] == list(range(1, len(z) + 1))


def test_planted_words_and_phrases_come_first(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = tmp_path / "planted.json"
    vocabulary.write_text(json.dumps(["Zounds", " zounds", " lo and  behold", "absent"]))
    out = tmp_path / "out"
    find_reasoning_words.main(flags(source, out, top=6, tokens_str_path=vocabulary))
    best = list(read_table(out))[:7]
    assert best[0] == "zounds"
    assert set(best[1:]) == {"lo", "and", "behold", "lo and", "and behold", "lo and behold"}
    ranks = json.loads((out / "run.json").read_text())["ranks_of_the_vocabulary_compared"]
    assert ranks["zounds"] == 1 and ranks["lo and behold"] <= 7 and ranks["absent"] is None
    printed = capsys.readouterr().out
    assert "zounds: rank 1, z " in printed and "absent: too rare" in printed
    with Image.open(out / "reasoning_words.png") as picture:
        assert min(picture.size) > 500


def test_a_word_that_is_commoner_in_general_english_is_ranked_but_not_chosen(tmp_path: Path) -> None:
    # "the" is some 50,000 in a million in English, "zounds" next to nothing.
    rows = [{COLUMNS[0]: "zounds the " + "ba da " * 40, COLUMNS[1]: "ba da " * 40}] * 20
    out = tmp_path / "out"
    find_reasoning_words.main(flags(save(tmp_path / "source", rows), out))
    table = read_table(out)
    assert float(table["the"]["z"]) == float(table["zounds"]["z"]) > 1
    assert float(table["the"]["general_per_million"]) > 30_000 > 10 > float(table["zounds"]["general_per_million"])
    assert table["zounds the"]["general_per_million"] == ""  # of a phrase it would be made up
    assert (table["the"]["chosen"], table["zounds"]["chosen"]) == ("False", "True")
    assert " the" not in json.loads((out / "reason_tokens.json").read_text())


def test_text_with_think_tags_in_one_column_gives_the_same_table(source: Path, tmp_path: Path) -> None:
    rows = [
        {"answer": f"a question <think>\n{row[COLUMNS[0]]}\n</think>\n{row[COLUMNS[1]]}"}
        for row in random_rows(80, planted=("zounds", "zounds", "lo and behold"))
    ]
    find_reasoning_words.main(flags(source, tmp_path / "two"))
    find_reasoning_words.main(flags(save(tmp_path / "tagged", rows), tmp_path / "one", column_name="answer"))
    assert read_table(tmp_path / "one") == read_table(tmp_path / "two")
    assert split_thought({"answer": "hmm</think>so"}, "answer") == ("hmm", "so")  # <think> was part of the prompt


def test_no_more_than_a_row_is_in_memory_at_a_time() -> None:
    class Text(str):
        """Text that can be seen to be gone."""

    alive: weakref.WeakSet[Text] = weakref.WeakSet()
    most = 0

    class Rows:
        def __iter__(self) -> Iterator[dict[str, str]]:
            nonlocal most
            for row in random_rows(50):
                texts = {column: Text(text) for column, text in row.items()}
                alive.update(texts.values())
                most = max(most, len(alive))
                yield texts
                del texts

    texts = PairedTexts(Rows(), lambda row: split_columns(row, COLUMNS), None)
    counts, _ = count_words(texts)
    count_phrases(texts, counts.frequent(1))
    assert texts.n_rows == 50 and 2 <= most <= 4


def test_counts_stay_within_the_limit_and_are_short_by_no_more_than_they_say() -> None:
    draw = random.Random(0)
    names = [f"w{rank}" for rank in range(2000)]
    weights = [1 / (rank + 1) for rank in range(2000)]
    exact, counts = (Counter[str](), Counter[str]()), Counts(limit=300)
    for number in range(400):
        found = draw.choices(names, weights, k=50)
        exact[number % 2].update(found)
        counts.add(number % 2, found)
        assert sum(map(len, counts.texts)) <= 300
    assert counts.short_by > 0
    true = exact[0] + exact[1]
    for name, both in counts.frequent(0).items():
        assert true[name] - counts.short_by <= sum(both) <= true[name]
    kept = counts.frequent(100)
    assert {name for name, count in true.items() if count >= 100 + counts.short_by} <= set(kept)
    assert kept["w0"] == (exact[0]["w0"], exact[1]["w0"])  # what is frequent is never forgotten


def test_the_quickstarts_traces_give_a_vocabulary_that_compute_score_reads(
    load_script: Callable[[str], ModuleType], tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path, tmp_path: Path,
    repository: Path,
) -> None:  # fmt: skip
    load_script("quickstart/make_data.py").main(["--output_dir", str(tmp_path / "data")])
    out = tmp_path / "out"
    find_reasoning_words.main(flags(tmp_path / "data" / "openthoughts", out, min_count=20))
    assert {file.name for file in out.iterdir()} == FILES
    record = json.loads((out / "run.json").read_text())
    assert record["rows"] == 1000 and record["malformed"] == 0 and record["source"] == "openthoughts"
    # The traces hold the published words, their solutions none of them.
    ranks = record["ranks_of_the_vocabulary_compared"]
    published = {word_of(spelling) for spelling in read_vocabulary(repository / "extraction" / "reason_tokens.json")}
    assert set(ranks) == published and all(rank <= 50 for rank in ranks.values())

    chosen = read_vocabulary(out / "reason_tokens.json")
    words = list(dict.fromkeys(map(word_of, chosen)))
    assert len(words) == 40 and chosen == [spelling for word in words for spelling in spellings(word)]
    assert spellings("let me") == ["let me", " let me", "Let me", " Let me"]  # as in the published file
    compute_score.main(
        [
            f"--{name}={value}"
            for name, value in {
                "model_path": tiny_llama, "sae_path": legacy_sae, "device": "cpu", "dtype": "float32",
                "dataset_path": fixture_tokens, "column_name": "tokens", "n_samples": 4, "n_bootstrap": 0,
                "tokens_str_path": out / "reason_tokens.json", "output_dir": tmp_path / "scores",
            }.items()
        ]
    )  # fmt: skip
    scored = json.loads((tmp_path / "scores" / "run.json").read_text())
    assert scored["vocabulary_sha256"] == hash_file(out / "reason_tokens.json")


def test_a_few_malformed_rows_are_left_out_and_many_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = random_rows(40)
    rows[7][COLUMNS[1]] = None
    source = save(tmp_path / "source", rows)
    with pytest.raises(UserError, match=r"more than 1 % of the 40 records of source .* record 7: field 'deepseek_sol"):
        find_reasoning_words.main(flags(source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    find_reasoning_words.main(flags(source, tmp_path / "out", max_bad_rows=0.1))
    assert "left out record 7" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "run.json").read_text())["malformed_records"] == [7]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"solution_column": "deepseek_solutions"}, "no column 'deepseek_solutions'; did you mean 'deepseek_solution'"),
        ({"column_name": "deepseek_reasoning"}, "more than 1 % .* field 'deepseek_reasoning' has no </think>"),
        ({"min_count": 100_000}, "none of the .* words of source occurs 100,000 times: give a smaller --min_count"),
        ({"language": "xx"}, "--language xx: expected one of ar, bg, .* en, "),
        ({"language": "zh"}, "--language zh: expected one of"),
        ({"tokens_str_path": "nothing.json"}, "cannot read the vocabulary --tokens_str_path nothing.json"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing_behind(
    changed: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as told:
        find_reasoning_words.main(flags(source, tmp_path / "out", **changed))
    assert "\n" not in str(told.value) and not (tmp_path / "out").exists()


def test_a_stream_that_ends_early_is_told_in_one_line() -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield dict.fromkeys(COLUMNS, "wait")
        raise ConnectionResetError("the peer has gone")

    stream = RowStream(IterableDataset.from_generator(rows), None, None)
    with pytest.raises(UserError, match="could not be read to its end: the connection to the Hub failed"):
        count_words(PairedTexts(stream, lambda row: split_columns(row, COLUMNS), None))


def test_solutions_without_words_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "source", [{COLUMNS[0]: "wait", COLUMNS[1]: "42"}] * 9)
    with pytest.raises(UserError, match="the solutions of source hold no words"):
        find_reasoning_words.main(flags(source, tmp_path / "out"))


def test_a_prior_of_nothing_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        find_reasoning_words.main(flags(source, tmp_path / "out", prior_weight=0))
    assert "--prior_weight 0: a word that one text lacks" in capsys.readouterr().err


def test_an_earlier_result_is_replaced_and_anything_else_is_kept(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for top in (3, 4):
        find_reasoning_words.main(flags(source, out, top=top))
        assert len(json.loads((out / "reason_tokens.json").read_text())) == 4 * top
    (source / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        find_reasoning_words.main(flags(source, source))
    assert (source / "mine.txt").is_file() and (source / "rows.parquet").is_file()
