"""What the rows of the report are called, so that each can be told from the others and traced to its run."""

import csv
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted_runs import PLAIN, STEERED, TASK, feature, rows_of, setting, write_run  # noqa: E402


@pytest.mark.parametrize(
    ("features", "label"),
    [
        ([feature(mode="add")], "add 2 × 5.84 along 7 (blocks.19.hook_resid_post)"),
        ([feature(mode="clamp", units="raw")], "clamp 7 to 2 × 5.84 (blocks.19.hook_resid_post, raw)"),
        ([feature() | {"strength": None, "max_activation": None, "value": 3.25}],
         "set 7 to 3.25 (blocks.19.hook_resid_post)"),
        ([feature(1), feature(2, hook_name="blocks.3.hook_resid_post", strength=0.5)],
         "set 1 to 2 × 5.84 (blocks.19.hook_resid_post); set 2 to 0.5 × 5.84 (blocks.3.hook_resid_post)"),
    ],
)  # fmt: skip
def test_interventions_in_words(
    features: list[dict[str, Any]], label: str, summarize: ModuleType, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", PLAIN, features=features)
    assert [row.intervention for row in rows_of(summarize, tmp_path)] == [label]


def test_saes_that_give_the_same_label_are_named(summarize: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, PLAIN, features=[feature(sae=f"/saes/{name}")])
    assert [row.intervention[-5:] for row in rows_of(summarize, tmp_path)] == [" one)", " two)"]


def test_rows_of_the_same_intervention_name_the_settings_that_differ(summarize: ModuleType, tmp_path: Path) -> None:
    for name, temperature in (("warm", 0.6), ("cold", 0.0)):
        edit = setting("configs", TASK, "generation_kwargs", "temperature", value=temperature)
        write_run(tmp_path / f"plain-{name}", PLAIN, edit=edit)
        write_run(tmp_path / name, PLAIN, features=[feature()], edit=edit)
    write_run(tmp_path / "other", PLAIN, features=[feature(8)], edit=edit)
    rows = {row.run.file.parent.name: row for row in rows_of(summarize, tmp_path)}
    steering = "set 7 to 2 × 5.84 (blocks.19.hook_resid_post)"
    cold, warm = (rows[f"plain-{name}"].title.partition(" · ")[0] for name in ("cold", "warm"))
    assert {cold, warm} == {"plain 1", "plain 2"}
    assert rows["plain-cold"].intervention == f"none · {cold} · temperature 0.0"
    assert rows["cold"].intervention == f"{steering} · temperature 0.0 · against {cold}"
    assert rows["warm"].intervention == f"{steering} · temperature 0.6 · against {warm}"
    assert rows["other"].intervention == f"{steering.replace('7', '8')} · against {cold}"


def test_rows_that_differ_in_their_questions_alone_are_told_apart_by_date(
    summarize: ModuleType, tmp_path: Path
) -> None:
    for month in (1, 2):
        problems = [f"Question {i} of month {month}?" for i in range(40)]
        write_run(tmp_path / str(month), PLAIN, problems=problems, date=f"2026-0{month}-01T00-00-00.0")
    assert [row.title for row in rows_of(summarize, tmp_path)] == [
        "plain 1 · 2026-01-01T00-00-00.0", "plain 2 · 2026-02-01T00-00-00.0",
    ]  # fmt: skip


def test_each_line_of_the_csv_leads_to_its_run(summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "runs/plain", PLAIN)
    write_run(tmp_path / "runs/deep/er", STEERED, features=[feature()], date="2026-02-03T04-05-06.7")
    summarize.main(["--results", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "out")])
    with (tmp_path / "out/summary.csv").open() as file:
        plain, steered = csv.DictReader(file)
    assert plain["results_file"] == "plain/results_2026-01-01T00-00-00.0.json" and plain["compared_with"] == ""
    assert steered["compared_with"] == plain["results_file"] and steered["date"] == "2026-02-03T04:05:06.7"
    assert (tmp_path / "runs" / steered["results_file"]).is_file()


def test_files_of_several_folders_of_results_are_told_apart(summarize: ModuleType, tmp_path: Path) -> None:
    for name, features in (("one", None), ("two", [feature()])):
        write_run(tmp_path / name / "run", PLAIN, features=features)
    runs = summarize.read_runs([tmp_path / "one", tmp_path / "two"])
    files = [row.results_file for row in summarize.summarize(runs, n_resamples=200)]
    assert files == [f"{name}/run/results_2026-01-01T00-00-00.0.json" for name in ("one", "two")]


def test_one_of_a_thing_is_no_plural(summarize: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", PLAIN[:1])
    assert rows_of(summarize, tmp_path)[0].warnings == ("1 question, fewer than the 30 that an interval needs",)


def test_tests_are_explained_only_where_the_table_has_them(summarize: ModuleType, tmp_path: Path) -> None:
    for repeats in (1, 2):
        for name, features in (("plain", None), ("steered", [feature()])):
            write_run(tmp_path / f"{repeats}/{name}", [right * repeats for right in PLAIN], features=features)
        text = summarize.markdown(rows_of(summarize, tmp_path / str(repeats)), n_resamples=200, seed=0)
        assert ("McNemar" in text) == ("exact test" in text) == (repeats == 1)
