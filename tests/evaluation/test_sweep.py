"""Sweeps on the tiny model: the same files as single runs, one start, proof of every change, resumption, mistakes."""

import csv
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file

from lm_eval_sae.cli import main as run_cli
from lm_eval_sae.engines.hf_model import HFSAE
from lm_eval_sae.errors import UserError
from transformer_lens_r1.shared.files import hash_file

SAMPLED = "do_sample=True,temperature=0.8,max_gen_toks=6"
GREEDY = "max_gen_toks=6"
TASK = "quickstart_problems"
POINTS = ["", "-sae-40-x1", "-sae-40-x2.5", "-sae-41-x1", "-sae-41-x2.5"]
# What differs from run to run by its nature.
PASSING = ("date", "start_time", "end_time", "total_evaluation_time_seconds", "task_hashes")


@pytest.fixture(scope="module")
def sweep(load_script_for_module: Callable[[str], ModuleType]) -> ModuleType:
    return load_script_for_module("evaluation/sweep.py")


@pytest.fixture(scope="module")
def sae(make_sae: Callable[..., Path]) -> Path:
    return make_sae("standard")


@pytest.fixture(scope="module")
def grid(sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grid") / "grid.yaml"
    content = {"sae_path": str(sae), "sae_max_activation": 6.5, "strengths": [1, 2.5], "features": [40, 41]}
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def flags(tiny_llama: Path, problems: Path) -> list[str]:
    """Of lm_eval_sae, for the plain model."""
    return [
        "--model", "hf", "--model_args", f"pretrained={tiny_llama},dtype=float32", "--tasks", TASK, "--device", "cpu",
        "--batch_size", "4", "--metadata", f"problems={problems}",
    ]  # fmt: skip


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[HFSAE]:
    """Every model that is made from here on."""
    made: list[HFSAE] = []
    original = HFSAE.__init__

    def count(self: HFSAE, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(HFSAE, "__init__", count)
    return made


@pytest.fixture(scope="module")
def finished(sweep: ModuleType, grid: Path, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete sweep of 2 × 2, sampled."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep.main(["--grid", str(grid), "--output_dir", str(folder), *flags, "--gen_kwargs", SAMPLED])
    return folder


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (results,), (samples,) = folder.rglob("results_*.json"), folder.rglob("samples_*.jsonl")
    return json.loads(results.read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


def texts(folder: Path) -> list[str]:
    return [row["resps"][0][0] for row in read_run(folder)[1]]


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("", ""),
        ("-sae-40-x2.5", ",sae_path={sae},sae_max_activation=6.5,sae_feature_idx=40,sae_strength=2.5"),
        ("-sae-41-x1", ",sae_path={sae},sae_max_activation=6.5,sae_feature_idx=41,sae_strength=1"),
    ],
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
        assert row.pair.refused == () and row.pair.marked == ()
    with (finished / "report" / "summary.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5
    page = (finished / "report" / "report.html").read_text()
    assert "Accuracy and length against strength" in page and "Change in length against change in accuracy" in page


def test_one_start_and_a_killed_sweep_continues_to_the_same_result(
    sweep: ModuleType, grid: Path, flags: list[str], finished: Path, tmp_path: Path, starts: list[HFSAE],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["--grid", str(grid), "--output_dir", str(tmp_path / "out"), *flags, "--gen_kwargs", SAMPLED]
    runs = sys.modules["sweep_runs"]
    execute, calls = runs.execute, []

    def killed_in_the_third(args: Namespace) -> None:
        calls.append(args.output_path)
        execute(args)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "execute", killed_in_the_third)
        sweep.main(command)
    assert len(starts) == 1
    names = [f"tiny-llama-{TASK}{place}" for place in POINTS]
    out = tmp_path / "out"
    left = {*names[:2], f"{names[2]}.partial", "sweep.json", "sweep.log"}
    assert {path.name for path in out.iterdir()} == left
    before = {path: path.stat().st_mtime_ns for name in names[:2] for path in (out / name).rglob("*")}

    capsys.readouterr()
    sweep.main([*command, "--max_runs", "2"])
    assert "2 finished before" in (said := capsys.readouterr().out)
    assert "1 runs are left (--max_runs)" in said
    sweep.main(command)
    assert len(starts) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [texts(out / name) for name in names] == [texts(finished / name) for name in names]
    assert not list(out.glob("*.partial"))

    sweep.main(command)  # nothing left to do
    assert len(starts) == 3


def interrupted(args: Namespace) -> None:
    raise KeyboardInterrupt


def test_a_run_whose_judge_stopped_is_done_again_and_nothing_is_generated_anew(
    sweep: ModuleType, grid: Path, flags: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = sys.modules["sweep_runs"]
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
    command = ["--grid", str(grid), "--output_dir", str(tmp_path / "out"), *flags, "--gen_kwargs", SAMPLED]
    with pytest.raises(SystemExit) as ended:
        sweep.main(command)
    said = capsys.readouterr()
    assert ended.value.code == 3 and "tiny-llama-quickstart_problems-sae-40-x1; the same command asks" in said.err
    assert len(kept) == 10 and (tmp_path / "out" / "report" / "report.html").is_file()

    folder = tmp_path / "out" / f"tiny-llama-{TASK}-sae-40-x1"
    there = sorted(folder.rglob("*"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "execute", interrupted)
        sweep.main(command)
    assert sorted(folder.rglob("*")) == there, "its results stay until there are better ones"

    stopped.clear()
    sweep.main(command)
    assert "4 finished before" in capsys.readouterr().out
    assert len(kept) == 10
    names = [f"tiny-llama-{TASK}{place}" for place in POINTS]
    assert [texts(tmp_path / "out" / name) for name in names] == [texts(finished / name) for name in names]
    assert not list((tmp_path / "out").rglob(".unfinished"))


def test_other_settings_are_refused(
    sweep: ModuleType, grid: Path, flags: list[str], finished: Path, sae: Path, starts: list[HFSAE],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = ["--grid", str(grid), "--output_dir", str(finished), *flags, "--gen_kwargs"]
    folder = finished / f"tiny-llama-{TASK}"
    with pytest.raises(UserError, match="limit is null there, 2.0 now") as refused:
        sweep.main([*command, SAMPLED, "--limit", "2"])
    assert str(refused.value).startswith(f"{folder} holds a run with other settings")
    with pytest.raises(UserError, match="gen_kwargs is .* there"):
        sweep.main([*command, GREEDY])
    weights = sae / "sae_weights.safetensors"
    time = weights.stat()
    os.utime(weights, (1, 1))  # as if trained again into the same folder
    try:
        with pytest.raises(UserError, match="-sae-40-x1 holds a run with other settings .SAE is"):
            sweep.main([*command, SAMPLED])
    finally:
        os.utime(weights, ns=(time.st_atime_ns, time.st_mtime_ns))
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"weights is \[\[\"model.safetensors\", "):
        patch.setattr(sys.modules["sweep_runs"], "model_files", lambda _: [["model.safetensors", 1, 1]])
        sweep.main([*command, SAMPLED])  # as if another model lay there
    judge = SimpleNamespace(
        check=lambda: None, report=lambda: {"model": "m", "host": "h", "mode": "all", "prompt_sha": "0", "questions": 3}
    )
    for module in ("lm_eval_sae.cli", "sweep_runs"):
        monkeypatch.setattr(f"{module}.get_judge", lambda: judge)
    with pytest.raises(UserError, match=r"judge is null there, .*\"model\": \"m\""):
        sweep.main([*command, SAMPLED])
    assert starts == []


@pytest.fixture(scope="module")
def scores(sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As compute_score.py writes them."""
    folder = tmp_path_factory.mktemp("scores")
    maxima = torch.linspace(1, 4, 64)
    maxima[7] = 0
    save_file({"max_activation": maxima}, folder / "feature_stats.safetensors")
    (folder / "top_features.csv").write_text("rank,feature,score\n1,12,0.3\n2,40,0.2\n3,7,0.1\n")
    of_sae = {"hook_name": "blocks.1.hook_resid_post", "weights_sha256": hash_file(sae / "sae_weights.safetensors")}
    (folder / "run.json").write_text(json.dumps({"sae": of_sae}))
    return folder


def test_scores_give_the_best_features_with_their_own_maxima(sweep: ModuleType, scores: Path, sae: Path) -> None:
    shared = {"sae_path": str(sae)}
    points = sweep.read_scores(scores, topk=2, features=[], strengths=[2], shared=shared)
    settings = [point.steering.features[0] for point in points]
    assert [setting.feature_idx for setting in settings] == [12, 40]
    maxima = torch.linspace(1, 4, 64)
    assert [setting.value for setting in settings] == pytest.approx([2 * maxima[12].item(), 2 * maxima[40].item()])
    (chosen,) = sweep.read_scores(scores, topk=2, features=[3], strengths=[1], shared=shared)
    assert chosen.name == "sae-3-x1" and chosen.steering.features[0].value == pytest.approx(maxima[3].item())

    as_published = {**shared, "sae_mode": "published"}
    (point,) = sweep.read_scores(scores, topk=2, features=[3], strengths=[2], shared=as_published)
    assert (point.name, point.arguments["sae_mode"]) == ("sae-3-published-x2", "published")
    norm = load_file(sae / "sae_weights.safetensors")["W_dec"][3].norm().item()
    (setting,) = point.steering.features
    assert (setting.mode, setting.units) == ("published", "raw")
    assert setting.value == pytest.approx(2 * maxima[3].item() / norm)


GRID = {"sae_path": "SAE", "sae_max_activation": 2.0, "strengths": [1, 2], "features": [3, 5]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strenghts": [1]}, "unknown key 'strenghts'; did you mean 'strengths'?"),
        ({"sae_pathh": "SAE"}, "unknown key 'sae_pathh'; did you mean 'sae_path'?"),
        ({"sae_strength": 2}, "the strengths of a sweep are a list"),
        ({"strengths": []}, "strengths is [], expected a list"),
        ({"strengths": None}, "has no strengths; expected a list"),
        ({"strengths": [1, "two"]}, "the strength 'two' is no number"),
        ({"strengths": [1, True]}, "the strength True is no number"),
        ({"strengths": [float("nan")]}, "the strength nan is no number"),
        ({"strengths": [2, 2.0]}, "feature 3 with strength 2 twice"),
        ({"features": [3, 3]}, "feature 3 with strength 1 twice"),
        ({"features": [3, 64]}, "feature 2: "),
        ({"features": [3, "five"]}, "feature 2 is 'five', expected a mapping"),
        ({"features": []}, "no list of features"),
        ({"features": None}, "no list of features"),
        ({"sae_max_activation": None}, "feature 1: sae_max_activation is missing"),
        ({"sae_max_activation": "auto"}, "sae_max_activation=auto needs sae_stats"),
        ({"sae_max_activation": -1}, "expected a number above 0"),
        ({"sae_path": "/nowhere"}, "no SAE folder at /nowhere"),
        ({"sae_mode": "sett"}, "did you mean 'set'?"),
        ({"sae_mode": "published", "sae_units": "folded"}, "sae_mode=published takes the weights as they are"),
    ],
)  # fmt: skip
def test_mistakes_in_a_grid(
    change: dict[str, Any], said: str, sweep: ModuleType, sae: Path, flags: list[str], tmp_path: Path,
    starts: list[HFSAE],
) -> None:  # fmt: skip
    content = {key: value for key, value in {**GRID, "sae_path": str(sae), **change}.items() if value is not None}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as error:
        sweep.main(["--grid", str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "out"), *flags])
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and starts == []


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (["--grid", "{grid}", "--taskz", "x"], "did you mean '--tasks'?"),
        (["--grid", "{grid}", "--strengthz", "1"], "did you mean '--strengths'?"),
        (["--grid", "{grid}", "--strengths", "1"], "--strengths is for --scores_dir"),
        (["--grid", "/nowhere.yaml"], "no file at --grid=/nowhere.yaml"),
        (["--grid", "{grid}", "--output_path", "x"], "--output_path is not for a sweep"),
        (["--grid", "{grid}", "--use_cache", "x"], "--use_cache is not for a sweep"),
        (["--grid", "{grid}", "--tasks", "quickstart_problms"], "did you mean 'quickstart_problems'?"),
        (["--grid", "{grid}", "--tasks", "quickstart_prob*,math-5000*"], "no task 'math-5000*'"),
        (["--grid", "{grid}", "--model", "openai-completions"], "cannot steer; expected hf or vllm"),
        (["--grid", "{grid}", "--gen_kwargs", "max_gen_tokz=3"], "did you mean 'max_gen_toks'?"),
        (["--scores_dir", "{scores}", "--topk", "9"], "has the 3 best features, --topk asks for 9"),
        (["--scores_dir", "{scores}", "--topk", "3"], "feature 7 never fired"),
        (["--scores_dir", "{scores}", "--features", "64"], "feature 1: "),
        (["--scores_dir", "{scores}", "--features", "4", "--topk", "1"], "both --topk and --features"),
        (["--scores_dir", "/nowhere"], "no scores folder at /nowhere"),
        (["--grid", "{grid}", "--report_dir", "{tmp}"], "holds the runs of --output_dir"),
        (["--grid", "{grid}", "--report_dir", "{tmp}/out"], "holds the runs of --output_dir"),
    ],
)
def test_mistakes_in_flags(
    own: list[str], said: str, sweep: ModuleType, sae: Path, grid: Path, scores: Path, flags: list[str],
    tmp_path: Path, starts: list[HFSAE],
) -> None:  # fmt: skip
    own = [word.format(grid=grid, scores=scores, tmp=tmp_path) for word in own]
    flags = [
        f"{flag},sae_path={sae}" if flag.startswith("pretrained") and "--scores_dir" in own else flag for flag in flags
    ]
    with pytest.raises(UserError) as error:
        sweep.main([*flags, "--output_dir", str(tmp_path / "out"), *own])
    assert said in str(error.value)
    assert not (tmp_path / "out").exists() and starts == []


def test_scores_and_models_of_another_sae_are_refused(
    sweep: ModuleType, make_sae: Callable[..., Path], scores: Path, sae: Path, flags: list[str], tmp_path: Path
) -> None:
    def points(of: Path) -> list[Any]:
        return sweep.read_scores(scores, topk=1, features=[], strengths=[1], shared={"sae_path": str(of)})

    assert len(points(sae)) == 1
    with pytest.raises(UserError, match="are of an SAE with other weights"):
        points(make_sae("jumprelu"))
    with pytest.raises(UserError, match="are of an SAE at blocks.1.hook_resid_post, this one is at blocks.2"):
        points(make_sae("standard", hook_name="blocks.2.hook_resid_post"))
    narrow = {**GRID, "sae_path": str(make_sae("standard", d_in=128))}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(narrow))
    with pytest.raises(UserError, match="d_in 128 but .* has hidden size 256"):
        sweep.main(["--grid", str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "out"), *flags])


def test_the_plan_loads_and_writes_nothing(
    sweep: ModuleType, sae: Path, flags: list[str], tmp_path: Path, starts: list[HFSAE],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**GRID, "sae_path": str(sae)}))
    sweep.main(["--grid", str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "out"), "--plan", *flags])
    said = capsys.readouterr().out
    assert said.startswith("5 runs: 5 per task, baseline and steered; 0 finished before\n")
    assert "set 5 to 2 × 2" in said

    sweep.main(
        ["--grid", str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "out"), "--plan", *flags]
        + ["--tasks", "quickstart_prob*"]
    )
    assert capsys.readouterr().out == said, "a pattern stands for the tasks that it names"
    assert starts == [] and not (tmp_path / "out").exists()


def test_a_mistake_is_one_line_and_status_2(repository: Path, tmp_path: Path) -> None:
    for words, said in (
        (["--output_dir", "out"], "error: one of the arguments --grid --scores_dir is required\n"),
        (["--grid", "grid.yaml", "--output_dir", "out", "--tasks", "math-500"], "error: no file at --grid=grid.yaml\n"),
    ):
        command = [sys.executable, str(repository / "evaluation" / "sweep.py"), *words]
        wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (wrong.returncode, wrong.stderr) == (2, said)
    assert list(tmp_path.iterdir()) == []


def test_the_shell_script_hands_its_variables_on(
    sweep: ModuleType, repository: Path, tiny_llama: Path, sae: Path, scores: Path, problems: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    variables = {
        "PYTHON": "/bin/echo", "MODEL": str(tiny_llama), "SAE_PATH": str(sae), "SCORES_DIR": str(scores),
        "TOPK": "2", "STRENGTHS": "3", "BACKEND": "hf", "TASKS": TASK, "GEN_KWARGS": GREEDY,
        "OUTPUT_DIR": str(tmp_path / "out"),
    }  # fmt: skip
    command = ["bash", str(repository / "evaluation" / "sweep.sh"), "--plan", "--limit", "3"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    script, *words = done.stdout.split()
    assert Path(script).samefile(repository / "evaluation" / "sweep.py")
    monkeypatch.setenv("QUICKSTART_PROBLEMS", str(problems))
    sweep.main(words)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        f"tiny-llama-{TASK}{place}" for place in ("", "-sae-12-x3", "-sae-40-x3")
    ]
    for as_published, mode in (({"AS_PUBLISHED": "1"}, "published"), ({"AS_PUBLISHED": "1", "SAE_MODE": "add"}, "add")):
        done = subprocess.run(command, env=os.environ | variables | as_published, capture_output=True, text=True)
        sweep.main(done.stdout.split()[1:])
        assert f"tiny-llama-{TASK}-sae-12-{mode}-x3" in capsys.readouterr().out
    done = subprocess.run(command, env=os.environ | {"AS_PUBLISHED": "yes"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: AS_PUBLISHED is 'yes', expected 1 or 0\n")


@pytest.mark.needs_vllm
def test_one_vllm_engine_gives_the_greedy_texts_of_transformers(
    sweep: ModuleType, sae: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval_sae.engines.vllm_model import VLLMSAE

    starts: list[VLLMSAE] = []
    original = VLLMSAE.__init__

    def count(self: VLLMSAE, *args: Any, **kwargs: Any) -> None:
        starts.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(VLLMSAE, "__init__", count)
    content = {**GRID, "sae_path": str(sae), "sae_max_activation": 6.5, "strengths": [2], "features": [40, 41]}
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
