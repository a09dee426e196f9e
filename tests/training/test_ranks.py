"""Two ranks train as one does: the same steps, on the same batches' gradients, counts and norms; and end together."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import train_sae
import yaml
from one_of_two_ranks import BATCH, IN_SECOND_HALF, NEVER, STEPS, train
from sae_lens import SAE
from sae_training import checks, config
from sae_training.activations import ActivationSource, ActivationStream
from sae_training.held_out import HeldOutEvaluator
from safetensors.torch import load_file

from transformer_lens_r1.loading import load_model
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.ranks import Ranks

FOLDER = Path(__file__).resolve().parent
RUN_STEPS = 64


def start(script: Path, *arguments: str) -> subprocess.Popen[str]:
    """A script on two ranks, as torchrun starts it."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*launch, str(script), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def launch(repository: Path) -> Callable[..., subprocess.Popen[str]]:
    """A function from a config and flags to the process of torchrun that trains with it."""
    return lambda path, *flags: start(repository / "training" / "train_sae.py", str(path), *flags)


@pytest.fixture(scope="module")
def make_config(run_config: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """A function from the folder of a run, and changes, to its YAML file."""

    def make(folder: Path, **changes: Any) -> Path:
        folder.mkdir(exist_ok=True)
        values = {"store_batch_size_prompts": 4, "lr_warm_up_steps": 10, "lr_decay_steps": 20, **changes}
        values = run_config(folder, checkpoint_path=str(folder), checkpoint_every_minutes=None, **values)
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        return folder / "config.yaml"

    return make


@pytest.fixture(scope="module")
def whole(
    make_config: Callable[..., Path],
    launch: Callable[..., subprocess.Popen[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a run of two ranks without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    process = launch(make_config(folder))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("wrote the SAE to") == 1
    assert errors.count("does not say which tokenizer") == errors.count("Loading weights: 100%") == 1, "one speaks"
    return folder


def run_until_a_step(process: subprocess.Popen[str]) -> None:
    """Read what a process says until it has trained for a step."""
    said = ""
    while "mse_loss" not in said:
        line = process.stderr.readline()
        said += line
        assert line, f"it ended:\n{said}"


def test_gradients_norms_and_counts_of_two_ranks_are_those_of_the_joined_batch(tmp_path: Path) -> None:
    process = start(FOLDER / "one_of_two_ranks.py", str(tmp_path / "rank"))
    errors = process.communicate(timeout=200)[1]
    assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"rank.{rank}") for rank in (0, 1))
    joined = train(Ranks())
    for name, gradient in joined["gradients"].items():
        assert gradient.norm() > 0
        assert (first["gradients"][name] - gradient).norm() <= 1e-6 * gradient.norm()
    assert first["scale"] == pytest.approx(joined["scale"], rel=1e-6)
    assert first["tokens"] == first["counted_tokens"] == joined["tokens"] == STEPS * BATCH
    assert joined["dead"][NEVER].all() and not joined["dead"][IN_SECOND_HALF].any()
    for name in ("fired", "since_fired", "dead"):
        assert first[name].equal(joined[name]), name
    for name, weight in joined["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-4, atol=1e-5)
        assert first["weights"][name].equal(second["weights"][name])


def test_ranks_take_turns_at_the_rows_and_shuffle_each_on_its_own(tiny_llama: Path, fixture_tokens: Path) -> None:
    rows = datasets.load_dataset("parquet", data_files=str(fixture_tokens / "*.parquet"), split="train")
    source = ActivationSource(load_model(tiny_llama), "blocks.1.hook_resid_post")
    streams = [
        ActivationStream(
            source, rows.select(range(20)), rows_per_pass=4, batch_size=64, buffer_size=512, mix_fraction=0.5, seed=7,
            rank=rank, n_ranks=n,
        )
        for rank, n in ((0, 1), (0, 2), (1, 2))
    ]  # fmt: skip
    one, *two = [
        [stream._next_rows() for _ in range(passes)] for stream, passes in zip(streams, (10, 5, 5), strict=True)
    ]
    assert torch.cat(one).equal(torch.cat([rows for turn in zip(*two, strict=True) for rows in turn]))
    first, second = (stream.generator.get_state() for stream in streams[1:])
    assert streams[0].generator.get_state().equal(first) and not first.equal(second)


def test_the_held_out_figures_are_those_of_all_rows(whole: Path, tiny_llama: Path) -> None:
    values = config.read_config(whole / "config.yaml")
    cfg = config.build_config(values)
    rows = checks.checked_rows(cfg)[1]
    source = ActivationSource.of_config(cfg, load_model(tiny_llama))
    one = HeldOutEvaluator(source, rows, batch_size=4, cross_entropy=True)
    quality = one.quality(SAE.load_from_disk(str(whole / "sae"))).figures()
    assert json.loads((whole / "sae" / "training_summary.json").read_text())["held_out"] == pytest.approx(quality)


@pytest.fixture(scope="module")
def stopped(
    make_config: Callable[..., Path],
    launch: Callable[..., subprocess.Popen[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """The folder of a run of two ranks after SIGTERM to torchrun, and what was said on stderr."""
    folder = tmp_path_factory.mktemp("stopped")
    process = launch(make_config(folder))
    run_until_a_step(process)
    process.send_signal(signal.SIGTERM)
    return folder, process.communicate(timeout=60)[1]


def copied(stopped: tuple[Path, str], folder: Path) -> list[str]:
    """Arguments that continue a copy of the stopped run."""
    shutil.copytree(stopped[0], folder)
    places = [f"checkpoint_path={folder}", f"output_path={folder / 'sae'}"]
    return [str(folder / "config.yaml"), "--resume", *(word for place in places for word in ("--set", place))]


def test_sigterm_ends_both_ranks_after_the_same_step_and_they_continue_bit_for_bit(
    stopped: tuple[Path, str], launch: Callable[..., subprocess.Popen[str]], tmp_path: Path, whole: Path
) -> None:
    (said,) = re.findall(r"stopped after step (\d+) of .*; continue with: (.*)", stopped[1])
    assert said[1].startswith("torchrun --nnodes 1 --nproc_per_node 2 ") and said[1].endswith(" --resume")
    (checkpoint,) = stopped[0].glob("sae.checkpoints/step-*")
    assert int(checkpoint.name.removeprefix("step-")) == int(said[0]) < RUN_STEPS
    assert {"activations.safetensors", "activations-rank-1.safetensors"} < {file.name for file in checkpoint.iterdir()}

    process = launch(*copied(stopped, tmp_path / "run"))
    errors = process.communicate(timeout=200)[1]
    assert process.returncode == 0, errors
    first, second = (load_file(folder / "sae" / "sae_weights.safetensors") for folder in (tmp_path / "run", whole))
    assert all(first[name].equal(weight) for name, weight in second.items())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "sae"}


def test_a_rank_that_is_killed_ends_the_other_and_one_line_names_it(
    stopped: tuple[Path, str], launch: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = launch(*copied(stopped, tmp_path / "run"))
    run_until_a_step(process)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    line = rf"^error: rank 1 \(process {ranks[1]} on .*\) died, .*; give the same command with --resume$"
    assert len(re.findall(line, errors, re.MULTILINE)) == 1, errors
    assert "gloo" not in errors, "no traceback of the rank that lost its partner"
    assert len(list((tmp_path / "run").glob("sae.checkpoints/step-*"))) == 1


def test_another_number_of_ranks_goes_on_at_the_place_in_the_rows_with_new_buffers(
    stopped: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = stopped[0].glob("sae.checkpoints/step-*")
    places = [int(load_file(file)["rows_read"]) for file in checkpoint.glob("activations*.safetensors")]
    read: list[int] = []
    next_rows = ActivationStream._next_rows
    monkeypatch.setattr(
        ActivationStream, "_next_rows", lambda stream: (read.append(stream.rows_read), next_rows(stream))[1]
    )
    train_sae.main(copied(stopped, tmp_path / "run"))
    assert "is of 2 ranks, and this run has 1: the buffers begin anew" in capsys.readouterr().err
    assert read[:2] == [min(places), min(places) + 4] and len(places) == 2
    summary = json.loads((tmp_path / "run" / "sae" / "training_summary.json").read_text())
    assert (summary["training_steps"], summary["training_tokens"]) == (RUN_STEPS, RUN_STEPS * 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_batch_size_tokens": 255}, "255, which 2 ranks cannot share out"),
        ({"sae": {"d_in": 256, "d_sae": 512, "normalize_activations": "covariance_whitening"}}, "in one process"),
        ({"device": "cuda:0"}, "is one GPU, but there are 2 ranks; say cuda"),
    ],
)
def test_a_config_that_ranks_cannot_share_is_refused(
    make_config: Callable[..., Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values, ranks = config.read_config(make_config(tmp_path, **change)), Ranks(0, 2)
    with pytest.raises(UserError, match=message):
        checks.resolve_devices(values, ranks)
        checks.check_shares(config.build_config(values), ranks)
