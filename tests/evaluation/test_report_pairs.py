"""Which plain run a steered one is compared with, which runs count at all, and what is said of the comparison."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted_runs import PLAIN, TASK, feature, rows_of, setting, write_run  # noqa: E402

DOWN = [[1 - right] for [right] in PLAIN]  # every question changes sides: no warning of too few
OTHER_CODE = "answers are scored by other code"
Edit = Callable[[dict[str, Any]], object]


def steered_of(summarize: ModuleType, folder: Path) -> Any:
    (row,) = (row for row in rows_of(summarize, folder) if row.run.features)
    return row


def together(*edits: Edit) -> Edit:
    """Several edits as one."""
    return lambda results: [edit(results) for edit in edits]


OTHER_VERSIONS = together(
    setting("lm_eval_version", value="0.4.14"),
    setting("transformers_version", value="5.20"),
    setting("pretty_env_info", value="PyTorch version: 2.14\n"),
)
GREEDY = setting("configs", TASK, "generation_kwargs", "temperature", value=0.0)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param(OTHER_VERSIONS, GREEDY, id="other versions rather than another temperature"),
        pytest.param(setting("config", "device", value="cpu"), GREEDY, id="another device rather than a temperature"),
        pytest.param(GREEDY, setting("versions", TASK, value=2.0), id="what can be compared rather than not"),
        pytest.param(lambda results: None, OTHER_VERSIONS, id="the same versions"),
    ],
)
def test_the_partner_is_the_plain_run_that_differs_in_what_matters_less(
    better: Edit, worse: Edit, summarize: ModuleType, tmp_path: Path
) -> None:
    write_run(tmp_path / "better", PLAIN, edit=better, date="2026-01-01T00-00-00.0")
    write_run(tmp_path / "worse", PLAIN, edit=worse, date="2026-02-01T00-00-00.0")
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    row = steered_of(summarize, tmp_path)
    assert row.pair.plain.file.parent.name == "better"
    assert row.compared_with == "better/results_2026-01-01T00-00-00.0.json"


def test_a_complete_run_is_a_better_partner_than_a_trial_of_the_same_versions(
    summarize: ModuleType, tmp_path: Path
) -> None:
    write_run(tmp_path / "trial", PLAIN[:4], edit=setting("config", "limit", value=4.0))
    write_run(tmp_path / "complete", PLAIN, edit=OTHER_VERSIONS)
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    row = steered_of(summarize, tmp_path)
    assert row.pair.plain.file.parent.name == "complete" and row.compared == 40


@pytest.mark.parametrize("later", ["other data", "no samples"])
def test_a_later_plain_run_does_not_hide_the_one_that_fits(later: str, summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "fits", PLAIN, date="2026-01-01T00-00-00.0")
    problems = [f"Another {i}?" for i in range(40)] if later == "other data" else None
    folder = write_run(tmp_path / "later", PLAIN, problems=problems, date="2026-02-01T00-00-00.0")
    if later == "no samples":
        next(folder.glob("samples_*")).unlink()
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    row = steered_of(summarize, tmp_path)
    assert row.compared == 40 and row.pair.plain.file.parent.name == "fits" and row.warnings == ()


def test_a_run_without_samples_gives_way_to_a_later_one_with_them(summarize: ModuleType, tmp_path: Path) -> None:
    for name, date in (("silent", "2026-01-01T00-00-00.0"), ("again", "2026-02-01T00-00-00.0")):
        write_run(tmp_path / name, PLAIN, date=date)
    next((tmp_path / "silent").glob("samples_*")).unlink()
    assert [row.run.file.parent.name for row in rows_of(summarize, tmp_path)] == ["again"]


@pytest.mark.parametrize(
    ("plain", "steered", "marked"),
    [
        ({"scoring_sha256": "a"}, {"scoring_sha256": "b"}, True),
        (
            {"scoring_sha256": "a", "math_verify_version": "1"},
            {"scoring_sha256": "a", "math_verify_version": "2"},
            True,
        ),
        ({"scoring_sha256": "a"}, {"scoring_sha256": "a"}, False),
        (None, {"scoring_sha256": "b"}, False),  # an older run does not say
        ({"scoring_sha256": "a"}, None, False),
    ],
)
def test_runs_whose_answers_other_code_checked_are_marked(
    plain: object, steered: object, marked: bool, summarize: ModuleType, tmp_path: Path
) -> None:
    for name, scoring, features in (("plain", plain, None), ("steered", steered, [feature()])):
        edit = setting("config", "scoring", value=scoring) if scoring else lambda results: None
        write_run(tmp_path / name, DOWN if features else PLAIN, features=features, edit=edit)
    assert steered_of(summarize, tmp_path).warnings == ((OTHER_CODE,) if marked else ())


def test_numbers_typed_on_the_command_line_are_numbers(summarize: ModuleType, tmp_path: Path) -> None:
    typed = {"temperature": "0.6", "max_gen_toks": "1024"}
    write_run(tmp_path / "plain", PLAIN, edit=setting("configs", TASK, "generation_kwargs", value=typed))
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    assert steered_of(summarize, tmp_path).warnings == ()


def test_a_plain_run_that_was_cut_off_marks_the_comparison(summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", PLAIN, edit=setting("results", TASK, "truncated,none", value=0.5))
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    (warning,) = steered_of(summarize, tmp_path).warnings
    assert warning.startswith("the token limit cut off 50 % of the plain run's answers")


@pytest.mark.parametrize(
    "edit",
    [
        setting(
            "config", "model_args", value="pretrained=/models/tiny,dtype=float32,sae_path=/saes/x,sae_feature_idx=7"
        ),
        setting("config", "model", value="steered"),
        setting("config", "model_args", "steer_path", value="/vectors/x.pt"),
    ],
)
def test_runs_of_other_code_that_steers_are_never_plain(edit: Edit, summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "foreign", PLAIN, edit=edit, date="2026-03-01T00-00-00.0")
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    foreign, own = sorted(rows_of(summarize, tmp_path), key=lambda row: row.run.file)
    assert own.pair.plain is None and "not compared: no plain run of tiny on planted" in own.warnings
    assert "steered by other code: its results file does not record the intervention" in foreign.warnings
    assert foreign.intervention.startswith("steered, not recorded how") and "/" not in foreign.intervention
    write_run(tmp_path / "plain", PLAIN)
    assert steered_of(summarize, tmp_path).pair.plain.file.parent.name == "plain"


def drop(key: str) -> Edit:
    """An edit that leaves a value out of the record of the first feature."""
    return lambda results: results["config"]["sae"]["features"][0].pop(key)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (drop("sae"), "a feature in config.sae has sae missing"),
        (drop("value"), "a feature in config.sae has value missing"),
        (setting("config", "sae", value={}), "config.sae names no feature"),
        (setting("config", "sae", value={"features": [7]}), "config.sae has 7 in place of a feature"),
        (setting("results", TASK, "truncated,none", value=float("nan")), "truncated is nan, expected a finite number"),
        (setting("n-samples", TASK, "effective", value=0), "planted has 0 questions"),
        (setting("config", value=[1]), "no attribute 'get'"),
    ],
)
def test_a_broken_results_file_is_named_in_one_line(
    edit: Edit, reason: str, summarize: ModuleType, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "broken", PLAIN, features=[feature()], edit=edit)
    with pytest.raises(summarize.UserError, match=reason) as error:
        summarize.read_runs([tmp_path])
    assert str(error.value).startswith(f"{folder}/results_") and "\n" not in str(error.value)


def test_a_sample_that_is_no_number_is_named_with_its_line(summarize: ModuleType, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "broken", PLAIN)
    samples = next(folder.glob("samples_*"))
    lines = samples.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"exact_match": float("inf")})
    samples.write_text("\n".join(lines))
    with pytest.raises(summarize.UserError, match="broken at line 3 .*exact_match is inf"):
        summarize.read_runs([tmp_path])


def test_answers_are_counted_not_questions(summarize: ModuleType, tmp_path: Path) -> None:
    texts = [[f"answer {j} to {i}" for j in range(4)] for i in range(40)]
    changed = [[text + "!" * (i < 3 and j < 2) for j, text in enumerate(row)] for i, row in enumerate(texts)]
    write_run(tmp_path / "plain", [[1.0] * 4] * 40, texts=texts)
    write_run(tmp_path / "steered", [[1.0] * 4] * 40, texts=changed, features=[feature()])
    assert steered_of(summarize, tmp_path).texts_changed == 6
