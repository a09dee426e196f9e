"""Grids on the tiny model: the same files as single runs, one start, one batch in vLLM, resumption."""

import csv
import importlib.util
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from engines import read_run, start_vllm
from lm_eval.models.huggingface import HFLM

from lm_eval_sae.cli import main as run_cli
from lm_eval_sae.engines import one_start
from lm_eval_sae.engines.hf_model import HFSAE
from lm_eval_sae.engines.kept_completions import Unfinished
from lm_eval_sae.errors import NotSteered, UserError

if importlib.util.find_spec("vllm"):
    from lm_eval_sae.engines.vllm_model import VLLMSAE

SAMPLED = "do_sample=True,temperature=0.8,max_gen_toks=6"
GREEDY = "do_sample=False,temperature=0.0,max_gen_toks=6"
TASK = "quickstart_problems"
POINTS = ["", "-sae-40-x1", "-sae-40-x2.5", "-sae-41-x1", "-sae-41-x2.5"]
# What differs from run to run by its nature.
PASSING = ("date", "start_time", "end_time", "total_evaluation_time_seconds", "task_hashes")


@pytest.fixture(scope="module")
def run_grid(evaluate: ModuleType, grid: Path, flags: list[str]) -> Callable[..., None]:
    """A grid of 2 × 2 and the baseline, sampled, into a folder."""

    def run(folder: Path, *options: str, flags: list[str] = flags) -> None:
        evaluate.main(["--grid", str(grid), "--output_dir", str(folder), *flags, "--gen_kwargs", SAMPLED, *options])

    return run


@pytest.fixture(scope="module")
def finished(run_grid: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    run_grid(folder)
    return folder


def texts(folder: Path) -> list[str]:
    return [row["resps"][0][0] for row in read_run(folder)[1]]


def assert_same_run(one: Path, other: Path) -> None:
    """Everything in the results and samples files is the same but what passes."""
    ours, our_samples = read_run(one)
    theirs, their_samples = read_run(other)
    assert our_samples == their_samples
    assert ours.keys() == theirs.keys() and ours["task_hashes"] == theirs["task_hashes"]
    for name in ours.keys() - set(PASSING):
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize(
    ("place", "arguments"),
    [("", ""), ("-sae-41-x1", ",sae_path={sae},sae_max_activation=6.5,sae_feature_idx=41,sae_strength=1")],
)
def test_a_point_is_what_the_command_line_writes(
    place: str, arguments: str, finished: Path, flags: list[str], sae: Path, tmp_path: Path
) -> None:
    alone = [flag + arguments.format(sae=sae) if flag.startswith("pretrained") else flag for flag in flags]
    run_cli([*alone, "--gen_kwargs", SAMPLED, "--log_samples", "--output_path", str(tmp_path)])
    assert_same_run(finished / f"tiny-llama-{TASK}{place}", tmp_path)
    record = json.loads((finished / f"tiny-llama-{TASK}{place}" / "run.json").read_text())
    assert (record["steered_positions"] or 0) > 0 if place else record["steered_positions"] is None


def test_the_grid_has_one_folder_per_point_and_texts_of_its_own(finished: Path) -> None:
    names = sorted(path.name for path in finished.iterdir() if path.is_dir())
    assert names == sorted(["report", *(f"tiny-llama-{TASK}{place}" for place in POINTS)])
    answers = [texts(finished / f"tiny-llama-{TASK}{place}") for place in POINTS]
    assert all(a != b for i, a in enumerate(answers) for b in answers[:i])


def test_the_report_compares_all_points_and_marks_none(evaluate: ModuleType, finished: Path) -> None:
    plain, *steered = evaluate.summarize.summarize(evaluate.summarize.read_runs([finished]), n_resamples=100)
    assert len(steered) == 4 and not plain.run.steered
    for row in steered:
        assert row.pair.baseline is plain.run and row.compared == 6
        assert row.pair.refused == () and row.pair.marked == ()  # nothing that is recorded differs but the steering
    with (finished / "report" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    answers = [texts(finished / f"tiny-llama-{TASK}{place}") for place in POINTS]
    lengths = [
        sum(sample["completion_tokens"] for sample in read_run(finished / f"tiny-llama-{TASK}{place}")[1])
        for place in POINTS
    ]
    assert rows[0]["intervention"] == "none" and len(rows) == 5
    for row, changed, length in zip(rows[1:], answers[1:], lengths[1:], strict=True):
        assert int(row["answers_changed"]) == sum(a != b for a, b in zip(answers[0], changed, strict=True)) > 0
        assert float(row["completion_tokens_change"]) == pytest.approx(length / lengths[0] - 1)


def test_one_start_and_a_killed_evaluation_continues_to_the_same_result(
    run_grid: Callable[..., None], finished: Path, tmp_path: Path, starts: list[HFSAE],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = sys.modules["grid.runs"]
    execute, calls = runs.execute, []

    def killed_in_the_third(args: Namespace) -> None:
        calls.append(args.output_path)
        execute(args)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "execute", killed_in_the_third)
        run_grid(out := tmp_path / "out")
    assert len(starts) == 1
    names = [f"tiny-llama-{TASK}{place}" for place in POINTS]
    assert {path.name for path in out.iterdir()} == {*names[:2], f"{names[2]}.partial", "evaluate.log"}
    before = {path: path.stat().st_mtime_ns for name in names[:2] for path in (out / name).rglob("*")}

    capsys.readouterr()
    run_grid(out)
    assert "2 finished before" in capsys.readouterr().out and len(starts) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [texts(out / name) for name in names] == [texts(finished / name) for name in names]
    assert not list(out.glob("*.partial")) and not list(out.glob(".*.lock"))

    run_grid(out)  # nothing left to do
    assert len(starts) == 2


def test_a_run_whose_judge_stopped_is_done_again_and_nothing_is_generated_anew(
    run_grid: Callable[..., None], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs, out = sys.modules["grid.runs"], tmp_path / "out"
    stopped = {"-sae-40-x1": "402"}
    execute, kept = runs.execute, []

    def judged(args: Namespace) -> str | None:
        with monkeypatch.context() as patch:
            reason = next((reason for name, reason in stopped.items() if name in args.output_path), None)
            judge = SimpleNamespace(end_run=lambda: reason, report=lambda: None)
            patch.setattr("lm_eval_sae.cli.get_judge", lambda: judge)
            return execute(args)

    generate = HFLM._model_generate
    monkeypatch.setattr(HFLM, "_model_generate", lambda *a, **k: (kept.append(1), generate(*a, **k))[1])
    monkeypatch.setattr(runs, "execute", judged)
    with pytest.raises(SystemExit) as ended:
        run_grid(out)
    said = capsys.readouterr()
    assert ended.value.code == 3 and "tiny-llama-quickstart_problems-sae-40-x1; the same command asks" in said.err
    assert len(kept) == 10 and (out / "report" / "report.html").is_file()

    def interrupted(args: Namespace) -> None:
        raise KeyboardInterrupt

    folder = out / f"tiny-llama-{TASK}-sae-40-x1"
    there = sorted(folder.rglob("*"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "execute", interrupted)
        run_grid(out)
    assert sorted(folder.rglob("*")) == there, "its results stay until there are better ones"

    stopped.clear()
    run_grid(out)
    assert "4 finished before" in capsys.readouterr().out
    assert len(kept) == 10
    names = [f"tiny-llama-{TASK}{place}" for place in POINTS]
    assert [texts(out / name) for name in names] == [texts(finished / name) for name in names]
    assert not list(out.rglob(".unfinished"))


def test_other_settings_are_refused(
    run_grid: Callable[..., None], finished: Path, sae: Path, starts: list[HFSAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished / f"tiny-llama-{TASK}"
    with pytest.raises(UserError, match="limit is null there, 2.0 now") as refused:
        run_grid(finished, "--limit", "2")
    assert str(refused.value).startswith(f"{folder} holds a run with other settings")
    weights = sae / "sae_weights.safetensors"
    time = weights.stat()
    os.utime(weights, (1, 1))  # as if trained again into the same folder
    try:
        with pytest.raises(UserError, match="-sae-40-x1 holds a run with other settings .SAE is"):
            run_grid(finished)
    finally:
        os.utime(weights, ns=(time.st_atime_ns, time.st_mtime_ns))
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"weights is \[\[\"model.safetensors\", "):
        patch.setattr(sys.modules["grid.runs"], "model_files", lambda _: [["model.safetensors", 1, 1]])
        run_grid(finished)  # as if another model lay there
    judge = SimpleNamespace(
        check=lambda: None, report=lambda: {"model": "m", "host": "h", "mode": "all", "prompt_sha": "0", "questions": 3}
    )
    for module in ("lm_eval_sae.cli", "grid.runs"):
        monkeypatch.setattr(f"{module}.get_judge", lambda: judge)
    with pytest.raises(UserError, match=r"judge is null there, .*\"model\": \"m\""):
        run_grid(finished)
    assert starts == []


@pytest.fixture(scope="module")
def vllm_flags(flags: list[str]) -> list[str]:
    engine = ",enforce_eager=True,max_model_len=1024,kv_cache_memory_bytes=134217728,max_num_seqs=8"
    own = [flag + engine if flag.startswith("pretrained") else flag for flag in flags]
    own[own.index("hf")] = "vllm"
    return [*own[: own.index("--device")], *own[own.index("--device") + 2 :]]


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator["VLLMSAE"]:
    model = start_vllm(tiny_llama, layers={1: 1})
    yield model
    VLLMSAE.close(model)


@pytest.fixture
def asked(engine: "VLLMSAE", monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Evaluations take the running engine; the list has the number of prompts of each batch that it generates."""
    generate, batches = engine.engine.generate, []

    def count(prompts: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        batches.append(len(prompts))
        return generate(prompts, *args, **kwargs)

    monkeypatch.setattr(engine.engine, "generate", count)
    monkeypatch.setattr(engine, "close", lambda: None)
    start = one_start.start_model
    monkeypatch.setattr(
        one_start, "start_model", lambda args, **of: engine if args.model == "vllm-sae" else start(args, **of)
    )
    return batches


@pytest.mark.needs_vllm
def test_in_vllm_all_points_and_tasks_are_one_batch_with_the_texts_of_transformers(
    run_grid: Callable[..., None], vllm_flags: list[str], asked: list[int], tmp_path: Path
) -> None:
    run_grid(tmp_path / "hf", "--gen_kwargs", GREEDY)
    run_grid(tmp_path / "vllm", "--gen_kwargs", GREEDY, flags=vllm_flags)
    assert asked == [5 * 6]
    of_vllm, of_hf = (
        [texts(tmp_path / name / f"tiny-llama-{TASK}{place}") for place in POINTS] for name in ("vllm", "hf")
    )
    # vLLM leaves out a character whose bytes are not complete.
    assert [[text.rstrip("\ufffd") for text in run] for run in of_hf] == of_vllm
    assert all(a != b for i, a in enumerate(of_vllm) for b in of_vllm[:i])


@pytest.mark.needs_vllm
def test_in_vllm_a_point_is_what_the_command_line_writes(
    run_grid: Callable[..., None], vllm_flags: list[str], sae: Path, asked: list[int], tmp_path: Path
) -> None:
    """The command line starts an engine of its own, which steers nothing but this feature."""
    run_grid(tmp_path / "grid", flags=vllm_flags)
    of_point = f",sae_path={sae},sae_max_activation=6.5,sae_feature_idx=41,sae_strength=2.5"
    alone = [flag + of_point if flag.startswith("pretrained") else flag for flag in vllm_flags]
    run_cli([*alone, "--gen_kwargs", SAMPLED, "--log_samples", "--output_path", str(tmp_path / "alone")])
    assert_same_run(tmp_path / "grid" / f"tiny-llama-{TASK}-sae-41-x2.5", tmp_path / "alone")


@pytest.mark.needs_vllm
def test_in_vllm_a_killed_evaluation_generates_only_what_it_lacks_and_points_can_be_added(
    run_grid: Callable[..., None], evaluate: ModuleType, vllm_flags: list[str], grid: Path, asked: list[int],
    engine: "VLLMSAE", tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run_grid(tmp_path / "whole", flags=vllm_flags)
    written, add = [], Unfinished.add

    def cut(self: Unfinished, entries: list[Any]) -> None:
        add(self, entries)
        written.extend(entries)
        if len(written) >= 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lm_eval_sae.engines.vllm_engine.KEEP_EVERY_SECONDS", 0.0)
        patch.setattr(Unfinished, "add", cut)
        run_grid(out := tmp_path / "out", flags=vllm_flags)
    while engine.model.llm_engine.has_unfinished_requests():  # its process lives on, unlike a killed one
        engine.model.llm_engine.step()
    asked.clear()
    run_grid(out, flags=vllm_flags)
    assert asked == [5 * 6 - len(written)] and 9 <= len(written) < 30
    names = [f"tiny-llama-{TASK}{place}" for place in POINTS]
    for name in names:
        assert_same_run(out / name, tmp_path / "whole" / name)
    assert not list(out.rglob("*.partial")) and not list(out.rglob(".unfinished"))

    asked.clear()
    content = yaml.safe_load(grid.read_text())
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({**content, "features": [40, 41, 42]}))
    flags = [*vllm_flags, "--gen_kwargs", SAMPLED]
    evaluate.main(["--grid", str(tmp_path / "more.yaml"), "--output_dir", str(out), *flags])
    assert asked == [2 * 6]


@pytest.mark.needs_vllm
def test_in_vllm_a_point_that_was_not_steered_fails_and_no_other(
    run_grid: Callable[..., None], evaluate: ModuleType, vllm_flags: list[str], finished: Path, asked: list[int],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: "VLLMSAE",
) -> None:  # fmt: skip
    count = engine.engine.steered_positions

    def forgets(keys: list[str]) -> dict[str, int]:
        lost = '"sae_feature_idx": 41, "sae_max_activation": 6.5, "sae_mode": "set", "sae_path"', '"sae_strength": 2.5'
        return {key: 0 if all(part in key for part in lost) else n for key, n in count(keys).items()}

    monkeypatch.setattr(engine.engine, "steered_positions", forgets)
    with pytest.raises(NotSteered, match="only 0 of [1-9][0-9]* token positions .*41"):
        run_grid(tmp_path, flags=vllm_flags)
    done = sorted(path.parent.name for path in tmp_path.glob("*/run.json"))
    assert done == sorted(f"tiny-llama-{TASK}{place}" for place in POINTS[:-1])
