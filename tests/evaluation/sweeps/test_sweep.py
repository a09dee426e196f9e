"""Sweeps on the tiny model: the same files as single runs, one start, proof of every change, resumption."""

import csv
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from engines import count_starts, read_run
from lm_eval.models.huggingface import HFLM

from lm_eval_sae.cli import main as run_cli
from lm_eval_sae.engines.hf_model import HFSAE
from lm_eval_sae.errors import UserError

SAMPLED = "do_sample=True,temperature=0.8,max_gen_toks=6"
GREEDY = "max_gen_toks=6"
TASK = "quickstart_problems"
POINTS = ["", "-sae-40-x1", "-sae-40-x2.5", "-sae-41-x1", "-sae-41-x2.5"]
# What differs from run to run by its nature.
PASSING = ("date", "start_time", "end_time", "total_evaluation_time_seconds", "task_hashes")


@pytest.fixture(scope="module")
def run_sweep(sweep: ModuleType, grid: Path, flags: list[str]) -> Callable[..., None]:
    """A sweep of 2 × 2, sampled, into a folder."""

    def run(folder: Path, *options: str) -> None:
        sweep.main(["--grid", str(grid), "--output_dir", str(folder), *flags, "--gen_kwargs", SAMPLED, *options])

    return run


@pytest.fixture(scope="module")
def finished(run_sweep: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(folder)
    return folder


def texts(folder: Path) -> list[str]:
    return [row["resps"][0][0] for row in read_run(folder)[1]]


@pytest.mark.parametrize(
    ("place", "arguments"),
    [("", ""), ("-sae-41-x1", ",sae_path={sae},sae_max_activation=6.5,sae_feature_idx=41,sae_strength=1")],
)
def test_a_point_is_what_the_command_line_writes(
    place: str, arguments: str, finished: Path, flags: list[str], sae: Path, tmp_path: Path
) -> None:
    alone = [flag + arguments.format(sae=sae) if flag.startswith("pretrained") else flag for flag in flags]
    run_cli([*alone, "--gen_kwargs", SAMPLED, "--log_samples", "--output_path", str(tmp_path)])
    ours, our_samples = read_run(finished / f"tiny-llama-{TASK}{place}")
    theirs, their_samples = read_run(tmp_path)
    assert our_samples == their_samples
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - set(PASSING):
        assert json.loads(json.dumps(ours[name])) == theirs[name], name
    assert ours["task_hashes"] == theirs["task_hashes"]


def test_the_grid_has_one_folder_per_point_and_texts_of_its_own(finished: Path) -> None:
    names = sorted(path.name for path in finished.iterdir() if path.is_dir())
    assert names == sorted(["report", *(f"tiny-llama-{TASK}{place}" for place in POINTS)])
    answers = [texts(finished / f"tiny-llama-{TASK}{place}") for place in POINTS]
    assert all(a != b for i, a in enumerate(answers) for b in answers[:i])


def test_the_overview_proves_every_change(finished: Path) -> None:
    overview = json.loads((finished / "sweep.json").read_text())
    plain, *steered = overview["runs"]
    assert plain["features"] == [] and plain["steered_positions"] is None and plain["probe"]["change_from_plain"] == 0
    assert [(run["features"][0]["feature_idx"], run["features"][0]["strength"]) for run in steered] == [
        (40, 1.0), (40, 2.5), (41, 1.0), (41, 2.5),
    ]  # fmt: skip
    for run in steered:
        recorded = read_run(finished / run["folder"])[0]["config"]["sae"]
        assert run["steered_positions"] == recorded["steered_positions"] > 6 * 6
        assert run["probe"]["change_from_plain"] > 0.01 > run["probe"]["noise"] == 0
    assert len({tuple(run["probe"]["log_likelihoods"]) for run in overview["runs"]}) == 5
    assert len({run["model_started"] for run in overview["runs"]}) == 1


def test_the_report_compares_all_points_and_marks_none(sweep: ModuleType, finished: Path) -> None:
    plain, *steered = sweep.summarize.summarize(sweep.summarize.read_runs([finished]), n_resamples=100)
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


def test_one_start_and_a_killed_sweep_continues_to_the_same_result(
    run_sweep: Callable[..., None], finished: Path, tmp_path: Path, starts: list[HFSAE],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = sys.modules["sweep_runs"]
    execute, calls = runs.execute, []

    def killed_in_the_third(args: Namespace) -> None:
        calls.append(args.output_path)
        execute(args)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "execute", killed_in_the_third)
        run_sweep(out := tmp_path / "out")
    assert len(starts) == 1
    names = [f"tiny-llama-{TASK}{place}" for place in POINTS]
    left = {*names[:2], f"{names[2]}.partial", "sweep.json", "sweep.log"}
    assert {path.name for path in out.iterdir()} == left
    before = {path: path.stat().st_mtime_ns for name in names[:2] for path in (out / name).rglob("*")}

    capsys.readouterr()
    run_sweep(out, "--max_runs", "2")
    assert "2 finished before" in (said := capsys.readouterr().out)
    assert "1 runs are left (--max_runs)" in said
    run_sweep(out)
    assert len(starts) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [texts(out / name) for name in names] == [texts(finished / name) for name in names]
    assert not list(out.glob("*.partial"))

    run_sweep(out)  # nothing left to do
    assert len(starts) == 3


def test_a_run_whose_judge_stopped_is_done_again_and_nothing_is_generated_anew(
    run_sweep: Callable[..., None], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs, out = sys.modules["sweep_runs"], tmp_path / "out"
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
        run_sweep(out)
    said = capsys.readouterr()
    assert ended.value.code == 3 and "tiny-llama-quickstart_problems-sae-40-x1; the same command asks" in said.err
    assert len(kept) == 10 and (out / "report" / "report.html").is_file()

    def interrupted(args: Namespace) -> None:
        raise KeyboardInterrupt

    folder = out / f"tiny-llama-{TASK}-sae-40-x1"
    there = sorted(folder.rglob("*"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "execute", interrupted)
        run_sweep(out)
    assert sorted(folder.rglob("*")) == there, "its results stay until there are better ones"

    stopped.clear()
    run_sweep(out)
    assert "4 finished before" in capsys.readouterr().out
    assert len(kept) == 10
    names = [f"tiny-llama-{TASK}{place}" for place in POINTS]
    assert [texts(out / name) for name in names] == [texts(finished / name) for name in names]
    assert not list(out.rglob(".unfinished"))


def test_other_settings_are_refused(
    run_sweep: Callable[..., None], finished: Path, sae: Path, starts: list[HFSAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished / f"tiny-llama-{TASK}"
    with pytest.raises(UserError, match="limit is null there, 2.0 now") as refused:
        run_sweep(finished, "--limit", "2")
    assert str(refused.value).startswith(f"{folder} holds a run with other settings")
    weights = sae / "sae_weights.safetensors"
    time = weights.stat()
    os.utime(weights, (1, 1))  # as if trained again into the same folder
    try:
        with pytest.raises(UserError, match="-sae-40-x1 holds a run with other settings .SAE is"):
            run_sweep(finished)
    finally:
        os.utime(weights, ns=(time.st_atime_ns, time.st_mtime_ns))
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"weights is \[\[\"model.safetensors\", "):
        patch.setattr(sys.modules["sweep_runs"], "model_files", lambda _: [["model.safetensors", 1, 1]])
        run_sweep(finished)  # as if another model lay there
    judge = SimpleNamespace(
        check=lambda: None, report=lambda: {"model": "m", "host": "h", "mode": "all", "prompt_sha": "0", "questions": 3}
    )
    for module in ("lm_eval_sae.cli", "sweep_runs"):
        monkeypatch.setattr(f"{module}.get_judge", lambda: judge)
    with pytest.raises(UserError, match=r"judge is null there, .*\"model\": \"m\""):
        run_sweep(finished)
    assert starts == []


@pytest.mark.needs_vllm
def test_one_vllm_engine_gives_the_greedy_texts_of_transformers(
    sweep: ModuleType, sae: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval_sae.engines.vllm_model import VLLMSAE

    starts = count_starts(VLLMSAE, monkeypatch)
    content = {"sae_path": str(sae), "sae_max_activation": 6.5, "strengths": [2], "features": [40, 41]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    engine = ",enforce_eager=True,max_model_len=1024,kv_cache_memory_bytes=134217728,max_num_seqs=8"
    vllm_flags = [flag + engine if flag.startswith("pretrained") else flag for flag in flags]
    vllm_flags[vllm_flags.index("hf")] = "vllm"
    device = vllm_flags.index("--device")
    del vllm_flags[device : device + 2]
    for name, own in (("hf", flags), ("vllm", vllm_flags)):
        command = ["--grid", str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / name), *own]
        sweep.main([*command, "--gen_kwargs", GREEDY])
    assert len(starts) == 1
    places = ["", "-sae-40-x2", "-sae-41-x2"]
    folders = [f"tiny-llama-{TASK}{place}" for place in places]
    of_vllm, of_hf = ([texts(tmp_path / name / folder) for folder in folders] for name in ("vllm", "hf"))
    # vLLM leaves out a character whose bytes are not complete.
    assert [[t.rstrip("\ufffd") for t in run] for run in of_hf] == of_vllm
    assert all(a != b for i, a in enumerate(of_vllm) for b in of_vllm[:i])
