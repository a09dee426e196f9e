"""Which baseline a steered run is compared with, which runs count at all, and which files cannot be read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted_runs import PLAIN, TASK, feature, rows_of, setting, write_run
from report.rows import Row
from report.runs import read_runs, read_samples

from transformer_lens_r1.shared.errors import UserError

DOWN = [[1 - right] for [right] in PLAIN]  # every question changes sides: no warning of too few
Edit = Callable[[dict[str, Any]], object]


def steered_of(folder: Path) -> Row:
    (row,) = (row for row in rows_of(folder) if row.run.features)
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
        pytest.param(GREEDY, setting("versions", TASK, value=2.0), id="what can be compared rather than not"),
    ],
)
def test_the_partner_is_the_baseline_that_differs_in_what_matters_less(
    better: Edit, worse: Edit, tmp_path: Path
) -> None:
    write_run(tmp_path / "better", PLAIN, edit=better, date="2026-01-01T00-00-00.0")
    write_run(tmp_path / "worse", PLAIN, edit=worse, date="2026-02-01T00-00-00.0")
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    assert steered_of(tmp_path).record["compared_with"] == "better/results_2026-01-01T00-00-00.0.json"


def test_a_complete_run_is_a_better_partner_than_a_trial_of_the_same_versions(tmp_path: Path) -> None:
    write_run(tmp_path / "trial", PLAIN[:4], edit=setting("config", "limit", value=4.0))
    write_run(tmp_path / "complete", PLAIN, edit=OTHER_VERSIONS)
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    assert steered_of(tmp_path).pair.baseline.file.parent.name == "complete"


@pytest.mark.parametrize("later", ["other data", "the same"])
def test_of_repeated_baselines_the_latest_that_fits_counts(later: str, tmp_path: Path) -> None:
    write_run(tmp_path / "early", PLAIN, date="2026-01-01T00-00-00.0")
    problems = [f"Another {i}?" for i in range(40)] if later == "other data" else None
    write_run(tmp_path / "later", PLAIN, problems=problems, date="2026-02-01T00-00-00.0")
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    row = steered_of(tmp_path)
    assert row.compared == 40 and row.warnings == ()
    assert row.pair.baseline.file.parent.name == ("later" if later == "the same" else "early")


def test_runs_of_other_code_that_steers_are_never_a_baseline(tmp_path: Path) -> None:
    edit = setting("config", "model_args", value="pretrained=/models/tiny,dtype=float32,sae_path=/saes/x,sae_id=7")
    write_run(tmp_path / "foreign", PLAIN, edit=edit, date="2026-03-01T00-00-00.0")
    write_run(tmp_path / "steered", DOWN, features=[feature()])
    foreign, own = sorted(rows_of(tmp_path), key=lambda row: row.run.file)
    assert own.pair.baseline is None and "not compared: no baseline of tiny on planted" in own.warnings
    assert "steered by other code: its results file does not record the intervention" in foreign.warnings
    assert foreign.record["intervention"] == "steered, not recorded how"
    write_run(tmp_path / "plain", PLAIN)
    assert steered_of(tmp_path).pair.baseline.file.parent.name == "plain"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (setting("config", "sae", value={"layer": 19}), r"KeyError\('features'\)"),
        (setting("results", TASK, "truncated,none", value=float("nan")), "truncated is nan, expected a finite number"),
    ],
)
def test_a_broken_results_file_is_named_in_one_line(edit: Edit, reason: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "broken", PLAIN, features=[feature()], edit=edit)
    with pytest.raises(UserError, match=reason) as error:
        read_runs([tmp_path])
    assert str(error.value).startswith(f"{folder}/results_") and "\n" not in str(error.value)


def test_a_sample_that_is_cut_off_or_no_number_is_named_with_its_line(tmp_path: Path) -> None:
    samples = next(write_run(tmp_path / "broken", PLAIN).glob("samples_*"))
    *first, third = samples.read_text().splitlines(keepends=True)[:3]
    infinite = json.dumps(json.loads(third) | {"exact_match": float("inf")})
    for last, reason in (
        (infinite.encode(), "exact_match is inf"),
        (third.encode()[:50] + "½".encode()[:1], "UnicodeDecode"),
    ):
        samples.write_bytes("".join(first).encode() + last)
        with pytest.raises(UserError, match=f"broken at line 3 .*{reason}"):
            read_samples(samples)
