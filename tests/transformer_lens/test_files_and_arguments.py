"""Files are whole or absent, data sets travel with their provenance, and a wrong argument ends in one line."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from transformer_lens_r1.shared import arguments, data, hub
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import atomic_directory, atomic_file, write_json


def test_an_error_while_writing_leaves_the_old_file_and_folder(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.json", tmp_path / "b"
    write_json(file, {"old": 1})
    with atomic_directory(folder) as temporary:
        (temporary / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_file(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_directory(folder) as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert json.loads(file.read_text()) == {"old": 1}
    assert (folder / "x").read_text() == "old"
    with atomic_directory(folder) as temporary:
        (temporary / "y").write_text("new")
        (temporary / "y").chmod(0o600)
    assert (folder / "y").stat().st_mode == file.stat().st_mode  # as readable for others as an ordinary file
    assert [path.name for path in folder.iterdir()] == ["y"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b"]  # nothing temporary stays


def test_saved_rows_load_with_plain_load_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_dict({"tokens": [[i, i + 1] for i in range(100)]})
    monkeypatch.setattr(data, "SHARD_BYTES", rows.data.nbytes // 3)
    data.save_rows(rows, tmp_path / "d", info={"seed": 1}, card="# Tokens\n")
    assert len(list((tmp_path / "d").glob("train-*.parquet"))) > 1
    assert load_dataset(str(tmp_path / "d"), split="train").to_dict() == rows.to_dict()
    assert data.load_rows(tmp_path / "d", columns=["tokens"]).to_dict() == rows.to_dict()
    assert json.loads((tmp_path / "d" / "provenance.json").read_text()) == {"seed": 1, "rows": 100}
    # a few rows of a large table are one shard
    data.save_rows(rows.shuffle(seed=0).select(range(20)), tmp_path / "few", info={}, card="")
    assert len(list((tmp_path / "few").glob("train-*.parquet"))) == 1


def test_a_rewritten_folder_and_one_of_the_same_name_give_their_own_rows(tmp_path: Path) -> None:
    for number, folder in enumerate([tmp_path / "a" / "out", tmp_path / "b" / "out", tmp_path / "a" / "out"]):
        rows = Dataset.from_dict({"tokens": [[number, index] for index in range(5)]})
        data.save_rows(rows, folder, info={}, card="# Tokens\n")
        assert data.load_rows(folder)["tokens"][:] == rows["tokens"][:]
        assert load_dataset(str(folder), split="train")["tokens"][:] == rows["tokens"][:]


def test_rows_that_are_not_there_are_refused(tmp_path: Path, fixture_text: Path) -> None:
    with pytest.raises(UserError, match="no column 'txt'; did you mean 'text'"):
        data.load_rows(fixture_text, columns=["txt"])
    with pytest.raises(UserError, match="holds no data set"):
        data.load_rows(tmp_path)
    with pytest.raises(UserError, match="no data set folder .*, and as a data set of the Hub it did not load"):
        data.load_rows(tmp_path / "nowhere")


@pytest.fixture
def parser() -> arguments.ArgumentParser:
    parser = arguments.ArgumentParser("A script.")
    arguments.add_model_arguments(parser)
    parser.add_argument("--n_samples", type=arguments.positive_int, default=4096, help="rows")
    parser.add_argument("--expand_range", type=arguments.int_pair, default=(1, 2), help="window")
    return parser


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--n_sample", "3"], "unknown flag --n_sample; did you mean '--n_samples'?"),
        (["--model_path", "m", "--n_samples", "0"], "--n_samples: expected a whole number of at least 1, got '0'"),
        (["--model_path", "m", "--expand_range", "1"], "--expand_range: expected two whole numbers like 1,2, got '1'"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    parser: arguments.ArgumentParser, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert said in error


def test_user_errors_end_with_status_2_and_defects_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def user_error() -> None:
        raise UserError("no file 'x'\n  give one")

    with pytest.raises(SystemExit) as stop:
        run(user_error)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no file 'x' give one\n"
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)  # type: ignore[arg-type, return-value]


def test_a_result_needs_somewhere_to_go_and_replaces_nothing_else(tmp_path: Path) -> None:
    def require(output_dir: Path | None) -> None:
        parser = arguments.ArgumentParser()
        arguments.add_output_arguments(parser)
        arguments.require_output(parser.parse_args([] if output_dir is None else ["--output_dir", str(output_dir)]))

    with pytest.raises(UserError, match="--output_dir DIR, --hf_user NAME"):
        require(None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        require(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        require(tmp_path / "file" / "inside")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").touch()
    with pytest.raises(UserError, match="holds other files"):
        require(tmp_path / "thesis")
    data.save_rows(Dataset.from_dict({"tokens": [[1]]}), tmp_path / "rows", info={}, card="")
    for free in (tmp_path / "rows", tmp_path / "new" / "er"):
        require(free)


def test_a_published_command_holds_no_token_and_no_path(tmp_path: Path) -> None:
    parser = arguments.ArgumentParser()
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--model_path")
    parser.add_argument("--seed", type=int, default=42)
    arguments.add_output_arguments(parser)
    (tmp_path / "a part").mkdir()
    args = parser.parse_args(
        [str(tmp_path / "a part"), "someone/tokens@v1", "--model_path", str(tmp_path), "--seed", "7", "--private"]
        + ["--output_dir", "not/yet/there", "--hf_user", "me", "--hf_token", "hf_secret", "--push_only"]
    )
    assert arguments.public_command(parser, args, "training/merge.py") == (
        f"python training/merge.py 'a part' someone/tokens@v1 --model_path {tmp_path.name} --seed 7 "
        "--output_dir there --hf_user me --private"
    )


def test_addresses_and_tokens_are_taken_out_of_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token")
    said = "PUT https://user:word@hub.test/lfs/1?X-Amz-Signature=abc&x=1 with hf_abcdefghijkl, an-unusual-token"
    expected = "PUT https://<hidden>@hub.test/lfs/1?<hidden> with <hidden>, <hidden>"
    assert hub.redact(said) == expected
