"""falsify_features.py: what it measures is what the full SAE gives, however it is interrupted or shared out."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compute_dashboard
import compute_score
import falsify_features
import numpy as np
import pytest
import torch
from datasets import Dataset
from falsification import measure
from falsification.injection import STRATEGIES
from falsification.material import Experiment, Observed, Settings
from reasonscore.sae import find_sae, load_sae
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from transformer_lens_r1.shared.data import load_rows
from transformer_lens_r1.shared.errors import UserError

FEATURES, N_TEXTS, LENGTH, LAYER = (3, 17, 40), 10, 16, 2
Flags = Callable[..., list[str]]


@pytest.fixture(scope="module")
def ordinary_text(fixtures_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of tokens that are not in the reasoning text: its own tokens, but every row backwards."""
    folder = tmp_path_factory.mktemp("ordinary")
    rows = [row[::-1] for row in load_rows(fixtures_dir / "tokens", columns=("tokens",))["tokens"]]
    Dataset.from_dict({"tokens": rows}).to_parquet(folder / "rows.parquet")
    return folder


@pytest.fixture(scope="module")
def scores(fixtures_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "scores"
    compute_score.main(
        [
            f"--{name}={value}"
            for name, value in {
                "model_path": fixtures_dir / "tiny-llama", "sae_path": fixtures_dir / "legacy-sae", "device": "cpu",
                "dataset_path": fixtures_dir / "tokens", "column_name": "tokens", "dtype": "float32",
                "n_samples": 64, "n_bootstrap": 0, "output_dir": folder,
            }.items()
        ]
    )  # fmt: skip
    return folder


@pytest.fixture
def flags(fixtures_dir: Path, ordinary_text: Path, scores: Path, tmp_path: Path) -> Flags:
    def line(**changed: Any) -> list[str]:
        arguments = {
            "model_path": fixtures_dir / "tiny-llama",
            "sae_path": fixtures_dir / "legacy-sae",
            "dataset_path": fixtures_dir / "tokens",
            "column_name": "tokens",
            "ordinary_dataset_path": ordinary_text,
            "ordinary_column_name": "tokens",
            "scores_dir": scores,
            "dtype": "float32",
            "device": "cpu",
            "n_samples": 48,
            "n_texts": N_TEXTS,
            "text_length": LENGTH,
            "features": ",".join(map(str, FEATURES)),
            "n_matched": 0,
            "minibatch_size_tokens": 2,
            "output_dir": tmp_path / "out",
            **changed,
        }
        return [
            f"--{name}={value}" if value != "" else f"--{name}"
            for name, value in arguments.items()
            if value is not None
        ]

    return line


def table(folder: Path, name: str = "falsification.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}


@pytest.fixture
def full_sae(fixtures_dir: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Ids [texts, length] to the activations of FEATURES, by transformers' model and all features of the SAE."""
    model = AutoModelForCausalLM.from_pretrained(fixtures_dir / "tiny-llama", dtype=torch.float32)
    sae = load_sae(find_sae(str(fixtures_dir / "legacy-sae")))

    def activations(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            stream = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states[LAYER + 1]
            return sae.encode(stream)[..., list(FEATURES)].numpy()

    return activations


def test_every_text_measured_is_what_the_full_sae_gives_on_it(
    flags: Flags, full_sae: Callable[[np.ndarray], np.ndarray], ordinary_text: Path, fixtures_dir: Path, tmp_path: Path
) -> None:
    falsify_features.main(flags(first_rows=""))
    saved = load_file(tmp_path / "out" / "falsification.safetensors")
    ignored = json.loads((tmp_path / "out" / "falsification.json").read_text())["ignored_ids"]

    def counted(ids: np.ndarray) -> np.ndarray:
        return np.where(np.isin(ids, ignored)[..., None], 0, full_sae(ids))

    close = {"rtol": 1e-4, "atol": 1e-4}
    assert np.allclose(saved["ordinary"], counted(saved["ordinary_ids"]).max(axis=1).T, **close)
    assert np.allclose(saved["reasoning"], counted(saved["reasoning_ids"]).transpose(2, 0, 1), **close)
    texts = [np.array(load_rows(path)["tokens"][:48]) for path in (fixtures_dir / "tokens", ordinary_text)]
    comma = AutoTokenizer.from_pretrained(fixtures_dir / "tiny-llama").encode(",", add_special_tokens=False)[-1]
    settings = Settings(comma, tuple(ignored), n_texts=N_TEXTS, text_length=LENGTH)
    experiment = Experiment(*(Observed(ids, [counted(ids).transpose(2, 0, 1)]) for ids in texts), settings)
    units = experiment.units()
    assert {unit.strategy for unit in units} == set(range(len(STRATEGIES) + 1))
    for unit in units:
        for side, variants in enumerate(experiment.variants(unit)):
            ids, there = (np.stack(part) for part in zip(*variants, strict=True))
            own = counted(ids)[..., unit.feature]
            untouched = np.where(there, 0, own)
            expected = [own.max(axis=1), untouched.max(axis=1), untouched.sum(axis=1)]
            assert np.allclose(saved["changed"][unit.feature, unit.strategy, side], expected, **close)


def test_every_number_that_is_missing_has_its_reason_beside_it(flags: Flags, tmp_path: Path) -> None:
    falsify_features.main(flags(features=None, topk=10, n_matched=2))
    rows = table(tmp_path / "out")
    assert len(rows) == 30 and [row["matched_to"] != "" for row in rows] == [False] * 10 + [True] * 20
    for row in rows:
        reasons = {
            "recovered": ("Recovered share not defined", "nothing was injected"),
            "auroc": ("AUROC of tokens not defined",),
            "auroc_bigrams": ("AUROC of bigrams not defined",),
            "r2_token": ("never active on either text",),
            "stays": ("on its top tokens alone", "never active on", "nothing was injected"),
        }
        for name, words in reasons.items():
            assert row[name] or any(reason.lower() in row["notes"].lower() for reason in words), (row, name)
        assert row["verdict"] in ("token", "mixed", "context", "unclear")
        assert (row["by"] == "") == (row["verdict"] == "unclear")
    by_strategy = table(tmp_path / "out", "strategies.csv")
    assert {row["strategy"] for row in by_strategy} == set(STRATEGIES)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="feature-{row["feature"]}"' in page for row in rows) and "put-in" in page
    assert "http" not in page.replace("http-equiv", "")


def test_an_interrupted_run_continues_to_the_same_result(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falsify_features.main(flags(output_dir=tmp_path / "whole"))
    monkeypatch.setattr(falsify_features, "SAVE_EVERY", 0.0)
    run, passes = measure.measure_changed, []

    def cut_off(*args: Any) -> Any:
        for done in run(*args):
            passes.append(done)
            yield done
            if len(passes) in (3, 9):
                raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure_changed", cut_off)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            falsify_features.main(flags())
    falsify_features.main(flags())
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()
    before = len(passes)
    falsify_features.main(flags(output_dir=tmp_path / "again"))
    assert len(passes) - before > before - 9  # the third start did not do all again


def test_a_run_with_other_settings_does_not_continue_it(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(falsify_features, "measure", lambda *args: pytest.fail("the weights are loaded"))
    with pytest.raises(pytest.fail.Exception):
        falsify_features.main(flags())
    with pytest.raises(UserError, match="--n_texts"):
        falsify_features.main(flags(n_texts=11))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_length": 500}, "--text_length 500: the rows have 128 tokens"),
        ({"features": "1,5000"}, "--features 5000: the SAE's features are 0 to 1023"),
        ({"strategies": "prepend,injct_bigram"}, "unknown strategy 'injct_bigram'; did you mean 'inject_bigram'"),
        ({"features": None, "topk": 100, "n_matched": 20}, "ask for fewer"),
        ({"text_length": 15}, "--text_length 15: expected at least 16"),
        ({"n_texts": 9}, "--dataset_path gives 9 texts of 16 tokens, fewer than 10"),
        ({"strategies": ","}, "--strategies: expected some of"),
    ],
)
def test_mistakes_end_in_one_line_before_weights_load(
    flags: Flags,
    changed: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(falsify_features, "load_weights", lambda *_: pytest.fail("the weights are loaded"))
    with pytest.raises((UserError, SystemExit)) as caught:
        falsify_features.main(flags(**changed))
    assert message in str(caught.value) + capsys.readouterr().err


def test_reasoning_text_is_no_ordinary_text(flags: Flags, fixtures_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the reasoning text too"):
        falsify_features.main(flags(ordinary_dataset_path=fixtures_dir / "tokens"))
    same = tmp_path / "same"
    shutil.copytree(fixtures_dir / "tokens", same)
    with pytest.raises(UserError, match="48 of the 48 rows of ordinary text are rows of the reasoning text too"):
        falsify_features.main(flags(ordinary_dataset_path=same))


def test_scores_of_another_sae_are_refused(flags: Flags, make_sae: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="those of another SAE"):
        falsify_features.main(flags(sae_path=make_sae(d_in=256, d_sae=1024)))


def test_scores_alone_have_nothing_to_match_by(flags: Flags, scores: Path) -> None:
    with pytest.raises(UserError, match="--n_matched 0"):
        falsify_features.main(flags(scores_dir=scores / "feature_scores.pt", n_matched=1))


def test_two_ranks_give_what_one_gives(flags: Flags, repository: Path, tmp_path: Path) -> None:
    falsify_features.main(flags(output_dir=tmp_path / "one", minibatch_size_tokens=3))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += [str(repository / "extraction" / "falsify_features.py"), *flags(minibatch_size_tokens=3)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote the test of 3 features") == 1
    one, two = (load_file(tmp_path / name / "falsification.safetensors") for name in ("one", "out"))
    for name in ("ordinary", "reasoning", "changed"):
        assert np.allclose(two[name], one[name], rtol=1e-4, atol=1e-5, equal_nan=True)
    for rows in zip(table(tmp_path / "one"), table(tmp_path / "out"), strict=True):
        assert rows[0]["verdict"] == rows[1]["verdict"] and rows[0]["tokens"] == rows[1]["tokens"]


def test_the_dashboards_show_the_result_of_their_own_sae_alone(flags: Flags, tmp_path: Path) -> None:
    falsify_features.main(flags())
    shared = ("model_path", "sae_path", "dataset_path", "column_name", "scores_dir", "dtype", "device", "n_samples")
    common = [flag for flag in flags() if flag.removeprefix("--").split("=")[0] in shared]
    pages = ["--features=3,5", f"--falsification_dir={tmp_path / 'out'}", f"--output_dir={tmp_path / 'pages'}"]
    compute_dashboard.main([*common, *pages])
    text = {feature: (tmp_path / "pages" / f"feature_{feature}.html").read_text() for feature in (3, 5)}
    assert "Does feature 3 mean reasoning?" in text[3] and "mean reasoning?" not in text[5]
    record = tmp_path / "out" / "falsification.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "sae_sha256": "0" * 64}))
    with pytest.raises(UserError, match="about another SAE"):
        compute_dashboard.main([*common, *pages])
