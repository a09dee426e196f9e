"""What summarize.py makes of runs whose answers are known: pairs, refusals, marks, numbers, files."""

import csv
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import scipy.stats

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted_runs import PLAIN, STEERED, TASK, feature, rows_of, setting, write_run  # noqa: E402

ENVIRONMENT = "PyTorch version: 2.13.0+cpu"


def test_steered_and_plain_are_compared_question_by_question(summarize: ModuleType, tmp_path: Path) -> None:
    lengths = [[100 + i] for i in range(40)]
    write_run(tmp_path / "a", PLAIN, tokens=lengths)
    write_run(tmp_path / "b", STEERED[::-1][:30][::-1], tokens=[[2 * n] for [n] in lengths[:30]], features=[feature()])
    plain, steered = rows_of(summarize, tmp_path)
    assert (plain.intervention, steered.intervention) == ("none", "set 7 to 2 × 5.84 (blocks.19.hook_resid_post)")
    assert plain.accuracy == 0.5 and plain.accuracy_stderr == pytest.approx(scipy.stats.sem([i % 2 for i in range(40)]))
    assert steered.compared == 30
    right = [(p, s) for [p], [s] in zip(PLAIN[:30], STEERED[10:], strict=True)]
    assert steered.accuracy_difference.value == pytest.approx(sum(s - p for p, s in right) / 30)
    assert (steered.discordance.right_to_wrong, steered.discordance.wrong_to_right) == (
        sum(p > s for p, s in right), sum(s > p for p, s in right),
    )  # fmt: skip
    assert steered.length_changes["completion_tokens"].value == pytest.approx(1.0)
    assert steered.texts_changed == sum(p != s for p, s in right)
    assert "compared over the 30 questions that both runs answered" in steered.warnings


def test_runs_that_agree_in_their_settings_have_no_warning(summarize: ModuleType, tmp_path: Path) -> None:
    down = [[1 - r] if i < 8 else [r] for i, [r] in enumerate(PLAIN)]
    write_run(tmp_path / "a", PLAIN)
    write_run(tmp_path / "b", down, features=[feature()])
    assert [row.warnings for row in rows_of(summarize, tmp_path)] == [(), ()]
    assert "warning" not in summarize.main_table(rows_of(summarize, tmp_path))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (setting("versions", TASK, value=2.0), r"task version: 1.0 \(plain\), 2.0 \(steered\)"),
        (setting("chat_template_sha", value="x"), r"chat template: none \(plain\), x"),
        (setting("system_instruction_sha", value="x"), "system instruction"),
        (setting("n-shot", TASK, value=3), r"few-shot examples: 0 \(plain\), 3"),
        (setting("config", "model_num_parameters", value=7), r"parameters of the model: 2529024 \(plain\), 7"),
        (
            setting("model_name", value="/elsewhere/tiny"),
            r"no plain run of elsewhere/tiny on planted, only of models/tiny$",
        ),
        (setting("config", "model_revision", value="v2"), r"no plain run of tiny@v2 on planted, only of tiny$"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    edit: Callable[[dict[str, Any]], None], reason: str, summarize: ModuleType, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", PLAIN)
    write_run(tmp_path / "b", STEERED, features=[feature()], edit=edit)
    (steered,) = (row for row in rows_of(summarize, tmp_path) if row.run.steered)
    assert re.search(f"not compared: {reason}", "; ".join(steered.warnings))
    assert steered.accuracy == pytest.approx(25 / 40)
    assert steered.accuracy_difference is steered.discordance is steered.texts_changed is None
    assert not steered.length_changes and steered.compared == 0


def test_models_of_one_name_in_two_places_are_told_apart(summarize: ModuleType, tmp_path: Path) -> None:
    for place in ("here", "there"):
        edit = setting("model_name", value=f"/{place}/model")
        write_run(tmp_path / f"{place}-plain", PLAIN, edit=edit)
        write_run(tmp_path / place, PLAIN, features=[feature()], edit=edit, tokens=[[50 + len(place)]] * 40)
    rows = rows_of(summarize, tmp_path)
    assert [row.model for row in rows] == ["here/model"] * 2 + ["there/model"] * 2
    assert [row.pair.plain.model for row in rows if row.pair] == ["/here/model", "/there/model"]


def test_other_commits_are_refused_and_unknown_ones_are_not(summarize: ModuleType, tmp_path: Path) -> None:
    for name, sha in (("plain", "aaa"), ("same", ""), ("other", "bbb")):
        steering = None if name == "plain" else [feature(len(name))]
        write_run(tmp_path / name, PLAIN, features=steering, edit=setting("config", "model_sha", value=sha))
    _, same, other = rows_of(summarize, tmp_path)
    assert same.compared == 40 and other.compared == 0
    assert "not compared: model commit: aaa (plain), bbb (steered)" in other.warnings


@pytest.mark.parametrize(
    ("edit", "mark"),
    [
        (setting("config", "limit", value=40.0), r"limit: none \(plain\), 40.0 \(steered\)"),
        (setting("config", "model_dtype", value="torch.bfloat16"), "model dtype: float32 .*, bfloat16"),
        (setting("config", "model", value="vllm-sae"), "back end: hf .*, vllm"),
        (setting("lm_eval_version", value="0.5"), "lm-eval version: 0.4.13 .*, 0.5"),
        (setting("transformers_version", value="6"), "transformers version: 5.19.0 .*, 6"),
        (setting("config", "vllm_version", value="0.32.0"), "vLLM version: none .*, 0.32.0"),
        (setting("pretty_env_info", value="PyTorch version: 3.0\n"), r"torch version: 2.13.0\+cpu .*, 3.0"),
        (setting("config", "judge", value={"model": "m", "mode": "all"}), "judge: none .*, model m"),
        (setting("configs", TASK, "process_results", value="def other(): …"), "answers are scored by other code"),
        (setting("configs", TASK, "generation_kwargs", "temperature", value=0.7), "argument temperature: 0.6 .*, 0.7"),
        (setting("config", "model_args", "max_length", value=99), "model argument max_length: none .*, 99"),
        (setting("config", "batch_size", value="auto"), "batch size: 8 .*, auto"),
        (setting("config", "torch_seed", value=7), "seed: 1234 .*, 7"),
        (setting("configs", TASK, "repeats", value=4), "repeats: 1 .*, 4"),
        (setting("config", "device", value="cpu"), "device: none .*, cpu"),
        (
            setting("pretty_env_info", value=f"{ENVIRONMENT}\nGPU models and configuration: GPU 0: NVIDIA H100"),
            r"GPU: none .*, NVIDIA H100 \(steered\)$",
        ),
        (setting("config", "model_args", "tokenizer", value="/me/words"), r"tokenizer: none .*, words \(steered\)$"),
    ],
)
def test_runs_with_other_settings_are_marked(
    edit: Callable[[dict[str, Any]], None], mark: str, summarize: ModuleType, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", PLAIN)
    write_run(tmp_path / "b", [[1 - r] for [r] in PLAIN], features=[feature()], edit=edit)
    _, steered = rows_of(summarize, tmp_path)
    assert len(steered.warnings) == 1 and re.search(mark, steered.warnings[0])
    assert steered.accuracy_difference is not None
    assert f"1. {steered.warnings[0]}" in summarize.main_table(rows_of(summarize, tmp_path))


def test_judges_differ_in_their_settings_not_in_their_costs(summarize: ModuleType, tmp_path: Path) -> None:
    judge = {"model": "m", "host": "h", "mode": "all", "prompt_sha": "s", "questions": 3}
    for name, changes in (("plain", {}), ("same", {"questions": 9}), ("other", {"mode": "undecided"})):
        steering = None if name == "plain" else [feature(len(name))]
        edit = setting("config", "judge", value=judge | changes)
        write_run(tmp_path / name, [[1 - r] for [r] in PLAIN] if steering else PLAIN, features=steering, edit=edit)
    _, same, other = rows_of(summarize, tmp_path)
    assert same.warnings == () and other.warnings == ("judge: mode all (plain), mode undecided (steered)",)


def test_the_nearest_plain_run_is_the_partner(summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "trial", PLAIN[:4], edit=setting("config", "limit", value=4.0), date="2026-03-01T00-00-00.0")
    write_run(tmp_path / "early", [[0.0]] * 40, date="2026-01-01T00-00-00.0")
    write_run(tmp_path / "late", PLAIN, date="2026-02-01T00-00-00.0")
    write_run(tmp_path / "steered", STEERED, features=[feature()])
    rows = rows_of(summarize, tmp_path)
    assert len(rows) == 3  # of the two plain runs that differ in nothing but their date, the later
    (steered,) = (row for row in rows if row.run.steered)
    assert steered.pair.plain.file.parent.name == "late" and steered.compared == 40


def test_rows_that_cannot_support_a_claim_say_so(summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "a", PLAIN[:20])
    write_run(
        tmp_path / "b", STEERED[:20], features=[feature()], edit=setting("results", TASK, "truncated,none", value=0.5)
    )
    plain, steered = rows_of(summarize, tmp_path)
    assert plain.warnings == ("20 questions, fewer than the 30 that an interval needs",)
    assert steered.warnings == (
        plain.warnings[0],
        "the token limit cut off 50 % of the answers: their length is a lower bound",
        "3 questions changed between right and wrong; the exact test cannot reach 5 % with fewer than 6",
    )


def test_a_steered_run_without_proof_of_steering_is_marked(summarize: ModuleType, tmp_path: Path) -> None:
    edit = setting("config", "sae", "steered_positions", value=0)
    write_run(tmp_path / "b", PLAIN, features=[feature()], edit=edit)
    (row,) = rows_of(summarize, tmp_path)
    assert "nothing in its results file says that any position was steered" in row.warnings
    assert any("no plain run" in warning for warning in row.warnings)


def test_runs_without_samples_or_common_questions_are_refused(summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "a", PLAIN)
    write_run(tmp_path / "b", PLAIN, features=[feature(1)], problems=[f"Another {i}?" for i in range(40)])
    folder = write_run(tmp_path / "c", PLAIN, features=[feature(2)])
    next(folder.glob("samples_*")).unlink()
    folder = write_run(tmp_path / "d", PLAIN, features=[feature(3)])
    samples = next(folder.glob("samples_*"))
    samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:31]))
    _, other, silent, cut = rows_of(summarize, tmp_path)
    assert "not compared: no question in common with the plain run: other data or other prompts" in other.warnings
    assert "not compared: the steered run logged no samples (--log_samples)" in silent.warnings
    assert silent.accuracy == 0.5
    assert "its samples file holds 31 of 40 questions" in cut.warnings and cut.compared == 31


def test_repeats_are_resampled_by_question(summarize: ModuleType, tmp_path: Path) -> None:
    generator = random.Random(0)
    # All answers of a question are alike: 50 questions say no more than 50 answers would.
    right = [[float(generator.random() < 0.5)] for _ in range(50)]
    steered = [[float(generator.random() < 0.7)] for _ in range(50)]
    for repeats in (1, 16):
        write_run(tmp_path / f"{repeats}/a", [r * repeats for r in right])
        write_run(tmp_path / f"{repeats}/b", [r * repeats for r in steered], features=[feature()])
    (_, single), (_, several) = (rows_of(summarize, tmp_path / str(repeats)) for repeats in (1, 16))
    assert several.accuracy_difference == pytest.approx(single.accuracy_difference)
    assert several.accuracy_stderr == pytest.approx(single.accuracy_stderr)
    assert single.discordance is not None and several.discordance is None and several.run.n_answers == 16
    assert several.by_k == pytest.approx({"cov@16": several.accuracy, "maj@16": several.accuracy})
    assert several.by_k_differences["maj@16"] == pytest.approx(single.accuracy_difference)


def test_holm_corrects_over_the_runs_of_one_task_and_model(summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", [[0.0]] * 40)
    for wins in (7, 12):
        write_run(tmp_path / str(wins), [[1.0]] * wins + [[0.0]] * (40 - wins), features=[feature(wins)])
    _, seven, twelve = rows_of(summarize, tmp_path)
    assert seven.p_holm == seven.discordance.p_value == pytest.approx(2 * 0.5**7)
    assert twelve.p_holm == pytest.approx(2 * twelve.discordance.p_value) and twelve.p_holm == pytest.approx(
        4 * 0.5**12
    )


def test_reasoning_words_are_counted_as_whole_words(load_script: Callable[[str], ModuleType]) -> None:
    words = load_script("evaluation/reasoning_words.py")
    vocabulary = ["wait", " wait", "Wait", " Wait", "let me", " Let me", "But", "let me see"]
    counter = words.WordCounter(vocabulary)
    assert counter.words == ("wait", "let me", "but", "let me see")
    text = "Wait, wait. WAIT! Waiting awaits; but wait\nBut let\nme go. Let me see, let me see. (But)"
    assert dict(zip(counter.words, counter.count(text), strict=True)) == {
        "wait": 3, "let me": 2, "but": 2, "let me see": 1,
    }  # fmt: skip


def test_word_rates_are_per_thousand_tokens(
    summarize: ModuleType, load_script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    words = load_script("evaluation/reasoning_words.py").WordCounter(["wait", "hmm"])
    n = [[100 + i] for i in range(40)]
    write_run(tmp_path / "a", PLAIN, texts=[["wait hmm"]] * 40, tokens=n)
    write_run(tmp_path / "b", PLAIN, texts=[["wait " * (1 + i % 3)] for i in range(40)], tokens=n, features=[feature()])
    runs = summarize.read_runs([tmp_path], words=words)
    plain, steered = summarize.summarize(runs, words=words.words, n_resamples=200)
    tokens = sum(t for [t] in n)
    assert plain.word_rate == pytest.approx(1000 * 80 / tokens)
    total, wait, hmm = steered.word_rates
    assert (total.word, wait.word, hmm.word) == ("all words", "wait", "hmm")
    waits = sum(1 + i % 3 for i in range(40))
    assert (wait.plain, wait.steered) == pytest.approx((1000 * 40 / tokens, 1000 * waits / tokens))
    assert wait.change.value == pytest.approx(waits / 40 - 1) and wait.change.low < wait.change.value < wait.change.high
    assert (hmm.plain, hmm.steered, hmm.change.value) == pytest.approx((1000 * 40 / tokens, 0, -1))


@pytest.mark.parametrize(
    ("text", "head", "note"),
    [
        ("wait", "| all words | wait |", "In no answer: hmm."),
        ("so", None, "No answer holds any of them: wait, hmm."),
        ("wait hmm", "| all words | wait | hmm |", None),
    ],
)
def test_words_that_no_answer_has_take_no_column(
    text: str, head: str | None, note: str | None, summarize: ModuleType, tmp_path: Path
) -> None:
    write_run(tmp_path / "runs/a", PLAIN, texts=[["so"]] * 40)
    write_run(tmp_path / "runs/b", PLAIN, texts=[[text]] * 40, features=[feature()])
    (tmp_path / "words.json").write_text('["wait", "hmm"]')
    out = tmp_path / "report"
    arguments = ["--results", str(tmp_path / "runs"), "--output_dir", str(out), "--n_resamples", "1000"]
    summarize.main([*arguments, "--tokens_str_path", str(tmp_path / "words.json")])
    written, page = (out / "summary.md").read_text(), (out / "report.html").read_text()
    assert ("| all words |" in written) == (head is not None) and (head or "") in written
    for said in ("In no answer", "No answer holds"):
        assert (said in written) == (said in page) == (note is not None and note.startswith(said))
    assert note is None or (note in written and note in page)


def test_the_files_of_the_report(summarize: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs/plain", PLAIN, tokens=[[100 + i] for i in range(40)])
    for index in (7, 9):
        for strength in (1, 2, 4):
            tokens = [[100 + i + 10 * strength + i % 5 * index] for i in range(40)]
            right = [[r if i % 10 > strength else 1 - r] for i, [r] in enumerate(PLAIN)]
            steering = [feature(index, strength=strength)]
            write_run(tmp_path / f"runs/{index}-{strength}", right, tokens=tokens, features=steering)
    out = tmp_path / "report"
    arguments = ["--results", str(tmp_path / "runs"), "--output_dir", str(out), "--n_resamples", "1000"]
    summarize.main(arguments)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] in (out / "summary.md").read_text()
    with (out / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["feature_idx"], row["strength"]) for row in table] == [
        ("", ""), *((f, s) for f in ("7", "9") for s in ("1.0", "2.0", "4.0")),
    ]  # fmt: skip
    for row in table[1:]:
        low, value, high = (float(row[f"accuracy_difference{end}"]) for end in ("_low", "", "_high"))
        assert low <= value <= high and float(row["mcnemar_p"]) <= float(row["holm_p"])
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
        (["--results", "runs", "--output_dir", "runs"], "holds the results runs, and is replaced as a whole"),
        (["--results", "runs", "--output_dir", "."], "holds the results runs"),
        (["--results", "runs", "--output_dir", "other"], "other holds other files"),
        (["--results", "runs", "--output_dir", "out", "--tokens_str_path", "x"], "cannot read the vocabulary"),
        (["--results", "broken", "--output_dir", "out"], "is not a results file of lm-eval"),
    ],
)
def test_mistakes_leave_everything_as_it_was(
    arguments: list[str], message: str, summarize: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs"), PLAIN)
    for folder in ("empty", "other", "broken"):
        Path(folder).mkdir()
    Path("other/mine.txt").write_text("mine")
    Path("broken/results_x.json").write_text(json.dumps({"results": {"a": {}}, "n-samples": {"a": {}}}))
    before = sorted(Path().rglob("*"))
    with pytest.raises(summarize.UserError, match=message):
        summarize.main(arguments)
    assert sorted(Path().rglob("*")) == before
