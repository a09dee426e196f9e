"""What the rows of the report are called, so that each can be told from the others and traced to its run."""

import csv
from pathlib import Path

import summarize
from planted_runs import PLAIN, STEERED, TASK, feature, rows_of, setting, write_run


def test_saes_that_give_the_same_label_are_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, PLAIN, features=[feature(sae=f"/saes/{name}", mode="clamp", units="raw")])
    assert [row.record["intervention"] for row in rows_of(tmp_path)] == [
        f"clamp 7 to 2 × 5.84 (blocks.19.hook_resid_post, raw, {name})" for name in ("one", "two")
    ]


def test_models_of_one_name_in_two_places_are_told_apart(tmp_path: Path) -> None:
    for place in ("here", "there"):
        edit = setting("model_name", value=f"/{place}/model")
        write_run(tmp_path / f"{place}-plain", PLAIN, edit=edit)
        write_run(tmp_path / place, PLAIN, features=[feature()], edit=edit)
    rows = rows_of(tmp_path)
    assert [row.record["model"] for row in rows] == ["here/model"] * 2 + ["there/model"] * 2
    assert [row.pair.baseline.model for row in rows if row.pair] == ["/here/model", "/there/model"]


def test_rows_of_the_same_intervention_name_the_settings_that_differ(tmp_path: Path) -> None:
    for name, temperature in (("warm", 0.6), ("cold", 0.0)):
        edit = setting("configs", TASK, "generation_kwargs", "temperature", value=temperature)
        write_run(tmp_path / f"plain-{name}", PLAIN, edit=edit)
        write_run(tmp_path / name, PLAIN, features=[feature()], edit=edit)
    write_run(tmp_path / "other", PLAIN, features=[feature(8)], edit=edit)
    rows = {row.run.file.parent.name: row for row in rows_of(tmp_path)}
    names = {name: row.record["intervention"] for name, row in rows.items()}
    steering = "set 7 to 2 × 5.84 (blocks.19.hook_resid_post)"
    cold, warm = (rows[f"plain-{name}"].title.partition(" · ")[0] for name in ("cold", "warm"))
    assert {cold, warm} == {"baseline 1", "baseline 2"}
    assert names["plain-cold"] == f"none · {cold} · temperature 0.0"
    assert names["cold"] == f"{steering} · temperature 0.0 · against {cold}"
    assert names["warm"] == f"{steering} · temperature 0.6 · against {warm}"
    assert names["other"] == f"{steering.replace('7', '8')} · against {cold}"


def test_each_line_of_the_csv_leads_to_its_run(tmp_path: Path) -> None:
    write_run(tmp_path / "one/plain", PLAIN)
    write_run(tmp_path / "two/deep/er", STEERED, features=[feature()], date="2026-02-03T04-05-06.7")
    folders = [str(tmp_path / name) for name in ("one", "two")]
    summarize.main(["--results", *folders, "--output_dir", str(tmp_path / "out")])
    with (tmp_path / "out/summary.csv").open() as file:
        plain, steered = csv.DictReader(file)
    assert plain["results_file"] == "one/plain/results_2026-01-01T00-00-00.0.json" and plain["compared_with"] == ""
    assert steered["compared_with"] == plain["results_file"] and steered["date"] == "2026-02-03T04:05:06.7"
    assert (tmp_path / steered["results_file"]).is_file()
