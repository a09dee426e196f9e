"""Data sets as the stages hand them on: a folder of parquet with its provenance beside it, or the same on the Hub."""

import argparse
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.shared.errors import UserError, did_you_mean, first_line
from transformer_lens_r1.shared.files import PROVENANCE, atomic_directory, check_output_folder, write_json
from transformer_lens_r1.shared.hub import check_hub_access, hub_errors, hub_fault, push_folder, use_token

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHARD_BYTES = 500 * 2**20


def load_rows(
    path: str | Path,
    *,
    columns: Sequence[str] = (),
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    first: int | None = None,
) -> "Dataset":
    """The rows of a data set on the disk or on the Hub.

    Args:
        path: a folder of parquet or JSON files, a folder that `Dataset.save_to_disk` wrote, or a Hub id, where
            ``user/name@revision`` is that revision of it.
        columns: columns that must be there.
        name: the configuration, if the data set has several; a local folder without configurations ignores it.
        split: the split to read.
        revision: branch, tag or commit on the Hub, if ``path`` does not say it.
        first: only this many rows from the start; of a Hub data set, little more is downloaded.

    Raises:
        UserError: there is no such folder or data set, or one of the columns is missing.
    """
    folder = Path(path)
    if folder.is_dir():
        dataset = _load_folder(folder, name, split)
        dataset = dataset if first is None else dataset.select(range(min(first, len(dataset))))
    else:
        dataset = _load_hub(str(path), name, split, revision, first)
    _check_columns(path, dataset.column_names, columns)
    if len(dataset) == 0:
        raise UserError(f"data set {path} holds no rows in its split {split!r}")
    return dataset


def _check_columns(path: str | Path, present: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in present:
            raise UserError(
                f"data set {path} has no column {column!r}{did_you_mean(column, present)}; "
                f"its columns are: {', '.join(present)}"
            )


@dataclass(frozen=True)
class RowStream:
    """Rows that can be read from the start as often as wanted, and are never in memory together."""

    rows: "Dataset | IterableDataset"
    n_rows: int | None
    """None: the Hub does not say."""
    commit: str | None
    """Of the Hub; every reading is of this one."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        import datasets

        try:
            yield from self.rows
        except (*hub_errors(), datasets.exceptions.DatasetGenerationError) as error:
            raise UserError(f"the data set could not be read to its end: {hub_fault(error)}") from error


def stream_rows(
    path: str, *, columns: Sequence[str], name: str | None = None, split: str = "train", revision: str | None = None
) -> RowStream:
    """These columns of all rows: a folder is mapped into memory, a data set of the Hub is downloaded as it is read.

    Arguments and errors are those of `load_rows`.
    """
    if Path(path).is_dir():
        dataset = load_rows(path, columns=columns, name=name, split=split)
        return RowStream(dataset.select_columns(list(columns)), len(dataset), None)
    import datasets

    with _hub_data_set(path, revision) as (repo_id, revision):
        builder = datasets.load_dataset_builder(repo_id, name, revision=revision)
        stream = builder.as_streaming_dataset(split=split)
        first = next(iter(stream), None)
    if first is None:
        raise UserError(f"data set {path} holds no rows in its split {split!r}")
    _check_columns(path, list(first), columns)
    known = (builder.info.splits or {}).get(split)
    return RowStream(stream.select_columns(list(columns)), known.num_examples if known else None, builder.hash)


def _load_folder(folder: Path, name: str | None, split: str) -> "Dataset":
    import datasets

    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        if not any(folder.rglob("*.parquet")) and not any(folder.rglob("*.json*")):
            raise UserError(f"folder {folder} holds no data set: expected parquet or JSON files in it")
        if name is not None and name not in datasets.get_dataset_config_names(str(folder)):
            name = None
        return datasets.load_dataset(str(folder), name, split=split)
    except (ValueError, KeyError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(f"cannot read the data set in {folder}: {first_line(error)}") from error


def split_revision(path: str) -> tuple[str, str | None]:
    """``user/name@revision`` as Hub id and revision; a local folder, or an id without one, is left whole."""
    if Path(path).exists() or "@" not in path:
        return path, None
    name, _, revision = path.rpartition("@")
    return name, revision


def _load_hub(path: str, name: str | None, split: str, revision: str | None, first: int | None) -> "Dataset":
    import datasets

    with _hub_data_set(path, revision) as (repo_id, revision):
        source = {"path": repo_id, "name": name, "split": split, "revision": revision}
        if first is None:
            return datasets.load_dataset(**source)
        stream = datasets.load_dataset(**source, streaming=True)
        return datasets.Dataset.from_list(list(stream.take(first)), features=stream.features)


@contextmanager
def _hub_data_set(path: str, revision: str | None) -> Iterator[tuple[str, str | None]]:
    """The Hub id and revision of a data set; failures of the Hub in the block become a `UserError`."""
    path, named_revision = split_revision(path)
    if named_revision is not None and revision is not None and named_revision != revision:
        raise UserError(f"data set {path} is asked for at {named_revision} and at {revision}; name one revision")
    use_token(None)
    import datasets

    try:
        yield path, revision or named_revision
    except (*hub_errors(), datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(
            f"no data set folder {path!r}, and as a data set of the Hub it did not load: {hub_fault(error)}"
        ) from error


def token_column(rows: "Dataset", name: str) -> tuple[Any, int, int]:
    """The column ``tokens`` of a data set as Arrow has it, and the lengths of its shortest and longest row.

    Args:
        rows: of token ids.
        name: what the message calls the data set.

    Raises:
        UserError: the column holds something else than lists of whole numbers, or has empty places.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.select_columns("tokens").data.column("tokens")
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not (is_list or pa.types.is_fixed_size_list(column.type)) or not pa.types.is_integer(column.type.value_type):
        raise UserError(f"column 'tokens' of {name} holds {column.type}, expected lists of whole numbers")
    if column.null_count or any(chunk.flatten().null_count for chunk in column.chunks):
        raise UserError(f"column 'tokens' of {name} has empty places; tokenise again")
    bounds = pc.min_max(pc.list_value_length(column)).as_py()
    return column, bounds["min"], bounds["max"]


def loaded_commit(dataset: "Dataset") -> str | None:
    """The commit of the Hub that a data set was loaded from; None for one from the disk."""
    # The data library names the folder of its cache for the commit, and says it nowhere else.
    for file in dataset.cache_files:
        if match := re.search(r"/([0-9a-f]{40})/", Path(file["filename"]).as_posix()):
            return match[1]
    return None


def hub_licence(path: str) -> str | None:
    """The licence that the card of a Hub data set states; None if it states none or cannot be read."""
    from huggingface_hub import DatasetCard
    from huggingface_hub.errors import EntryNotFoundError

    path, _ = split_revision(path)
    if Path(path).exists():
        return None
    try:
        data = DatasetCard.load(path, ignore_metadata_errors=True).data
    except (*hub_errors(), EntryNotFoundError):
        return None
    named = data.get("license_name") or data.get("license")
    return ", ".join(named) if isinstance(named, list) else named


def save_rows(dataset: "Dataset", path: str | Path, *, info: dict[str, Any], card: str) -> None:
    """Write ``dataset`` as a folder of parquet shards with ``provenance.json`` and a card, whole or not at all.

    Args:
        dataset: the rows.
        path: the folder; an older one is replaced once the new one is complete.
        info: the content of ``provenance.json`` beside the row count.
        card: the body of ``README.md``, in Markdown.
    """
    # The table may hold more rows than a selection of them shows.
    share = len(dataset) / max(1, dataset.data.num_rows)
    shards = max(1, math.ceil(dataset.data.nbytes * share / SHARD_BYTES))
    with atomic_directory(path) as folder:
        for index in range(shards):
            shard = dataset.shard(num_shards=shards, index=index, contiguous=True)
            shard.to_parquet(str(folder / f"train-{index:05d}-of-{shards:05d}.parquet"))
        write_json(folder / PROVENANCE, {**info, "rows": len(dataset)})
        # No YAML header that names the files: for a folder with one, the data library's cache goes by the folder's
        # name and that header alone, and hands out the rows of an earlier folder of the same name.
        (folder / "README.md").write_text(card, encoding="utf-8")


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """The content of ``provenance.json`` of a token data set; None if there is none, or it names no tokenizer.

    A data set that does not exist has none either: `load_rows` says so.

    Args:
        path: a folder or a Hub id, as `load_rows` takes it. Of a Hub data set only this one file is fetched.

    Raises:
        UserError: the file is not JSON, or the Hub does not give it out.
    """
    from huggingface_hub import errors, hf_hub_download

    repo_id, revision = split_revision(str(path))
    try:
        if Path(path).is_dir():
            file = Path(path) / PROVENANCE
        else:
            file = Path(hf_hub_download(repo_id, PROVENANCE, repo_type="dataset", revision=revision))
        provenance = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON ({error}); make the data set again, or delete that file") from error
    except hub_errors() as error:
        # An entry that is not in the cache of an unreachable Hub is no answer; one that the Hub does not have is.
        absent = (
            FileNotFoundError,
            errors.EntryNotFoundError,
            errors.RepositoryNotFoundError,
            errors.HFValidationError,
        )
        if isinstance(error, absent) and not isinstance(error, errors.LocalEntryNotFoundError):
            return None
        raise UserError(f"cannot read {PROVENANCE} of {path}: {hub_fault(error)}") from error
    known = isinstance(provenance, dict) and "vocabulary_sha256" in (provenance.get("tokenizer") or {})
    return provenance if known else None


@dataclass(frozen=True)
class Destination:
    """Where a script's rows go: always to a folder, and from there to the Hub if the arguments say so."""

    folder: Path
    repo_id: str | None
    keep: bool
    """False for a folder that only waits for its push."""
    token: str | None = field(repr=False)
    private: bool


# Arguments that say where a result goes or how fast it is made, not what it is.
OUTPUT_ARGUMENTS = ("output_dir", "hf_user", "hf_repo", "hf_token", "private", "push_only", "num_proc", "max_bad_rows")


def find_destination(args: argparse.Namespace, name: str) -> Destination:
    """Where the rows that ``args`` describe go, once it is known that they can go there.

    Args:
        args: from a parser with `arguments.add_output_arguments`, passed by `arguments.require_output`.
        name: the data set's own name, that of the Hub repository unless ``--hf_repo`` says otherwise.

    Raises:
        UserError: nothing can be written to the folder, or the Hub would refuse the push.
    """
    repo_id = args.hf_repo or (f"{args.hf_user}/{name}" if args.hf_user is not None else None)
    folder = args.output_dir
    if folder is None:
        from huggingface_hub.constants import HF_HOME

        # One place for each result, which --push_only finds again and another run does not take for its own.
        settings = {key: str(value) for key, value in sorted(vars(args).items()) if key not in OUTPUT_ARGUMENTS}
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        folder = Path(HF_HOME) / "reasoning-features" / f"{name}-{key}"
        check_output_folder(folder, PROVENANCE, name="the folder for rows to push,")
    use_token(args.hf_token)  # also to read with
    if repo_id is not None:
        check_hub_access(args, repo_id=repo_id)
    return Destination(folder, repo_id, args.output_dir is not None, args.hf_token, args.private)


def publish_rows(dataset: "Dataset", destination: Destination, *, info: dict[str, Any], card: str) -> None:
    """Save the rows to the destination's folder, push them if it has a repository, and print where they went.

    Raises:
        UserError: the push failed; the message says in which folder the finished rows lie, and how to push them alone.
    """
    save_rows(dataset, destination.folder, info=info, card=card)
    if destination.keep:
        print(f"wrote {len(dataset):,} rows to {destination.folder}")
    if destination.repo_id is not None:
        push_rows(destination)


def push_rows(destination: Destination) -> None:
    """Push the finished rows in the destination's folder to its repository, and print where they went.

    Raises:
        UserError: there are no finished rows in the folder, or the push failed.
    """
    folder, repo_id = destination.folder, destination.repo_id
    assert repo_id is not None
    if not (folder / PROVENANCE).is_file():
        raise UserError(f"{folder} holds no finished rows to push; run the same command without --push_only")
    rows = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["rows"]
    try:
        push_folder(folder, repo_id, repo_type="dataset", token=destination.token, private=destination.private)
    except UserError as error:
        raise UserError(f"{error}; to push it alone, give the same command with --push_only") from error
    print(f"pushed {rows:,} rows to the Hub as {repo_id}")
    if not destination.keep:
        shutil.rmtree(folder)
