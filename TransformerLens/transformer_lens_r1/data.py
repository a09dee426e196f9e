"""Data sets as the stages hand them on: a folder of parquet with its provenance beside it, or the same on the Hub."""

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.errors import UserError, did_you_mean, first_line
from transformer_lens_r1.files import PROVENANCE, atomic_directory, write_json

if TYPE_CHECKING:
    from datasets import Dataset

SHARD_BYTES = 500 * 2**20


def load_rows(
    path: str | Path,
    *,
    columns: Sequence[str] = (),
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> "Dataset":
    """The rows of a data set on the disk or on the Hub.

    Args:
        path: a folder of parquet or JSON files, a folder that `Dataset.save_to_disk` wrote, or a Hub id.
        columns: columns that must be there.
        name: the configuration, where the data set has several; a local folder without configurations ignores it.
        split: the split to read.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: there is no such folder or data set, or one of the columns is missing.
    """
    folder = Path(path)
    dataset = _load_folder(folder, name, split) if folder.is_dir() else _load_hub(str(path), name, split, revision)
    for column in columns:
        if column not in dataset.column_names:
            raise UserError(
                f"data set {path} has no column {column!r}{did_you_mean(column, dataset.column_names)}; "
                f"its columns are: {', '.join(dataset.column_names)}"
            )
    if len(dataset) == 0:
        raise UserError(f"data set {path} holds no rows in its split {split!r}")
    return dataset


def _load_folder(folder: Path, name: str | None, split: str) -> "Dataset":
    import datasets

    try:
        if (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(str(folder))
            if split not in splits:
                raise UserError(f"data set {folder} has no split {split!r}; it has: {', '.join(splits)}")
            return splits[split]
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        if not any(folder.rglob("*.parquet")) and not any(folder.rglob("*.json*")):
            raise UserError(f"folder {folder} holds no data set: expected parquet or JSON files in it")
        if name is not None and name not in datasets.get_dataset_config_names(str(folder)):
            name = None
        return datasets.load_dataset(str(folder), name, split=split)
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(f"cannot read the data set in {folder}: {first_line(error)}") from error


def _load_hub(path: str, name: str | None, split: str, revision: str | None) -> "Dataset":
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or not path:
        raise UserError(f"no data set folder {path!r}: expected an existing folder or a Hub id like user/name")
    import datasets
    import httpx
    import huggingface_hub

    try:
        return datasets.load_dataset(path, name, split=split, revision=revision)
    except huggingface_hub.errors.GatedRepoError as error:
        raise UserError(
            f"data set {path} is gated: accept its terms on its Hub page, then log in (hf auth login) or set HF_TOKEN"
        ) from error
    except (
        ValueError,
        OSError,
        httpx.HTTPError,
        huggingface_hub.errors.HfHubHTTPError,
        datasets.exceptions.DatasetNotFoundError,
    ) as error:
        raise UserError(
            f"no folder {path!r} here, and as a data set of the Hub it did not load: {first_line(error)}"
        ) from error


def save_rows(dataset: "Dataset", path: str | Path, *, info: dict[str, Any], card: str) -> None:
    """Write ``dataset`` as a folder of parquet shards with ``provenance.json`` and a card, whole or not at all.

    Args:
        dataset: the rows.
        path: the folder; an older one is replaced once the new one is complete.
        info: what ``provenance.json`` says beside the row count.
        card: the body of ``README.md``, in Markdown.
    """
    with atomic_directory(path) as folder:
        _write_rows(dataset, folder, info, card)


def _write_rows(dataset: "Dataset", folder: Path, info: dict[str, Any], card: str) -> None:
    # The table may hold more rows than a selection of them shows.
    share = len(dataset) / max(1, dataset.data.num_rows)
    shards = max(1, math.ceil(dataset.data.nbytes * share / SHARD_BYTES))
    for index in range(shards):
        shard = dataset.shard(num_shards=shards, index=index, contiguous=True)
        shard.to_parquet(str(folder / f"train-{index:05d}-of-{shards:05d}.parquet"))
    write_json(folder / PROVENANCE, {**info, "rows": len(dataset)})
    # No YAML header that names the files: for a folder with one, the data library's cache goes by the folder's name
    # and that header alone, and hands out the rows of an earlier folder of the same name.
    (folder / "README.md").write_text(card, encoding="utf-8")


def check_hub_access(args: argparse.Namespace) -> None:
    """Raise `UserError` where ``--hf_user`` asks for a push that the Hub would refuse, before any work is done."""
    if args.hf_user is None:
        return
    import httpx
    import huggingface_hub

    try:
        account = huggingface_hub.HfApi(token=args.hf_token).whoami()
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.LocalTokenNotFoundError) as error:
        raise UserError(
            f"the Hub does not know who you are, so nothing can be pushed to {args.hf_user}: "
            "log in (hf auth login), set HF_TOKEN, or write to a folder with --output_dir instead"
        ) from error
    except (OSError, httpx.HTTPError) as error:
        raise UserError(f"the Hub cannot be reached ({first_line(error)}); use --output_dir instead") from error
    names = [account["name"], *(org["name"] for org in account.get("orgs", []))]
    if args.hf_user not in names:
        raise UserError(f"--hf_user {args.hf_user}: this token may push for {', '.join(names)} only")


def publish_rows(dataset: "Dataset", *, args: argparse.Namespace, name: str, info: dict[str, Any], card: str) -> None:
    """Save to ``--output_dir``, push to ``--hf_user``/``name``, or both, as the arguments say; print where it went.

    Raises:
        UserError: the push failed; the message says in which folder the finished rows lie.
    """
    if args.output_dir is not None:
        save_rows(dataset, args.output_dir, info=info, card=card)
        print(f"wrote {len(dataset):,} rows to {args.output_dir}")
    if args.hf_user is None:
        return
    folder = args.output_dir
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        _write_rows(dataset, folder, info, card)
    repo_id = push_folder(
        folder, f"{args.hf_user}/{name}", repo_type="dataset", token=args.hf_token, private=args.private
    )
    print(f"pushed {len(dataset):,} rows to the Hub as {repo_id}")


def push_folder(folder: Path, repo_id: str, *, repo_type: str, token: str | None, private: bool) -> str:
    """Upload a finished folder to a Hub repository, made where there is none; returns the repository's id.

    A Space is a static one. Parquet files and feature pages of an earlier push that the folder does not hold are
    deleted: `load_dataset` would read the ones, and nothing would link to the others.

    Raises:
        UserError: the upload failed; the folder is kept and named.
    """
    import httpx
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token)
    try:
        sdk = "static" if repo_type == "space" else None
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
        stale = ["*.parquet", "feature_*.html"]
        api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type=repo_type, delete_patterns=stale)
    except (OSError, ValueError, httpx.HTTPError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise UserError(f"the push to {repo_id} failed ({first_line(error)}); the result lies in {folder}") from error
    return repo_id
