"""compute_score.py: the expected scores of the fixtures, the folder it writes, and one line for each mistake."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import hash_file

Run = Callable[..., Path]


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("extraction/compute_score.py")


@pytest.fixture
def score(script: ModuleType, tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path, tmp_path: Path) -> Run:
    """A function that runs the script on the fixtures, with the given flags instead, and returns the scores folder."""

    def run(**flags: Any) -> Path:
        arguments = {
            "model_path": tiny_llama,
            "sae_path": legacy_sae,
            "dataset_path": fixture_tokens,
            "column_name": "tokens",
            "dtype": "float32",
            "device": "cpu",
            "output_dir": tmp_path / "scores",
            **flags,
        }
        script.main([f"--{name}={value}" for name, value in arguments.items() if value is not None])
        return Path(arguments["output_dir"])

    return run


def load_scores(folder: Path) -> torch.Tensor:
    return torch.load(folder / "feature_scores.pt", weights_only=True)


@pytest.mark.parametrize("name", ["windowed", "pointwise_all"])
def test_the_expected_scores_are_reproduced(score: Run, fixtures_dir: Path, name: str) -> None:
    expected = json.loads((fixtures_dir / "expected_reason_scores.json").read_text())[name]
    settings = expected["args"]
    left, right = settings["expand_range"] or (0, 0)
    folder = score(
        expand_range=f"{left},{right}",
        ignore_tokens=",".join(map(str, settings["ignore_tokens"])),
        n_samples=settings["n_samples"],
        alpha=settings["alpha"],
        seed=settings["shuffle_seed"],
        tokens_str_path=fixtures_dir / settings["vocabulary"],
    )
    scores = load_scores(folder)
    assert scores.dtype == torch.float32
    assert (scores.double() - torch.tensor(expected["scores"], dtype=torch.float64)).abs().max() <= 1e-7


def test_the_vocabulary_that_ships_is_the_papers(repository: Path, fixtures_dir: Path) -> None:
    shipped = json.loads((repository / "extraction" / "reason_tokens.json").read_text())
    assert shipped == json.loads((fixtures_dir / "reason_tokens.json").read_text())


def test_minibatch_sizes_do_not_change_scores(score: Run, tmp_path: Path) -> None:
    runs = [
        score(
            n_samples=12, minibatch_size_tokens=rows, minibatch_size_features=features, output_dir=tmp_path / f"{rows}"
        )
        for rows, features in [(12, 1024), (1, 100), (5, 333)]
    ]
    scores = torch.stack([load_scores(folder) for folder in runs]).double()
    assert (scores - scores[0]).abs().max() <= 1e-9


def test_statistics_are_those_of_transformers_and_the_sae_weights(
    score: Run, tiny_llama: Path, legacy_sae: Path, fixture_tokens: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from transformer_lens_r1.shared.data import load_rows

    folder = score(n_samples=8, ignore_tokens="0,1")
    rows = torch.tensor(load_rows(fixture_tokens).shuffle(seed=42)[:8]["tokens"])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad(), safe_open(legacy_sae / "sae_weights.safetensors", framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        residual = model(rows, output_hidden_states=True).hidden_states[3]
        raw = torch.relu(residual @ weights["W_enc"] + weights["b_enc"])
        activations = (raw * weights["W_dec"].norm(dim=1))[rows > 1]  # ids 0 and 1 are ignored

    with safe_open(folder / "feature_stats.safetensors", framework="pt") as file:
        statistics = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        words = json.loads(file.metadata()["words"])
    torch.testing.assert_close(statistics["max_activation"], activations.amax(dim=0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(statistics["firing_frequency"], (activations > 0).float().mean(dim=0), atol=2e-3, rtol=0)
    assert statistics["word_means"].shape == (1024, len(words)) and statistics["entropy"].shape == (1024,)

    run = json.loads((folder / "run.json").read_text())
    assert run["tokens"] == 8 * 128 and run["reasoning_tokens"] + run["other_tokens"] == len(activations)
    assert run["sae"]["weights_sha256"] == hash_file(legacy_sae / "sae_weights.safetensors")
    assert run["words"].keys() == set(words) and run["arguments"]["alpha"] == 0.7

    with (folder / "top_features.csv").open() as file:
        table = list(csv.DictReader(file))
    scores = load_scores(folder)
    assert len(table) == 100 and [int(row["feature"]) for row in table] == scores.topk(100).indices.tolist()
    best = int(table[0]["feature"])
    assert float(table[0]["max_activation"]) == pytest.approx(statistics["max_activation"][best].item())
    assert table[0]["best_word"] == words[int(statistics["word_means"][best].argmax())]


def test_text_is_scored_in_the_saes_own_rows(score: Run, fixture_text: Path) -> None:
    folder = score(dataset_path=fixture_text, column_name=None, n_samples=4, dtype="bfloat16")
    run = json.loads((folder / "run.json").read_text())
    assert (run["rows"], run["context_size"], run["ignored_ids"]) == (4, 128, [0, 1])
    assert load_scores(folder).isfinite().all()


def test_every_mistake_is_one_line_and_the_last_result_stays(
    script: ModuleType,
    score: Run,
    make_sae: Callable[..., Path],
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    folder = score(n_samples=2)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    empty, notes = tmp_path / "empty.json", tmp_path / "notes.json"
    empty.write_text("[]")
    notes.write_text('{"wait": 1}')
    bare_model = tmp_path / "bare"
    bare_model.mkdir()
    (bare_model / "config.json").write_text((tiny_llama / "config.json").read_text())
    others = tmp_path / "others"
    others.mkdir()
    (others / "thesis.tex").write_text("years of work")
    Dataset.from_dict({"tokens": [[1, 900]]}).to_parquet(tmp_path / "foreign" / "rows.parquet")

    mistakes = {
        "give --output_dir": {"output_dir": None},
        "holds other files": {"output_dir": others},
        "cannot read the vocabulary": {"tokens_str_path": tmp_path / "none.json"},
        "is empty": {"tokens_str_path": empty},
        "not a list of strings": {"tokens_str_path": notes},
        "no SAE folder": {"sae_path": tmp_path / "none"},
        "no model folder": {"model_path": tmp_path / "none"},
        "no weights": {"model_path": bare_model},
        r"reads 16 dimensions \(d_in\), but the model .* is 256 wide": {"sae_path": make_sae(name="narrow")},
        "layers of .* are 0 to 3": {"sae_path": make_sae(d_in=256, name="deep", hook_name="blocks.4.hook_resid_post")},
        "expected blocks.<layer>.hook_resid_post": {
            "sae_path": make_sae(d_in=256, name="mlp", hook_name="blocks.1.hook_mlp_out")
        },
        "has no column 'txet'": {"column_name": "txet"},
        "no data set folder": {"dataset_path": tmp_path / "none"},
        "another tokenizer": {"dataset_path": tmp_path / "foreign"},
        "chunks are 0 to 3": {"num_chunks": 4, "chunk_num": 4, "output_dir": tmp_path / "chunks"},
        "CUDA devices|expected auto": {"device": "cuda:99"},
    }
    for message, flags in mistakes.items():
        with pytest.raises(UserError, match=message):
            score(**flags)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (others / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alhpa", "1"], "did you mean '--alpha'"),
        (["--expand_range", "1"], "expected two whole numbers"),
        (["--alpha", "-1"], "at least 0"),
        (["--n_samples", "0"], "at least 1"),
    ],
)
def test_a_wrong_flag_is_one_line(
    script: ModuleType, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--model_path", "m", "--sae_path", "s", "--dataset_path", "d", *flags])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["compute_score", "compute_dashboard"])
def test_the_shell_scripts_run_from_anywhere_and_pass_flags_on(repository: Path, tmp_path: Path, name: str) -> None:
    shell = repository / "extraction" / "scripts" / f"{name}.sh"
    assert os.access(shell, os.X_OK)
    environment = {**os.environ, "PYTHON": sys.executable, "SAE_ID": "", "SAE_PATH": "x"}
    done = subprocess.run([shell, "--n_smaples", "3"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr == "error: unknown flag --n_smaples; did you mean '--n_samples'? (--help lists all)\n"
    )
