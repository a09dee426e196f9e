"""The OpenThoughts sample: its shares, its text, and what it does with malformed rows."""

import json
from collections import Counter
from pathlib import Path

import prepare_openthoughts_subset as script
import pytest
from datasets import Dataset
from openthoughts_rows import openthoughts_row
from random_checkpoints import KINDS, save_random_checkpoint

from transformer_lens_r1 import load_tokenizer
from transformer_lens_r1.chat_format import format_openthoughts
from transformer_lens_r1.shared.data import load_rows
from transformer_lens_r1.shared.errors import UserError

SIZES = {"math": 60, "code": 40, "puzzle": 3, "biology": 12, "chemistry": 12, "physics": 12}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder in the schema of OpenThoughts-114k, domain after domain, with one malformed row."""
    domains = [domain for domain, size in SIZES.items() for _ in range(size)] + ["astrology"]
    rows = [
        openthoughts_row(index, domain, test_cases=json.dumps({"fn_name": "f"} if index % 2 else {}))
        for index, domain in enumerate(domains)
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "source" / "train.parquet")
    return tmp_path / "source"


def test_every_domain_gives_its_share_the_first_remaining_rows_fill_up_and_no_path_leaves_the_machine(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    monkeypatch.setattr(script, "format_openthoughts", lambda row, **_: seen.update(row) or format_openthoughts(row))
    out = tmp_path / "subset"
    script.main(["--dataset_path", str(source), "--num_samples", "60", "--output_dir", str(out)])
    subset, rows = load_rows(out), load_rows(source)
    assert subset.column_names == ["text", "domain"]
    # A share is 10; puzzle has only 3, and the 7 that are missing come from math, whose rows are first.
    assert Counter(subset["domain"]) == {**dict.fromkeys(SIZES, 10), "math": 17, "puzzle": 3}
    texts = {format_openthoughts(row): row["domain"] for row in rows if row["domain"] != "astrology"}
    assert all(texts[row["text"]] == row["domain"] for row in subset) and len(set(subset["text"])) == 60
    assert "left out record 139: unknown domain 'astrology'" in capsys.readouterr().err
    assert "test_cases" in seen and "conversations" not in seen  # only columns of the text are read
    assert json.loads((out / "provenance.json").read_text())["source"] == "source"
    assert str(tmp_path) not in (out / "README.md").read_text()


def test_the_draw_is_that_of_the_data_librarys_shuffle() -> None:
    domains = ["a", "b"] * 50
    shuffled = Dataset.from_dict({"row": range(100), "domain": domains}).shuffle(seed=42)
    expected = [
        row["row"] for wanted in "ab" for row in shuffled.filter(lambda r, d=wanted: r["domain"] == d).select(range(5))
    ]
    assert script.stratified_rows(domains, 10, 42) == sorted(expected)


def test_all_rows_are_taken_if_there_are_fewer(source: Path, tmp_path: Path) -> None:
    script.main(["--dataset_path", str(source), "--num_samples", "1000", "--output_dir", str(tmp_path / "all")])
    assert Counter(load_rows(tmp_path / "all")["domain"]) == SIZES


def test_a_sample_too_small_for_all_domains_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 6"):
        script.main(["--dataset_path", str(source), "--num_samples", "5", "--output_dir", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_the_text_may_be_in_the_format_of_another_model(source: Path, tiny_llama: Path, tmp_path: Path) -> None:
    save_random_checkpoint(*KINDS["qwen3"], tmp_path / "model", tokenizer=tiny_llama)
    command = ["--dataset_path", str(source), "--num_samples", "60", "--output_dir", str(tmp_path / "subset")]
    with pytest.raises(UserError, match="--chat_format model and --model_path go together"):
        script.main([*command, "--chat_format", "model"])
    script.main([*command, "--chat_format", "model", "--model_path", str(tmp_path / "model")])
    tokenizer = load_tokenizer(tmp_path / "model")
    texts = {format_openthoughts(row, tokenizer=tokenizer) for row in load_rows(source) if row["domain"] != "astrology"}
    subset = load_rows(tmp_path / "subset")["text"][:]
    assert len(subset) == 60 and set(subset) < texts and subset[0].startswith("<|im_start|>system\n")
    assert "in the text format of\nmodel: " in (tmp_path / "subset" / "README.md").read_text()
