"""What the report makes of runs whose answers are known: refusals, marks, numbers, files."""

import csv
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import summarize
from planted_runs import PLAIN, STEERED, TASK, feature, rows_of, setting, write_run
from report.reasoning_words import WordCounter
from report.tables import main_table

from transformer_lens_r1.shared.errors import UserError

DOWN = [[1 - right] for [right] in PLAIN]  # every question changes sides: no warning of too few
JUDGE = {"model": "m", "host": "h", "mode": "all", "prompt_sha": "s", "questions": 3}


def test_steered_run_and_baseline_are_compared_question_by_question(tmp_path: Path) -> None:
    lengths = [[100 + i] for i in range(40)]
    write_run(tmp_path / "a", PLAIN, tokens=lengths)
    write_run(tmp_path / "b", STEERED[10:], tokens=[[2 * n] for [n] in lengths[:30]], features=[feature()])
    plain, steered = rows_of(tmp_path)
    stderr = scipy.stats.sem([i % 2 for i in range(40)])
    assert (plain.record["accuracy"], plain.record["accuracy_stderr"]) == (0.5, pytest.approx(stderr))
    assert steered.compared == 30
    right = [(p, s) for [p], [s] in zip(PLAIN[:30], STEERED[10:], strict=True)]
    found = steered.record
    assert found["accuracy_difference"] == pytest.approx(sum(s - p for p, s in right) / 30)
    assert found["right_to_wrong"] == sum(p > s for p, s in right)
    assert found["wrong_to_right"] == sum(s > p for p, s in right)
    assert found["completion_tokens_change"] == pytest.approx(1.0)
    assert found["answers_changed"] == sum(p != s for p, s in right)
    assert "compared over the 30 questions that both runs answered" in steered.warnings


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (setting("versions", TASK, value=2.0), r"task version: 1.0 \(baseline\), 2.0 \(steered\)"),
        (setting("config", "model_num_parameters", value=7), r"parameters of the model: 2529024 \(baseline\), 7"),
        (setting("model_name", value="/else/tiny"), "no baseline of else/tiny on planted, only of models/tiny$"),
        (setting("config", "model_revision", value="v2"), r"no baseline of tiny@v2 on planted, only of tiny$"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    edit: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", PLAIN)
    write_run(tmp_path / "b", STEERED, features=[feature()], edit=edit)
    (steered,) = (row for row in rows_of(tmp_path) if row.run.steered)
    assert re.search(f"not compared: {reason}", "; ".join(steered.warnings))
    assert steered.record["accuracy"] == pytest.approx(25 / 40) and steered.compared == 0
    differences = ("accuracy_difference", "mcnemar_p", "answers_changed", "completion_tokens_change")
    assert {steered.record[name] for name in differences} == {None}


def test_other_commits_are_refused_and_unknown_ones_are_not(tmp_path: Path) -> None:
    for name, sha in (("plain", "aaa"), ("same", ""), ("other", "bbb")):
        steering = None if name == "plain" else [feature(len(name))]
        write_run(tmp_path / name, PLAIN, features=steering, edit=setting("config", "model_sha", value=sha))
    _, same, other = rows_of(tmp_path)
    assert same.compared == 40 and other.compared == 0
    assert "not compared: model commit: aaa (baseline), bbb (steered)" in other.warnings


def test_runs_without_samples_or_common_questions_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", PLAIN)
    write_run(tmp_path / "b", PLAIN, features=[feature(1)], problems=[f"Another {i}?" for i in range(40)])
    folder = write_run(tmp_path / "c", PLAIN, features=[feature(2)])
    next(folder.glob("samples_*")).unlink()
    folder = write_run(tmp_path / "d", PLAIN, features=[feature(3)])
    samples = next(folder.glob("samples_*"))
    samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:31]))
    _, other, without, cut = rows_of(tmp_path)
    assert "not compared: no question in common with the baseline: other data or other prompts" in other.warnings
    assert "not compared: the steered run logged no samples (--log_samples)" in without.warnings
    assert without.record["accuracy"] == 0.5
    assert "its samples file holds 31 of 40 questions" in cut.warnings and cut.compared == 31


@pytest.mark.parametrize(
    ("edit", "mark"),
    [
        (lambda results: None, None),
        (setting("config", "limit", value=40.0), r"limit: none \(baseline\), 40.0 \(steered\)"),
        (setting("config", "model", value="vllm-sae"), "back end: hf .*, vllm"),
        (setting("config", "judge", value=JUDGE | {"mode": "undecided"}), "judge's mode: all .*, undecided"),
        (setting("config", "judge", value=JUDGE | {"questions": 9}), None),  # costs, not settings
        (setting("config", "scoring", value={"scoring_sha256": "a", "math_verify_version": "2"}), "scoring code: "),
        (setting("config", "scoring", value=None), None),  # an older run does not say
        (setting("configs", TASK, "generation_kwargs", "temperature", value=0.7), "argument temperature: 0.6 .*, 0.7"),
        (setting("configs", TASK, "generation_kwargs", value={"temperature": "0.6", "max_gen_toks": "1024"}), None),
    ],
)
def test_runs_with_other_settings_are_compared_and_marked(
    edit: Callable[[dict[str, Any]], None], mark: str | None, tmp_path: Path
) -> None:

    def shared(results: dict[str, Any]) -> None:
        results["config"] |= {"judge": JUDGE, "scoring": {"scoring_sha256": "a", "math_verify_version": "1"}}

    write_run(tmp_path / "a", PLAIN, edit=shared)
    write_run(tmp_path / "b", DOWN, features=[feature()], edit=lambda results: (shared(results), edit(results)))
    _, steered = rows = rows_of(tmp_path)
    assert steered.record["accuracy_difference"] is not None
    assert len(steered.warnings) == (mark is not None)
    if mark:
        assert re.search(mark, steered.warnings[0]) and f"1. {steered.warnings[0]}" in main_table(rows)


def test_rows_that_cannot_support_a_claim_say_so(tmp_path: Path) -> None:
    cut_off = setting("results", TASK, "truncated,none", value=0.5)
    write_run(tmp_path / "a", PLAIN[:20], edit=cut_off)
    write_run(tmp_path / "b", STEERED[:20], features=[feature()], edit=cut_off)
    write_run(tmp_path / "c", DOWN, features=[feature(8)], edit=setting("config", "sae", "steered_positions", value=0))
    plain, steered, unproven = rows_of(tmp_path)
    few = "20 questions, fewer than the 30 that an interval needs"
    cut = "the token limit cut off 50 % of the answers: their length is a lower bound"
    assert plain.warnings == (few, cut)
    assert steered.warnings == (
        few, cut, "the token limit cut off 50 % of the baseline's answers: its length is a lower bound, and the change "
        "in length is biased",
        "3 questions changed between right and wrong; the exact test cannot reach 5 % with fewer than 6",
    )  # fmt: skip
    assert "nothing in its results file says that any position was steered" in unproven.warnings


def test_repeats_are_resampled_by_question(tmp_path: Path) -> None:
    generator = random.Random(0)
    # All answers of a question are alike: 50 questions say no more than 50 answers would.
    right = [[float(generator.random() < 0.5)] for _ in range(50)]
    steered = [[float(generator.random() < 0.7)] for _ in range(50)]
    for repeats in (1, 16):
        texts = [[f"answer {j} to {i}" for j in range(repeats)] for i in range(50)]
        changed = [[text + "!" * (i < 3 and j < 2) for j, text in enumerate(row)] for i, row in enumerate(texts)]
        write_run(tmp_path / f"{repeats}/a", [r * repeats for r in right], texts=texts)
        write_run(tmp_path / f"{repeats}/b", [r * repeats for r in steered], texts=changed, features=[feature()])
    (_, single), (_, several) = (rows_of(tmp_path / str(repeats)) for repeats in (1, 16))
    for name in ("accuracy_difference", "maj@16_difference"):
        assert several.estimate(name) == pytest.approx(single.estimate("accuracy_difference"))
    assert several.record["accuracy_stderr"] == pytest.approx(single.record["accuracy_stderr"])
    assert single.record["mcnemar_p"] is not None and several.record["mcnemar_p"] is None
    assert several.record["cov@16"] == several.record["maj@16"] == pytest.approx(several.record["accuracy"])
    assert several.record["answers_changed"] == 6, "answers are counted, not questions"


def test_holm_corrects_over_the_runs_of_one_task_and_model(tmp_path: Path) -> None:
    write_run(tmp_path / "plain", [[0.0]] * 40)
    for wins in (7, 12):
        write_run(tmp_path / str(wins), [[1.0]] * wins + [[0.0]] * (40 - wins), features=[feature(wins)])
    found = [(row.record["mcnemar_p"], row.record["holm_p"]) for row in rows_of(tmp_path)]
    assert found == [(None, None), pytest.approx((2 * 0.5**7, 2 * 0.5**7)), pytest.approx((2 * 0.5**12, 4 * 0.5**12))]


def test_reasoning_words_are_counted_as_whole_words() -> None:
    counter = WordCounter(["wait", " wait", "Wait", " Wait", "let me", " Let me", "But", "let me see"])
    text = "Wait, wait. WAIT! Waiting awaits; but wait\nBut let\nme go. Let me see, let me see. (But)"
    counts = dict(zip(counter.words, counter.count(text), strict=True))
    assert list(counts.items()) == [("wait", 3), ("let me", 2), ("but", 2), ("let me see", 1)]


def test_word_rates_are_per_thousand_tokens(tmp_path: Path) -> None:
    words = WordCounter(["wait", "hmm"])
    n = [[100 + i] for i in range(40)]
    write_run(tmp_path / "a", PLAIN, texts=[["wait hmm"]] * 40, tokens=n)
    write_run(tmp_path / "b", PLAIN, texts=[["wait " * (1 + i % 3)] for i in range(40)], tokens=n, features=[feature()])
    runs = summarize.read_runs([tmp_path], words=words)
    plain, steered = summarize.summarize(runs, words=words.words, n_resamples=200)
    tokens, waits = sum(t for [t] in n), sum(1 + i % 3 for i in range(40))
    assert plain.record["reasoning_words_per_1000_tokens"] == pytest.approx(1000 * 80 / tokens)
    rates = [(rate["plain_per_1000_tokens"], rate["steered_per_1000_tokens"]) for rate in steered.words]
    assert [rate["word"] for rate in steered.words] == ["all words", "wait", "hmm"]
    assert rates[1:] == [pytest.approx((40_000 / tokens, 1000 * waits / tokens)), pytest.approx((40_000 / tokens, 0))]
    assert [rate["change"] for rate in steered.words[1:]] == pytest.approx([waits / 40 - 1, -1])


def test_the_files_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs/plain", PLAIN, tokens=[[100 + i] for i in range(40)], texts=[["wait"]] * 40)
    for index in (7, 9):
        for strength in (1, 2, 4):
            tokens = [[100 + i + 10 * strength + i % 5 * index] for i in range(40)]
            right = [[r if i % 10 > strength else 1 - r] for i, [r] in enumerate(PLAIN)]
            steering = [feature(index, strength=strength)]
            write_run(tmp_path / f"runs/{index}-{strength}", right, tokens=tokens, features=steering)
    out = tmp_path / "report"
    arguments = ["--results", str(tmp_path / "runs"), "--output_dir", str(out), "--n_resamples", "1000"]
    summarize.main(arguments)
    text = (out / "summary.md").read_text()
    assert capsys.readouterr().out.splitlines()[0] in text
    with (out / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["feature_idx"], row["strength"], row["questions"]) for row in table] == [
        ("", "", "40"), *((f, s, "40") for f in ("7", "9") for s in ("1.0", "2.0", "4.0")),
    ]  # fmt: skip
    for row in table[1:]:
        low, value, high = (float(row[f"accuracy_difference{end}"]) for end in ("_low", "", "_high"))
        assert low <= value <= high and float(row["mcnemar_p"]) <= float(row["holm_p"])
    assert (out / "words.csv").is_file()
    page = (out / "report.html").read_text()
    assert page.count('<img src="data:image/svg+xml;base64,') == 2
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["length_and_accuracy.svg", "strength.svg"]
    assert len(list(out.glob("questions_*.html"))) == 6

    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    summarize.main(arguments)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "nowhere", "--output_dir", "out"], "no folder of results at nowhere"),
        (["--results", "empty", "--output_dir", "out"], "no results_.*json below empty"),
        (["--results", "runs", "--output_dir", "."], "holds the results runs, and is replaced as a whole"),
    ],
)
def test_mistakes_leave_everything_as_it_was(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs"), PLAIN)
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=message):
        summarize.main(arguments)
    assert sorted(Path().rglob("*")) == before
