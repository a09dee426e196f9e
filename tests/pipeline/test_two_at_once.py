"""Two processes that want one output: the second is told who has it. Checkpoints belong to one run."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.locks import locked

Load = Callable[[str], ModuleType]
HOLD = """
import sys
from transformer_lens_r1.shared.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(output: Path) -> Iterator[int]:
    """While it lasts another process, whose id it gives, writes to an output."""
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process.pid
    with locked(output):  # it has ended
        pass
    assert list(output.parent.glob(".*.lock")) == []


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """An output that another process writes to, and that process's id."""
    with held(tmp_path / "output") as process:
        yield tmp_path / "output", process


@pytest.mark.parametrize("script", ["compute_dashboard", "compute_score", "find_reasoning_words"])
def test_a_second_run_of_extraction_is_refused(script: str, holder: tuple[Path, int], load_script: Load) -> None:
    output, process = holder
    arguments = ["--dataset_path", "d", "--output_dir", str(output)]
    if script != "find_reasoning_words":
        arguments += ["--model_path", "m", "--sae_path", "s"]
    if script == "compute_dashboard":
        arguments += ["--scores_dir", "scores"]
    with pytest.raises(UserError, match=rf"output is being written by process {process} on .* since \d{{4}}-"):
        load_script(f"extraction/{script}.py").main(arguments)


def training_config(folder: Path, name: str) -> dict[str, object]:
    return {
        "model_name": "m", "dataset_path": "d", "hook_name": "blocks.1.hook_resid_post", "training_tokens": 64,
        "train_batch_size_tokens": 8, "context_size": 8, "sae": {"d_in": 8, "d_sae": 16, "l1_coefficient": 1},
        "checkpoint_path": str(folder / "runs"), "output_path": str(folder / name),
    }  # fmt: skip


def test_a_second_training_is_refused(holder: tuple[Path, int], tmp_path: Path, load_script: Load) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(training_config(tmp_path, "output")))
    with pytest.raises(UserError, match=f"output is being written by process {holder[1]}"):
        load_script("training/train_sae.py").main([str(tmp_path / "config.yaml"), "--resume"])


def test_a_second_evaluation_of_the_same_run_is_refused(tmp_path: Path, load_script: Load, tiny_llama: Path) -> None:
    (tmp_path / "problems.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    flags = ["--model", "hf", "--model_args", f"pretrained={tiny_llama}", "--device", "cpu", "--batch_size", "1"]
    flags += ["--tasks", "quickstart_problems", "--metadata", f"problems={tmp_path / 'problems.jsonl'}"]
    evaluate = load_script("evaluation/evaluate.py")
    with (
        held(tmp_path / "out" / "tiny-llama-quickstart_problems") as process,
        pytest.raises(UserError, match=f"tiny-llama-quickstart_problems is being written by process {process} on"),
    ):
        evaluate.main(["--output_dir", str(tmp_path / "out"), *flags])


def test_a_place_that_cannot_be_written_is_named() -> None:
    with pytest.raises(UserError, match="^/proc/nope/x cannot be written: No such file"), locked("/proc/nope/x"):
        pass


def test_checkpoints_are_found_however_the_output_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_training.config import build_config

    monkeypatch.chdir(tmp_path)
    outputs = ("a/sae", "./a/../a/sae", str(tmp_path / "a/sae"))
    configs = [{**training_config(Path(), "x"), "output_path": output} for output in outputs]
    assert {build_config(config).checkpoint_path for config in configs} == {"runs/a-sae.checkpoints"}


def test_checkpoints_belong_to_one_run(tmp_path: Path) -> None:
    from sae_training import checkpoints
    from sae_training.config import build_config

    def existing(name: str) -> checkpoints.ExistingRun:
        return checkpoints.ExistingRun(build_config(training_config(tmp_path, name)))

    folders = [build_config(training_config(tmp_path, name)).checkpoint_path for name in ("a/sae", "b/sae", "a-sae")]
    assert folders[0] != folders[1] and folders[0] == folders[2]
    folder = Path(str(folders[0]))
    checkpoints.begin(folder, tmp_path / "a/sae", keep=False)
    checkpoints.write(folder, checkpoints.name_of(3), lambda path: None, {})
    assert existing("a/sae").checkpoint == folder / "step-000000003" and existing("b/sae").checkpoint is None
    with pytest.raises(UserError, match=r"belongs to another run: output_path is .*a/sae\" there and .*a-sae\" here"):
        existing("a-sae")
    assert json.loads((folder / "owner.json").read_text()) == {"output_path": "../../a/sae"}
    (tmp_path / "runs").rename(tmp_path / "moved")  # as to another disk, with the output beside it
    moved = {**training_config(tmp_path, "a/sae"), "checkpoint_path": str(tmp_path / "moved")}
    folder = Path(str(build_config(moved).checkpoint_path))
    assert checkpoints.ExistingRun(build_config(moved)).checkpoint == folder / "step-000000003"
    checkpoints.remove_all(folder)
    assert not folder.exists()


def test_a_link_that_leads_nowhere_gets_the_result(tmp_path: Path) -> None:
    from transformer_lens_r1.shared.files import atomic_directory

    (tmp_path / "link").symlink_to(tmp_path / "disk" / "target")
    for content in ("first", "second"):
        with atomic_directory(tmp_path / "link") as folder:
            (folder / "result").write_text(content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/target/result").read_text() == content
