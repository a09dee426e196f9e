"""One pass, two ranks, three chunks and a pass that was killed: the same scores; every SAE of SAELens is scored."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from transformer_lens_r1.shared.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parent))
from brute_force import reason_scores, sets_of_positions  # noqa: E402

N_ROWS = 48


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("extraction/compute_score.py")


@pytest.fixture
def flags(tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path) -> Callable[..., list[str]]:
    """A function that gives the command line of a run on the fixtures, with the given flags instead."""

    def line(**changed: Any) -> list[str]:
        arguments = {
            "model_path": tiny_llama,
            "sae_path": legacy_sae,
            "dataset_path": fixture_tokens,
            "column_name": "tokens",
            "dtype": "float32",
            "device": "cpu",
            "n_samples": N_ROWS,
            "minibatch_size_tokens": 8,
            "n_bootstrap": 50,
            **changed,
        }
        return [f"--{name}={value}" for name, value in arguments.items()]

    return line


def scores_of(folder: Path) -> torch.Tensor:
    return torch.load(folder / "feature_scores.pt", weights_only=True)


def assert_same_result(folder: Path, expected: Path) -> None:
    """The same, bit for bit, but for what run.json says of the command."""
    assert torch.equal(scores_of(folder), scores_of(expected))
    for name in ("feature_stats.safetensors", "top_features.csv"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    runs = [json.loads((path / "run.json").read_text()) for path in (folder, expected)]
    for run in runs:
        del run["arguments"]
    assert runs[0] == runs[1]


def environment() -> dict[str, str]:
    # The number of threads decides how sums are rounded.
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def test_chunks_merge_to_the_unchunked_result_bit_for_bit(
    script: ModuleType, flags: Callable[..., list[str]], tmp_path: Path, load_script: Callable[[str], ModuleType]
) -> None:
    blocks = {"minibatch_size_features": 300}  # chunks begin and end within blocks
    script.main(flags(output_dir=tmp_path / "whole", **blocks))
    parts = tmp_path / "parts"
    for chunk in (2, 0):
        script.main(flags(output_dir=parts, num_chunks=3, chunk_num=chunk, **blocks))
    merge = ["--merge", str(parts), "--output_dir", str(tmp_path / "merged")]
    with pytest.raises(UserError, match="lacks chunk 1 of 0 to 2"):
        script.main(merge)
    with pytest.raises(UserError, match=r"differs in --alpha \(0.7 there, 0.5 here\)"):
        script.main(flags(output_dir=parts, num_chunks=3, chunk_num=1, alpha=0.5, **blocks))
    with pytest.raises(UserError, match="the folder of the chunks"):
        script.main(["--merge", str(parts), "--output_dir", str(parts)])
    with pytest.raises(UserError, match="holds other files"):
        script.main(flags(output_dir=parts))
    script.main(flags(output_dir=parts, num_chunks=3, chunk_num=1, **blocks))
    script.main(merge)
    assert_same_result(tmp_path / "merged", tmp_path / "whole")

    files = load_script("extraction/score_files.py")
    unmerged, whole = files.read_scores(parts), files.read_scores(tmp_path / "whole")
    assert unmerged.words == whole.words and unmerged.run["sae"] == whole.run["sae"]
    assert unmerged.statistics.keys() == whole.statistics.keys()
    for name, values in whole.statistics.items():
        torch.testing.assert_close(unmerged.statistics[name], values, rtol=0, atol=0, equal_nan=True, msg=name)
    assert unmerged.digest() == whole.digest()


def test_two_ranks_give_the_scores_of_one_and_say_a_mistake_once(
    script: ModuleType, flags: Callable[..., list[str]], repository: Path, tmp_path: Path
) -> None:
    script.main(flags(output_dir=tmp_path / "one"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch.append(str(repository / "extraction" / "compute_score.py"))
    done = subprocess.run(
        [*launch, *flags(output_dir=tmp_path / "two")], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote the scores of 1,024 features") == 1
    one, two = scores_of(tmp_path / "one").double(), scores_of(tmp_path / "two").double()
    assert (one - two).abs().max() <= 1e-6 * one.abs().max()
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert runs[0]["words"] == runs[1]["words"] and [run["ranks"] for run in runs] == [1, 2]
    statistics = [load_file(tmp_path / name / "feature_stats.safetensors") for name in ("one", "two")]
    assert torch.equal(statistics[0]["firing_frequency"], statistics[1]["firing_frequency"])
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}

    wrong = flags(output_dir=tmp_path / "three", column_name="txet")
    failed = subprocess.run([*launch, *wrong], env=environment(), capture_output=True, text=True, timeout=300)
    assert failed.returncode != 0 and failed.stderr.count("has no column 'txet'") == 1
    assert "exitcode  : 2" in failed.stderr and "[rank" not in failed.stderr
    assert not (tmp_path / "three").exists()


def test_a_pass_killed_in_the_middle_continues_to_the_same_result(
    script: ModuleType,
    flags: Callable[..., list[str]],
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = {"n_samples": 320, "minibatch_size_tokens": 8}
    script.main(flags(output_dir=tmp_path / "whole", **rows))
    folder, unfinished = tmp_path / "scores", tmp_path / "scores.unfinished"
    command = flags(output_dir=folder, save_every_minutes=0, **rows)
    process = subprocess.Popen(
        [sys.executable, str(repository / "extraction" / "compute_score.py"), *command],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not list(unfinished.glob("[!.]*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9 and not folder.exists()

    with pytest.raises(UserError, match=r"differs in --minibatch_size_tokens \(8 there, 7 here\).*or delete"):
        script.main(flags(output_dir=folder, **{**rows, "minibatch_size_tokens": 7}))
    capsys.readouterr()
    script.main(command)
    assert "continuing at row " in capsys.readouterr().out
    assert not unfinished.exists()
    assert_same_result(folder, tmp_path / "whole")


def test_batch_sizes_change_scores_by_rounding_alone(
    script: ModuleType, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    for rows in (1, 7, 64):
        script.main(flags(output_dir=tmp_path / str(rows), minibatch_size_tokens=rows, n_samples=70, n_bootstrap=0))
    scores = torch.stack([scores_of(tmp_path / str(rows)) for rows in (1, 7, 64)]).double()
    assert (scores - scores[0]).abs().max() <= 1e-6 * scores.abs().max()
    table = (tmp_path / "1" / "top_features.csv").read_text().splitlines()
    assert next(csv.DictReader(table))["score_low"] == ""


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk", "topk_rescaled", "batchtopk"])
def test_an_sae_of_any_architecture_is_scored_as_saelens_encodes(
    script: ModuleType,
    flags: Callable[..., list[str]],
    make_sae: Callable[..., Path],
    tiny_llama: Path,
    fixture_tokens: Path,
    repository: Path,
    tmp_path: Path,
    architecture: str,
) -> None:
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from transformer_lens_r1.shared.data import load_rows

    sae_folder = make_sae(architecture, d_in=256)
    folder = tmp_path / "scores"
    script.main(
        flags(
            sae_path=sae_folder,
            output_dir=folder,
            n_samples=6,
            minibatch_size_tokens=4,
            minibatch_size_features=16,
            ignore_tokens="0,1",
            n_bootstrap=0,
        )
    )
    rows = load_rows(fixture_tokens).shuffle(seed=42)[:6]["tokens"]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    sae = SAE.load_from_disk(sae_folder)
    with torch.no_grad():
        activations = sae.encode(model(torch.tensor(rows), output_hidden_states=True).hidden_states[3])
    if architecture != "topk_rescaled":  # whose activations are in units of unit decoder directions already
        activations = activations * sae.W_dec.norm(dim=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    groups: dict[str, list[tuple[int, ...]]] = {}
    for spelling in json.loads((repository / "extraction" / "reason_tokens.json").read_text()):
        ids = tuple(tokenizer.encode(spelling, add_special_tokens=False))
        groups.setdefault(spelling.lstrip().lower(), []).append(ids)
    expected = torch.tensor(reason_scores(activations, sets_of_positions(rows, groups, 1, 2, [0, 1]), 0.7))
    scores = scores_of(folder)
    assert (activations > 0).any() and scores.abs().max() > 1e-4
    assert (scores - expected).abs().max() <= 1e-6 * scores.abs().max() + 1e-7


def test_activations_that_are_not_finite_end_in_one_line(
    script: ModuleType, flags: Callable[..., list[str]], make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    for name, value in {"nan": float("nan"), "infinite": float("inf")}.items():
        folder = make_sae(d_in=256, name=name)
        weights = load_file(folder / "sae_weights.safetensors")
        weights["b_enc"][3] = value
        save_file(weights, folder / "sae_weights.safetensors")
        with pytest.raises(UserError, match=r"NaN or infinite \(model and SAE in float32 and float32\)"):
            script.main(flags(sae_path=folder, output_dir=tmp_path / "scores", n_samples=4))
        assert not (tmp_path / "scores").exists()


def test_pictures_and_intervals_are_part_of_the_result(
    script: ModuleType, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "scores"
    script.main(flags(output_dir=folder, topk=5, quantile=0.99))
    for name in ("feature_scores.png", "top_features.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG") and (folder / name).stat().st_size > 5000
    run = json.loads((folder / "run.json").read_text())
    assert run["quantile"]["features_above"] == 11  # of 1,024 features
    assert (scores_of(folder) > run["quantile"]["score"]).sum() == 11
    assert run["bootstrap"]["blocks"] == N_ROWS and run["bootstrap"]["k"] == 5
    with (folder / "top_features.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 5
    for row in table:
        assert float(row["score_low"]) < float(row["score"]) < float(row["score_high"])
        assert 0 <= float(row["in_top_k"]) <= 1
