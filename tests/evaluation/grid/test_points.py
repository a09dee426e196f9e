"""What evaluate.py does before the model starts: it reads scores and grids, names mistakes, and lists its runs."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lm_eval_sae.engines.hf_model import HFSAE
from lm_eval_sae.errors import UserError

TASK = "quickstart_problems"


def with_grid(folder: Path, sae: Path, **changes: Any) -> list[str]:
    """The flags of a grid into `folder`, with a grid that is written there; a change to None leaves its key out."""
    content = {"sae_path": str(sae), "sae_max_activation": 2.0, "strengths": [1, 2], "features": [3, 5], **changes}
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "grid.yaml").write_text(yaml.safe_dump(content))
    return ["--grid", str(folder / "grid.yaml"), "--output_dir", str(folder / "out")]


def test_scores_give_the_best_features_with_their_own_maxima(evaluate: ModuleType, scores: Path, sae: Path) -> None:
    shared = {"sae_path": str(sae)}
    points = evaluate.read_scores(scores, topk=2, features=[], strengths=[2], shared=shared)
    settings = [point.steering.features[0] for point in points]
    assert [setting.feature_idx for setting in settings] == [12, 40]
    maxima = torch.linspace(1, 4, 64)
    assert [setting.value for setting in settings] == pytest.approx([2 * maxima[12].item(), 2 * maxima[40].item()])
    (chosen,) = evaluate.read_scores(scores, topk=2, features=[3], strengths=[1], shared=shared)
    assert chosen.name == "sae-3-x1" and chosen.steering.features[0].value == pytest.approx(maxima[3].item())

    as_published = {**shared, "sae_mode": "published"}
    (point,) = evaluate.read_scores(scores, topk=2, features=[3], strengths=[2], shared=as_published)
    assert (point.name, point.arguments["sae_mode"]) == ("sae-3-published-x2", "published")
    norm = load_file(sae / "sae_weights.safetensors")["W_dec"][3].norm().item()
    (setting,) = point.steering.features
    assert (setting.mode, setting.units) == ("published", "raw")
    assert setting.value == pytest.approx(2 * maxima[3].item() / norm)


def test_the_best_are_distinct_unless_told_otherwise(
    evaluate: ModuleType, scores: Path, sae: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(scores, tmp_path / "scores")
    (folder / "top_features.csv").write_text("rank,feature,cluster,score\n1,12,12,3\n2,40,12,2\n3,8,8,1\n4,9,8,0\n")

    def best(topk: int, **options: Any) -> list[int]:
        options = {"features": [], "strengths": [1], "shared": {"sae_path": str(sae)}, **options}
        points = evaluate.read_scores(folder, topk=topk, **options)
        return [point.steering.features[0].feature_idx for point in points]

    assert best(2) == [12, 8] and best(3, keep_similar=True) == [12, 40, 8]
    with pytest.raises(
        UserError, match=r"4 best features, 2 of them distinct \(--keep_similar takes all\), --topk .* 3;"
    ):
        best(3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strenghts": [1]}, "unknown key 'strenghts'; did you mean 'strengths'?"),
        ({"sae_strength": 2}, "the strengths of a sweep are a list"),
        ({"strengths": []}, "strengths is [], expected a list"),
        ({"strengths": [float("nan")]}, "the strength nan is no number"),
        ({"strengths": [2, 2.0]}, "feature 3 with strength 2 twice"),
        ({"features": [3, 64]}, "feature 2: "),
        ({"sae_max_activation": None}, "feature 1: sae_max_activation is missing"),
    ],
)  # fmt: skip
def test_mistakes_in_a_grid(
    change: dict[str, Any], said: str, evaluate: ModuleType, sae: Path, flags: list[str], tmp_path: Path,
    starts: list[HFSAE],
) -> None:  # fmt: skip
    with pytest.raises(UserError) as error:
        evaluate.main([*with_grid(tmp_path, sae, **change), *flags])
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and starts == []


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (["--grid", "{grid}", "--strengthz", "1"], "did you mean '--strengths'?"),
        (["--grid", "{grid}", "--strengths", "1"], "--strengths is for --scores_dir; it stands in the file of --grid"),
        (["--keep_similar"], "--keep_similar is for --scores_dir"),
        (["--topk", "1"], "--topk is for --scores_dir"),
        (["--only", "steered"], "--only steered, but nothing is"),
        (["--grid", "{grid}", "--as_published"], "--as_published is not for --grid: write sae_mode"),
        (["--grid", "{grid}", "--output_path", "x"], "--output_path is not for evaluate.py"),
        (["--grid", "{grid}", "--model", "openai-completions"], "cannot steer; expected hf or vllm"),
        (["--scores_dir", "{scores}", "--topk", "9"], "has the 3 best features, --topk asks for 9"),
        (["--scores_dir", "{scores}", "--topk", "3"], "feature 7 never fired"),
        (["--scores_dir", "{scores}", "--features", "4", "--topk", "1"], "both --topk and --features"),
        (["--scores_dir", "/nowhere"], "no scores folder at /nowhere"),
    ],
)
def test_mistakes_in_flags(
    own: list[str], said: str, evaluate: ModuleType, sae: Path, grid: Path, scores: Path, flags: list[str],
    tmp_path: Path, starts: list[HFSAE],
) -> None:  # fmt: skip
    own = [word.format(grid=grid, scores=scores, tmp=tmp_path) for word in own]
    flags = [
        f"{flag},sae_path={sae}" if flag.startswith("pretrained") and "--scores_dir" in own else flag for flag in flags
    ]
    with pytest.raises(UserError) as error:
        evaluate.main([*flags, "--output_dir", str(tmp_path / "out"), *own])
    assert said in str(error.value)
    assert not (tmp_path / "out").exists() and starts == []


def test_scores_and_models_of_another_sae_are_refused(
    evaluate: ModuleType, make_sae: Callable[..., Path], scores: Path, sae: Path, flags: list[str], tmp_path: Path
) -> None:
    def points(of: Path) -> list[Any]:
        return evaluate.read_scores(scores, topk=1, features=[], strengths=[1], shared={"sae_path": str(of)})

    assert len(points(sae)) == 1
    with pytest.raises(UserError, match="are of an SAE with other weights"):
        points(make_sae("jumprelu"))
    with pytest.raises(UserError, match="are of an SAE at blocks.1.hook_resid_post, this one is at blocks.2"):
        points(make_sae("standard", hook_name="blocks.2.hook_resid_post"))
    with pytest.raises(UserError, match="d_in 128 but .* has hidden size 256"):
        evaluate.main([*with_grid(tmp_path, make_sae("standard", d_in=128)), *flags])


def test_the_plan_loads_and_writes_nothing(
    evaluate: ModuleType, sae: Path, flags: list[str], tmp_path: Path, starts: list[HFSAE],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    evaluate.main([*with_grid(tmp_path, sae), *flags, "--plan"])
    said = capsys.readouterr().out
    assert said.startswith("5 runs; 0 finished before\n")
    assert "set 5 to 2 × 2" in said
    assert starts == [] and not (tmp_path / "out").exists()


def test_a_mistake_is_one_line_and_status_2(repository: Path, tmp_path: Path) -> None:
    script = str(repository / "evaluation" / "evaluate.py")
    command = [sys.executable, script, "--grid", "grid.yaml", "--output_dir", "out", "--tasks", "math-500"]
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "error: no file at --grid=grid.yaml\n")
    assert list(tmp_path.iterdir()) == []
