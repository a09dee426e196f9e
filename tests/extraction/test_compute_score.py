"""compute_score.py: the expected scores, however the work is cut up, batched, shared out or interrupted."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compute_score
import pytest
import torch
from brute_force import group_by_word, parts_of_positions, reason_scores, sets_of_positions
from datasets import Dataset
from reasonscore.inputs import input_identity, load_inputs
from reasonscore.results import read_scores
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters

from transformer_lens_r1.shared.data import load_rows
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import hash_file
from transformer_lens_r1.shared.same_run import first_difference

N_ROWS = 48
Flags = Callable[..., list[str]]


@pytest.fixture
def flags(tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path, tmp_path: Path) -> Flags:
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
            "output_dir": tmp_path / "scores",
            **changed,
        }
        return [f"--{name}={value}" for name, value in arguments.items() if value is not None]

    return line


def scores_of(folder: Path) -> torch.Tensor:
    return torch.load(folder / "feature_scores.pt", weights_only=True)


def assert_same_result(folder: Path, expected: Path) -> None:
    """The same, bit for bit, except for the command in run.json."""
    for name in ("feature_stats.safetensors", "top_features.csv"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert torch.equal(scores_of(folder), scores_of(expected))
    runs = [json.loads((path / "run.json").read_text()) for path in (folder, expected)]
    assert {**runs[0], "arguments": None} == {**runs[1], "arguments": None}


def environment() -> dict[str, str]:
    # The number of threads decides how sums are rounded.
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


@pytest.mark.parametrize(("name", "compiled"), [("windowed", False), ("windowed", True), ("pointwise_all", False)])
def test_the_expected_scores_are_reproduced(
    flags: Flags, fixtures_dir: Path, tmp_path: Path, name: str, compiled: bool
) -> None:
    expected = json.loads((fixtures_dir / "expected_reason_scores.json").read_text())[name]
    settings = expected["args"]
    left, right = settings["expand_range"] or (0, 0)
    graphs = counters["stats"]["unique_graphs"]
    compute_score.main(
        ["--compile_llm"] * compiled
        + flags(
            expand_range=f"{left},{right}",
            ignore_tokens=",".join(map(str, settings["ignore_tokens"])),
            n_samples=settings["n_samples"],
            minibatch_size_tokens=64,
            alpha=settings["alpha"],
            seed=settings["shuffle_seed"],
            tokens_str_path=fixtures_dir / settings["vocabulary"],
        )
    )
    scores = scores_of(tmp_path / "scores")
    assert scores.dtype == torch.float32
    assert (scores.double() - torch.tensor(expected["scores"], dtype=torch.float64)).abs().max() <= 1e-7
    assert (counters["stats"]["unique_graphs"] > graphs) == compiled


def test_the_vocabulary_that_ships_is_the_papers(fixtures_dir: Path) -> None:
    papers = json.loads((fixtures_dir / "reason_tokens.json").read_text())
    assert json.loads(compute_score.VOCABULARY.read_text()) == papers


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk", "topk_rescaled", "batchtopk"])
def test_an_sae_of_any_architecture_is_scored_as_saelens_encodes(
    flags: Flags,
    make_sae: Callable[..., Path],
    tiny_llama: Path,
    fixture_tokens: Path,
    tmp_path: Path,
    architecture: str,
) -> None:
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sae_folder = make_sae(architecture, d_in=256)
    batches = {"minibatch_size_tokens": 4, "minibatch_size_features": 16}
    compute_score.main(flags(sae_path=sae_folder, n_samples=6, ignore_tokens="0,1", n_bootstrap=0, **batches))
    rows = load_rows(fixture_tokens).shuffle(seed=42)[:6]["tokens"]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    sae = SAE.load_from_disk(sae_folder)
    with torch.no_grad():
        activations = sae.encode(model(torch.tensor(rows), output_hidden_states=True).hidden_states[3])
    if architecture != "topk_rescaled":  # whose activations are in units of unit decoder directions already
        activations = activations * sae.W_dec.norm(dim=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    groups = group_by_word(tokenizer, compute_score.VOCABULARY)
    expected = torch.tensor(reason_scores(activations, sets_of_positions(rows, groups, 1, 2, [0, 1]), 0.7))
    scores = scores_of(tmp_path / "scores")
    assert (activations > 0).any() and scores.abs().max() > 1e-4
    assert (scores - expected).abs().max() <= 1e-6 * scores.abs().max() + 1e-7


def test_statistics_are_those_of_transformers_and_the_sae_weights(
    flags: Flags, tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    compute_score.main(flags(n_samples=12, ignore_tokens="0,1", quantile=0.99, topk=5))
    folder = tmp_path / "scores"
    rows = torch.tensor(load_rows(fixture_tokens).shuffle(seed=42)[:12]["tokens"])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    weights = load_file(legacy_sae / "sae_weights.safetensors")
    with torch.no_grad():
        residual = model(rows, output_hidden_states=True).hidden_states[3]
        raw = torch.relu(residual @ weights["W_enc"] + weights["b_enc"])
        by_position = raw * weights["W_dec"].norm(dim=1)  # [rows, pos, d_sae]
    activations = by_position[rows > 1]  # ids 0 and 1 are ignored
    statistics, words, run = read_scores(folder)
    torch.testing.assert_close(statistics["max_activation"], activations.amax(dim=0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(statistics["firing_frequency"], (activations > 0).float().mean(dim=0), atol=2e-3, rtol=0)
    assert statistics["word_means"].shape == (1024, len(words)) and statistics["entropy"].shape == (1024,)

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    groups = group_by_word(tokenizer, compute_score.VOCABULARY)
    white_space = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).isspace()]
    parts = parts_of_positions(rows.tolist(), groups, 1, 2, [0, 1], white_space)
    sums = {name: sum(by_position[place] for place in places) for name, places in parts.items()}
    for name, of_part in sums.items():
        torch.testing.assert_close(statistics[name], of_part / sum(sums.values()), atol=1e-4, rtol=1e-4, equal_nan=True)
        assert parts[name] and statistics[name].nan_to_num().max() > 0.1

    assert run["tokens"] == 12 * 128 and run["reasoning_tokens"] + run["other_tokens"] == len(activations)
    assert run["sae"]["weights_sha256"] == hash_file(legacy_sae / "sae_weights.safetensors")
    assert run["words"].keys() == set(words) and run["arguments"]["alpha"] == 0.7
    assert run["bootstrap"]["blocks"] == 12 and run["bootstrap"]["k"] == 5
    assert run["quantile"]["features_above"] == (statistics["score"] > run["quantile"]["score"]).sum() == 11

    with (folder / "top_features.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["feature"]) for row in table] == scores_of(folder).topk(5).indices.tolist()
    for row in table:
        assert float(row["score_low"]) < float(row["score"]) < float(row["score_high"])
        assert 0 <= float(row["in_top_k"]) <= 1
        assert float(row["max_activation"]) == pytest.approx(statistics["max_activation"][int(row["feature"])].item())
        assert row["best_word"] == words[int(statistics["word_means"][int(row["feature"])].argmax())]
    for name in ("feature_scores.png", "top_features.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG") and (folder / name).stat().st_size > 5000


@pytest.fixture
def llama_3_scaled(tiny_llama: Path, tmp_path: Path) -> Callable[[int], Path]:
    """A function that gives the small model with Llama 3's rotary scaling and an original context."""

    def make(context: int) -> Path:
        folder = tmp_path / f"model-{context}"
        shutil.copytree(tiny_llama, folder)
        config = json.loads((folder / "config.json").read_text())
        config["rope_scaling"] = {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def test_rope_original_context_scores_the_model_whose_config_is_changed_likewise(
    flags: Flags, llama_3_scaled: Callable[[int], Path], tmp_path: Path
) -> None:
    long, short = llama_3_scaled(1024), llama_3_scaled(32)
    runs = {"given": (long, 32), "changed": (short, None), "its own": (long, None)}
    for name, (model, context) in runs.items():
        compute_score.main(
            flags(
                output_dir=tmp_path / name, model_path=model, rope_original_context=context, n_samples=6, n_bootstrap=0
            )
        )
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record["rope_original_context"] == context
    given, changed, own = (scores_of(tmp_path / name) for name in runs)
    assert torch.equal(given, changed)
    assert (given - own).abs().max() > 0.01 * own.abs().max()


def test_as_published_changes_defaults_and_is_part_of_what_two_runs_must_share(
    flags: Flags, llama_3_scaled: Callable[[int], Path], tiny_llama: Path, fixture_text: Path
) -> None:
    text = {"dataset_path": fixture_text, "column_name": "text", "n_samples": 9, "ignore_tokens": "0,1"}

    def identity(*more: str, **changed: Any) -> dict[str, Any]:
        args = compute_score.parse_arguments([*flags(**text, **changed), *more])
        return input_identity(args, load_inputs(args))

    ours, theirs = identity(), identity("--as_published")
    assert first_difference(ours, identity("--rows=published")) == '--rows is "stream" there and "published" here'
    assert theirs == identity("--rows=published")  # this model has no scaling to change
    assert ours["--dataset_path"] != theirs["--dataset_path"]
    assert identity("--as_published", "--rows=stream") == ours
    with pytest.raises(UserError, match="rope_original_context 4096"):
        identity("--rope_original_context=4096")

    scaled = llama_3_scaled(1024)
    assert identity("--as_published", model_path=scaled)["--rope_original_context"] == 16_384
    own = identity("--as_published", model_path=scaled, rope_original_context=64)
    assert own["--rope_original_context"] == 64


def test_an_sae_trained_with_other_frequencies_is_warned_of(
    flags: Flags, make_sae: Callable[..., Path], llama_3_scaled: Callable[[int], Path], capsys: Any
) -> None:
    sae, model = make_sae(d_in=256, rope_original_context=64), llama_3_scaled(1024)
    for context in (64, None, 32):
        load_inputs(compute_score.parse_arguments(flags(sae_path=sae, model_path=model, rope_original_context=context)))
        warned = "was trained with --rope_original_context 64" in capsys.readouterr().err
        assert warned == (context != 64)


def test_batch_sizes_change_scores_by_rounding_alone(flags: Flags, tmp_path: Path) -> None:
    sizes = [(1, 300), (7, 333), (24, 1024)]
    for rows, features in sizes:
        batches = {"minibatch_size_tokens": rows, "minibatch_size_features": features}
        compute_score.main(flags(output_dir=tmp_path / f"{rows}", n_samples=24, n_bootstrap=0, **batches))
    scores = torch.stack([scores_of(tmp_path / f"{rows}") for rows, _ in sizes]).double()
    assert (scores - scores[0]).abs().max() <= 1e-9
    table = (tmp_path / "1" / "top_features.csv").read_text().splitlines()
    assert next(csv.DictReader(table))["score_low"] == ""


def test_chunks_merge_to_the_unchunked_result_bit_for_bit(
    flags: Flags, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    sae = make_sae(d_in=256, d_sae=1024)
    weights = load_file(sae / "sae_weights.safetensors")
    weights["W_dec"][700:800] = 3 * weights["W_dec"][:100]  # similar features of different chunks
    save_file(weights, sae / "sae_weights.safetensors")
    # Chunks begin and end within blocks of features.
    blocks = {"sae_path": sae, "n_samples": 16, "ignore_tokens": "0,1", "minibatch_size_features": 300}
    whole, parts, merged = tmp_path / "whole", tmp_path / "parts", tmp_path / "merged"
    compute_score.main(flags(output_dir=whole, **blocks))
    for chunk in (2, 0):
        compute_score.main(flags(output_dir=parts, num_chunks=3, chunk_num=chunk, **blocks))
    with pytest.raises(UserError, match="--alpha is 0.7 there and 0.5 here"):
        compute_score.main(flags(output_dir=parts, num_chunks=3, chunk_num=1, alpha=0.5, **blocks))
    for replacing in (["--merge", str(parts), "--output_dir", str(parts)], flags(output_dir=parts)):
        with pytest.raises(UserError, match="holds other files"):
            compute_score.main(replacing)
    compute_score.main(flags(output_dir=parts, num_chunks=3, chunk_num=1, **blocks))
    compute_score.main(["--merge", str(parts), "--output_dir", str(merged)])
    assert_same_result(merged, whole)

    read = read_scores(parts), read_scores(whole)
    assert read[0].words == read[1].words and read[0].run["sae"] == read[1].run["sae"]
    assert read[0].statistics.keys() == read[1].statistics.keys() and read[0].digest() == read[1].digest()

    score, cluster = (read[0].statistics[name].tolist() for name in ("score", "cluster"))
    for one, other in zip(range(100), range(700, 800), strict=True):
        best = max(one, other, key=score.__getitem__)
        if not math.isnan(cluster[one] + cluster[other]):  # both among the 1,000 best
            assert cluster[one] == cluster[other] == best
    with (whole / "top_features.csv").open() as file:
        table = [(int(row["feature"]), int(row["cluster"])) for row in csv.DictReader(file)]
    assert all(cluster[feature] == best for feature, best in table) and len({best for _, best in table}) < len(table)

    weights["W_dec"][0] *= 2
    save_file(weights, sae / "sae_weights.safetensors")
    with pytest.raises(UserError, match="has changed since the chunks were computed"):
        compute_score.main(["--merge", str(parts), "--output_dir", str(merged)])


def test_two_ranks_give_the_scores_of_one_and_say_a_mistake_once(
    flags: Flags, repository: Path, tmp_path: Path
) -> None:
    compute_score.main(flags(output_dir=tmp_path / "one"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch.append(str(repository / "extraction" / "compute_score.py"))

    def run(**changed: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*launch, *flags(**changed)], env=environment(), capture_output=True, text=True, timeout=300
        )

    done = run(output_dir=tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote the scores of 1,024 features") == 1
    one, two = read_scores(tmp_path / "one"), read_scores(tmp_path / "two")
    difference = (one.statistics["score"] - two.statistics["score"]).abs().max()
    assert difference <= 1e-6 * one.statistics["score"].abs().max()
    assert torch.equal(one.statistics["firing_frequency"], two.statistics["firing_frequency"])
    assert one.run["words"] == two.run["words"] and (one.run["ranks"], two.run["ranks"]) == (1, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}

    failed = run(output_dir=tmp_path / "three", column_name="txet")
    assert failed.returncode != 0 and failed.stderr.count("has no column 'txet'") == 1
    assert "exitcode  : 2" in failed.stderr and "[rank" not in failed.stderr
    assert not (tmp_path / "three").exists()


def test_a_pass_killed_in_the_middle_continues_to_the_same_result(
    flags: Flags, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, unfinished = tmp_path / "scores", tmp_path / "scores.unfinished"
    compute_score.main(flags(output_dir=tmp_path / "whole", n_samples=320))
    command = flags(save_every_minutes=0, n_samples=320)
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

    with pytest.raises(UserError, match="--minibatch_size_tokens is 8 there and 7 here; .*or delete"):
        compute_score.main(flags(n_samples=320, minibatch_size_tokens=7))
    capsys.readouterr()
    compute_score.main(command)
    assert "continuing at row " in capsys.readouterr().out
    assert not unfinished.exists()
    assert_same_result(folder, tmp_path / "whole")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_end_in_one_line(
    flags: Flags, make_sae: Callable[..., Path], tmp_path: Path, value: float
) -> None:
    folder = make_sae(d_in=256)
    weights = load_file(folder / "sae_weights.safetensors")
    weights["b_enc"][3] = value
    save_file(weights, folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match=r"NaN or infinite \(model and SAE in float32 and float32\)"):
        compute_score.main(flags(sae_path=folder, n_samples=4))
    assert not (tmp_path / "scores").exists()


def test_every_mistake_is_one_line_and_the_last_result_stays(
    flags: Flags, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    compute_score.main(flags(n_samples=2))
    folder, empty = tmp_path / "scores", tmp_path / "empty.json"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    empty.write_text("[]")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").write_text("years of work")
    Dataset.from_dict({"tokens": [[1, 900]]}).to_parquet(tmp_path / "foreign" / "rows.parquet")
    deep = make_sae(d_in=256, name="deep", hook_name="blocks.4.hook_resid_post")
    mistakes = {
        "are required: --output_dir": {"output_dir": None},
        "holds other files": {"output_dir": tmp_path / "others"},
        "is empty": {"tokens_str_path": empty},
        "no model folder": {"model_path": tmp_path / "none"},
        r"reads 16 dimensions \(d_in\) .* but the model .* is 256 wide": {"sae_path": make_sae(name="narrow")},
        "at blocks.4.hook_resid_post, but .* layers 0 to 3": {"sae_path": deep},
        "has no column 'txet'": {"column_name": "txet"},
        "another tokenizer": {"dataset_path": tmp_path / "foreign"},
        "chunks are 0 to 3": {"num_chunks": 4, "chunk_num": 4, "output_dir": tmp_path / "chunks"},
    }
    for message, mistake in mistakes.items():
        with pytest.raises(UserError, match=message):
            compute_score.main(flags(**mistake))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in (tmp_path / "others").iterdir()] == ["thesis.tex"]
