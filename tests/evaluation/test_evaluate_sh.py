"""The shell script of the paper's runs, as users start it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file


def start(repository: Path, cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(repository / "evaluation" / "evaluate.sh"), *arguments]
    environment = os.environ | {"PYTHON": sys.executable} | variables
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--taskz"], {}, "unknown argument '--taskz'"),
        ([], {"DEVICE": "cuda"}, "DEVICE is for BACKEND=hf"),
        ([], {"BACKEND": "hg"}, "expected vllm or hf"),
        ([], {"RUNS": "steerd"}, "RUNS has 'steerd'"),
        ([], {"MODEL": "a,b"}, "MODEL is 'a,b'"),
        ([], {"SAE_PATH": "a", "SAE_RELEASE": "b"}, "expected one of them"),
        ([], {"INTERVENTION": "a", "FEATURE": "1"}, "both INTERVENTION and FEATURE are set"),
        ([], {"BACKEND": "hf", "TENSOR_PARALLEL_SIZE": "2"}, "TENSOR_PARALLEL_SIZE is for BACKEND=vllm"),
        ([], {"FRESH": "yes"}, "FRESH is 'yes', expected 1 or 0"),
        ([], {"AS_PUBLISHED": "yes"}, "AS_PUBLISHED is 'yes', expected 1 or 0"),
        ([], {"INTERVENTION": "a.yaml", "SAE_PATH": "b"}, "no file at sae_intervention_path=a.yaml"),
    ],
)
def test_mistakes(
    arguments: list[str], variables: dict[str, str], message: str, repository: Path, tmp_path: Path
) -> None:
    done = start(repository, tmp_path, *arguments, **variables)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_plain_and_steered_then_skipped_then_refused(
    repository: Path, tiny_llama: Path, make_sae: Callable[..., Path], problems: Path, tmp_path: Path,
    load_script: Callable[[str], ModuleType],
) -> None:  # fmt: skip
    settings = {
        "MODEL": str(tiny_llama), "SAE_PATH": str(make_sae("standard")), "FEATURE": "40", "STRENGTH": "2",
        "MAX_ACTIVATION": "6", "TASKS": "quickstart_problems", "QUICKSTART_PROBLEMS": str(problems), "LIMIT": "2",
        "BACKEND": "hf", "DTYPE": "float32", "DEVICE": "cpu", "GEN_KWARGS": "max_gen_toks=4", "OUTPUT_DIR": "out",
    }  # fmt: skip
    done = start(repository, tmp_path, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    names = ["tiny-llama-quickstart_problems", "tiny-llama-quickstart_problems-sae-40"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    summarize = load_script("evaluation/summarize.py")
    rows = summarize.summarize(summarize.read_runs([tmp_path / "out"]))
    assert [row.run.n_questions for row in rows] == [2, 2] and rows[1].compared == 2
    assert rows[0].warnings[0] == "2 questions, fewer than the 30 that an interval needs"

    again = start(repository, tmp_path, **settings)
    assert again.returncode == 0 and again.stdout.count("skipped") == 2
    weights = Path(settings["SAE_PATH"]) / "sae_weights.safetensors"
    os.utime(weights, (1, 1))  # as if trained again into the same folder
    changed = start(repository, tmp_path, **settings)
    assert changed.returncode == 2 and "another SAE" in changed.stderr and changed.stdout.count("skipped") == 1
    other = start(repository, tmp_path, **{**settings, "STRENGTH": "3"})
    assert other.returncode == 2 and "holds a run with other settings" in other.stderr


STUB = """#!/usr/bin/env bash
if [[ $2 != lm_eval_sae ]]; then exec "$REAL_PYTHON" "$@"; fi
echo "$@" >>"$CALLS"
while [[ $1 != --output_path ]]; do shift; done
mkdir -p "$2/model" "$2/.unfinished" && echo "{}" >"$2/model/results_now.json"
ls -A "$2/.unfinished" "$2" >>"$CALLS.found"
echo >"$2/.unfinished/completions"
exit "$STATUS"
"""


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """Settings of a script whose Python notes its arguments and writes a results file where it is to evaluate.

    It then ends with $STATUS.
    """
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    return {
        "PYTHON": str(python), "CALLS": str(tmp_path / "calls"), "TASKS": "math-500", "MODEL": "m", "BACKEND": "hf",
        "OUTPUT_DIR": str(tmp_path / "out"), "STATUS": "0", "REAL_PYTHON": sys.executable,
    }  # fmt: skip


def test_an_empty_variable_counts_as_unset(repository: Path, tmp_path: Path, stub: dict[str, str]) -> None:
    empty = {name: "" for name in ("INTERVENTION", "STRENGTH", "SAE_PATH", "TENSOR_PARALLEL_SIZE", "FRESH", "DEVICE")}
    done = start(repository, tmp_path, **stub, **empty, CHAT_TEMPLATE="")
    assert done.returncode == 0, done.stderr
    plain, steered = (tmp_path / "calls").read_text().splitlines()
    assert "--apply_chat_template" in plain and "tensor_parallel_size" not in plain and "--device" not in plain
    assert "sae_strength=2.0" in steered and "sae_release=" in steered and "sae_path" not in steered


@pytest.mark.parametrize(
    ("variables", "steered", "judge"),
    [
        ("PROCESSOR=m", "sae_mode=set,sae_units=folded,", ""),
        ("SAE_MODE=published", "sae_mode=published,sae_units=raw,", ""),
        ("AS_PUBLISHED=1", "sae_mode=published,sae_units=raw,", ""),
        ("AS_PUBLISHED=1 PROCESSOR=m", "sae_mode=published,sae_units=raw,", "published"),
        ("AS_PUBLISHED=1 SAE_MODE=add SAE_UNITS=folded PROCESSOR=m JUDGE=all", "sae_mode=add,sae_units=folded,", "all"),
    ],
)
def test_as_published_changes_defaults_alone(
    variables: str, steered: str, judge: str, repository: Path, tmp_path: Path, stub: dict[str, str]
) -> None:
    python = Path(stub["PYTHON"])
    python.write_text(STUB.replace('echo "$@"', 'echo "$@" "JUDGE=${JUDGE:-}"', 1))
    given = dict(pair.split("=") for pair in variables.split())
    assert start(repository, tmp_path, **stub, **given, RUNS="steered").returncode == 0
    call = (tmp_path / "calls").read_text().strip()
    assert steered in call and call.endswith(f" JUDGE={judge}")


def test_a_file_as_published_gets_the_sae_that_it_does_not_name(
    repository: Path, tmp_path: Path, stub: dict[str, str], make_sae: Callable[..., Path]
) -> None:
    sae, file = make_sae("standard"), tmp_path / "several.pt"
    torch.save({3: {"max_activation": 4.0, "strength": 2.0}}, file)
    settings = {**stub, "INTERVENTION": str(file), "SAE_PATH": str(sae), "RUNS": "steered"}
    assert start(repository, tmp_path, **settings).returncode == 0
    assert f",sae_intervention_path={file},sae_path={sae} " in (tmp_path / "calls").read_text()
    torch.save({3: {"max_activation": 4.0, "strength": 1.0}}, file)
    assert "holds a run with other settings" in start(repository, tmp_path, **settings).stderr
    torch.save({"sae_path": str(sae), "features": [{"sae_feature_idx": 3}]}, file)
    refused = start(repository, tmp_path, **{**settings, "RUNS": "plain steered", "OUTPUT_DIR": "new"})
    assert refused.returncode == 2 and "both sae_intervention_path and sae_path are given" in refused.stderr
    assert not (tmp_path / "new").exists(), "the baseline does not run before"


def test_a_run_whose_judge_stopped_is_kept_and_never_passes_for_finished(
    repository: Path, tmp_path: Path, stub: dict[str, str]
) -> None:
    done = start(repository, tmp_path, **{**stub, "STATUS": "3"})
    assert done.returncode == 3 and done.stderr.startswith("error: the judge stopped answering in a run")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2, "the runs after it are done"
    assert len(list((tmp_path / "out").rglob("results_*.json"))) == 2

    again = start(repository, tmp_path, **{**stub, "STATUS": "3"})
    assert again.returncode == 3 and again.stdout.count("its completions are there, it is asked again") == 2
    assert (tmp_path / "calls.found").read_text().count("completions") == 2
    folder = tmp_path / "out" / "m-math-500"
    before = sorted(folder.rglob("*"))
    refused = start(repository, tmp_path, **{**stub, "STATUS": "2"}, RUNS="plain")  # the key is refused still
    assert refused.returncode == 2 and sorted(folder.rglob("*")) == before, "results stay until there are better ones"
    answered = start(repository, tmp_path, **stub)
    assert answered.returncode == 0 and answered.stdout.count("it is asked again") == 2
    assert not list((tmp_path / "out").rglob(".unfinished")) and len(list((tmp_path / "out").rglob("results_*"))) == 2
    assert start(repository, tmp_path, **stub).stdout.count("finished before, skipped") == 2


def test_names_that_the_shell_would_take_for_patterns(repository: Path, tmp_path: Path, stub: dict[str, str]) -> None:
    names = {"OUTPUT_DIR": str(tmp_path / "out [v2]*?"), "MODEL": "m[1]"}
    done = start(repository, tmp_path, **{**stub, **names}, RUNS="plain", CHAT_TEMPLATE="0")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out [v2]*?").iterdir()] == ["m[1]-math-500"]
    assert "--apply_chat_template" not in (tmp_path / "calls").read_text()


def test_what_an_intervention_file_and_a_folder_of_problems_name_is_watched(
    repository: Path, tmp_path: Path, stub: dict[str, str], make_sae: Callable[..., Path], problems: Path
) -> None:
    sae = make_sae("standard")
    folder = tmp_path / "problems"
    folder.mkdir()
    (folder / "p.jsonl").write_bytes(problems.read_bytes())
    feature = {"sae_path": str(sae), "sae_feature_idx": 3, "sae_strength": 2, "sae_max_activation": 4}
    (tmp_path / "iv.json").write_text(json.dumps({"features": [feature]}))
    settings = {
        **stub, "INTERVENTION": str(tmp_path / "iv.json"), "TASKS": "quickstart_problems",
        "QUICKSTART_PROBLEMS": str(folder),
    }  # fmt: skip
    assert start(repository, tmp_path, **settings).returncode == 0
    assert start(repository, tmp_path, **settings).stdout.count("finished before, skipped") == 2
    weights = load_file(sae / "sae_weights.safetensors")
    weights["W_dec"][3] *= 2  # as if trained again into the same folder
    save_file(weights, sae / "sae_weights.safetensors")
    changed = start(repository, tmp_path, **settings)
    assert changed.returncode == 2 and "another SAE" in changed.stderr and changed.stdout.count("skipped") == 1
    with (folder / "p.jsonl").open("a") as file:
        file.write('{"problem": "1 + 1", "answer": "2"}\n')
    changed = start(repository, tmp_path, **settings)
    assert changed.returncode == 2 and changed.stdout.count("skipped") == 0
    shutil.rmtree(sae)
    gone = start(repository, tmp_path, **settings, RUNS="steered")
    assert gone.returncode == 2 and len(gone.stderr.splitlines()) == 1 and "iv.json, feature 1" in gone.stderr


def test_an_interrupted_run_finds_its_completions_and_nothing_else(
    repository: Path, tmp_path: Path, stub: dict[str, str]
) -> None:
    partial = tmp_path / "out" / "m-math-500.partial"
    (partial / ".unfinished").mkdir(parents=True)
    (partial / ".unfinished" / "completions").touch()
    (partial / "old").mkdir()
    assert start(repository, tmp_path, **stub, RUNS="plain").returncode == 0
    assert "completions" in (found := (tmp_path / "calls.found").read_text()) and "old" not in found
    (tmp_path / "calls.found").unlink()
    partial.mkdir()
    (partial / ".unfinished").mkdir()
    (partial / ".unfinished" / "completions").touch()
    assert start(repository, tmp_path, **stub, RUNS="plain", FRESH="1").returncode == 0
    assert "completions" not in (tmp_path / "calls.found").read_text()


def test_a_run_that_fails_ends_the_script_with_its_status(
    repository: Path, tmp_path: Path, stub: dict[str, str]
) -> None:
    assert start(repository, tmp_path, **{**stub, "STATUS": "2"}).returncode == 2
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
