"""The scripts of training/datasets: rows equal TransformerLens' own, whatever the split, and mistakes are one line."""

import json
from pathlib import Path
from typing import Any

import datasets
import merge_datasets
import prepare_lmsys_dataset
import pytest
from hub_client import local_rows
from published_rows import rows_as_published
from transformer_lens.utilities import tokenize_and_concatenate
from transformers import AutoTokenizer

from transformer_lens_r1 import load_tokenizer
from transformer_lens_r1.chat_format import ASSISTANT, USER
from transformer_lens_r1.shared.errors import UserError

CONTEXT = 64


@pytest.fixture(scope="module")
def texts(fixture_text: Path) -> list[str]:
    """1,200 documents: more than one group of 1,000, of unequal lengths."""
    rows = datasets.load_dataset(str(fixture_text), split="train")["text"][:]
    return [row[: 60 + 7 * (index % 90)] for index, row in enumerate(rows * 3)]


@pytest.fixture(scope="module")
def conversations(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the schema of LMSYS-Chat-1M."""
    rows = [[{"content": text[:40], "role": "user"}, {"content": text[40:], "role": "assistant"}] for text in texts]
    return write(tmp_path_factory.mktemp("lmsys"), {"conversation": rows})


@pytest.fixture(scope="module")
def expected_rows(texts: list[str], tiny_llama: Path) -> list[list[int]]:
    """What TransformerLens' function makes of the same conversations, in one process; it pads none of these."""
    documents = [f"{USER}{text[:40]}{ASSISTANT}{text[40:]}" for text in texts]
    rows = tokenize_and_concatenate(
        datasets.Dataset.from_dict({"text": documents}),
        AutoTokenizer.from_pretrained(tiny_llama),
        max_length=CONTEXT,
        add_bos_token=False,
        num_proc=None,
    )
    return rows["tokens"][:].tolist()


def write(folder: Path, columns: dict[str, list[Any]]) -> Path:
    datasets.Dataset.from_dict(columns).to_parquet(str(folder / "train-00000.parquet"))
    return folder


def arguments(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    paths = ["--model_path", str(model), "--dataset_path", str(data), "--output_dir", str(output)]
    return [*paths, "--context_size", str(CONTEXT), *more]


def test_published_rows_are_those_of_transformer_lens_2_on_shuffled_documents(
    tiny_llama: Path, texts: list[str], conversations: Path, tmp_path: Path
) -> None:
    prepare_lmsys_dataset.main(arguments(tiny_llama, conversations, tmp_path / "out", "--as_published"))
    documents = datasets.Dataset.from_dict({"text": [f"{USER}{text[:40]}{ASSISTANT}{text[40:]}" for text in texts]})
    shuffled = documents.shuffle(seed=42)["text"][:]
    expected = rows_as_published(shuffled, load_tokenizer(tiny_llama), context=CONTEXT, processes=10)
    rows = local_rows(tmp_path / "out")
    assert len(rows) > 500 and sorted(rows) == sorted(expected)
    info = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert info["row_rule"] == "published" and info["command"].endswith("--as_published")
    assert "cut into 20\nstrings" in (tmp_path / "out" / "README.md").read_text()


def test_the_number_of_processes_changes_nothing(tiny_llama: Path, conversations: Path, tmp_path: Path) -> None:
    main = prepare_lmsys_dataset.main
    for processes in ("1", "3"):
        more = ["--num_proc", processes, "--num_tokens", "9999"]
        main(arguments(tiny_llama, conversations, tmp_path / processes, *more))
    assert local_rows(tmp_path / "1") == local_rows(tmp_path / "3")


def test_all_rows_are_those_of_transformer_lens_and_a_draw_follows_the_seed(
    tiny_llama: Path, conversations: Path, expected_rows: list[list[int]], tmp_path: Path
) -> None:
    main = prepare_lmsys_dataset.main
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main(arguments(tiny_llama, conversations, tmp_path / name, "--num_tokens", "1000", "--seed", seed))
    a, b, c = (local_rows(tmp_path / name) for name in "abc")
    assert len(a) == 16  # ceil(1000 / 64)
    assert a == b != c
    assert all(row in expected_rows for row in a)
    main(arguments(tiny_llama, conversations, tmp_path / "all"))
    rows = local_rows(tmp_path / "all")
    assert len(expected_rows) > 500 and sorted(rows) == sorted(expected_rows)
    assert rows != expected_rows  # shuffled


def test_short_data_gives_no_padded_row(tiny_llama: Path, tmp_path: Path) -> None:
    messages = [{"content": "therefore the sum is two ", "role": "user"}]
    short = write(tmp_path, {"conversation": [messages]})
    argv = arguments(tiny_llama, short, tmp_path / "out")
    with pytest.raises(UserError, match="no row of 64 tokens"):
        prepare_lmsys_dataset.main(argv)
    assert not (tmp_path / "out").exists()


def test_malformed_rows_are_named_counted_and_left_out(
    tiny_llama: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [[{"content": text, "role": "user"}] for text in texts[:50]]
    bad = [[{"content": "x", "role": "tool"}], [{"content": None, "role": "user"}]]
    mixed, clean = tmp_path / "mixed", tmp_path / "clean"
    main = prepare_lmsys_dataset.main
    for folder, rows in ((mixed, [*good[:7], bad[0], *good[7:], bad[1]]), (clean, good)):
        folder.mkdir()
        write(folder, {"conversation": rows})
        main(arguments(tiny_llama, folder, folder / "out", "--max_bad_rows", "0.04"))
    said = capsys.readouterr().err
    for line in ("left out record 7: unknown role 'tool'", "left out record 51: field 'content'"):
        assert said.count(line) == 1
    assert said.count("left out 2 of 52 records") == 1
    assert local_rows(mixed / "out") == local_rows(clean / "out")
    source = json.loads((mixed / "out" / "provenance.json").read_text())["source"]
    assert (source["records"], source["malformed"], source["malformed_records"]) == (52, 2, [7, 51])


def test_more_than_one_percent_of_malformed_rows_ends_the_run_before_anything_is_tokenised(
    tiny_llama: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_data.rows.tokenise", lambda *_, **__: pytest.fail("tokenised"))
    good, bad = [{"content": texts[0], "role": "user"}], [{"content": "x", "role": "tool"}]
    data = write(tmp_path, {"conversation": [good] * 97 + [bad] * 2 + [good] * 98})
    with pytest.raises(UserError, match="more than 1 % of the 197 records .* first is record 97: unknown role 'tool'"):
        prepare_lmsys_dataset.main(arguments(tiny_llama, data, tmp_path / "out"))
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]


def test_a_merged_set_is_all_parts_shuffled_with_the_seed(
    tiny_llama: Path, conversations: Path, tmp_path: Path
) -> None:
    prepare, merge = prepare_lmsys_dataset.main, merge_datasets.main
    for seed in ("1", "2"):
        prepare(arguments(tiny_llama, conversations, tmp_path / seed, "--num_tokens", "3200", "--seed", seed))
    parts = [str(tmp_path / seed) for seed in "12"]
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        merge([*parts, "--seed", seed, "--output_dir", str(tmp_path / name)])
    a, b, c = (local_rows(tmp_path / name) for name in "abc")
    joined = [row for part in parts for row in local_rows(Path(part))]
    assert sorted(a) == sorted(joined)
    assert a == b != c and a != joined
    info = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert [part["rows"] for part in info["parts"]] == [50, 50]
    assert info["tokenizer"]["name"] == "tiny-llama"


def test_parts_of_another_row_length_or_tokenizer_are_refused(
    tiny_llama: Path, conversations: Path, tmp_path: Path
) -> None:
    prepare, merge = prepare_lmsys_dataset.main, merge_datasets.main
    for name, context in (("a", "64"), ("b", "32"), ("c", "64")):
        argv = arguments(tiny_llama, conversations, tmp_path / name, "--num_tokens", "640")
        prepare([*argv, "--context_size", context])
    with pytest.raises(UserError, match="rows of 32, 64 tokens"):
        merge([str(tmp_path / "a"), str(tmp_path / "b"), "--output_dir", str(tmp_path / "out")])
    info = json.loads((tmp_path / "c" / "provenance.json").read_text())
    info["tokenizer"] |= {"name": "other", "vocabulary_sha256": "0" * 64}
    (tmp_path / "c" / "provenance.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="tokenizer of tiny-llama, .* that of other"):
        merge([str(tmp_path / "a"), str(tmp_path / "c"), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
