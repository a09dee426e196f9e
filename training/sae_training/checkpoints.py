"""Checkpoints of a run: folders like `step-000001234`, each complete or absent."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import atomic_directory

MANIFEST = "manifest.json"
# What may change between the parts of a run without changing its result; `sae.` and `logger.` keys by dotted name.
FREE = (
    "device", "llm_device", "act_store_device", "sae.device", "prefetch_llm_batches", "verbose", "logger",
    "compile_llm", "llm_compilation_mode", "compile_sae", "sae_compilation_mode",
    "n_checkpoints", "checkpoint_path", "save_final_checkpoint", "output_path", "resume_from_checkpoint",
    "sae_lens_version", "sae_lens_training_version", "sae.metadata",
)  # fmt: skip


def name_of(steps: int, norm_batches: int = 0) -> str:
    """A checkpoint's name; names sort by age.

    Args:
        steps: training steps done.
        norm_batches: batches read to estimate the mean norm, which comes before the first step.
    """
    return f"step-{steps:09d}" + (f"-norm-{norm_batches:09d}" if steps == 0 else "")


def write(folder: Path, name: str, save: Callable[[Path], None], manifest: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write a checkpoint, unless it is there, and drop all but the last `keep`.

    Args:
        folder: of the run's checkpoints.
        name: from `name_of`.
        save: writes the checkpoint's files to the folder it is given.
        manifest: what else to keep, as JSON.

    Returns:
        The checkpoint's folder.
    """
    path = folder / name
    if _is_complete(path):
        return path
    with atomic_directory(path) as temporary:
        save(temporary)
        sizes = {file.name: file.stat().st_size for file in temporary.iterdir()}
        (temporary / MANIFEST).write_text(json.dumps({**manifest, "files": sizes}, indent=1), encoding="utf-8")
        # On the disk before it counts as complete: a machine that loses power keeps a rename and loses data.
        for file in temporary.iterdir():
            _sync(file)
    _sync(folder)
    for old in [other for other in complete(folder) if other != path][keep - 1 :]:
        _remove(old)
    return path


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, newest first."""
    found = sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []
    return [path for path in found if _is_complete(path)]


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What `write` was given to keep."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))


def clean(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_all(folder: Path) -> None:
    """Remove the checkpoints of a finished run, and the folder where nothing else is in it."""
    clean(folder)
    for path in folder.glob("step-*"):
        _remove(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def check_same_run(found: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise `UserError` where the configuration that `found` was made with differs in what decides the result."""
    old, new = (_flat(json.loads(json.dumps(values))) for values in (saved, config))
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name) and not _is_free(name)]
    if names:
        changes = ", ".join(f"{name} {old.get(name)!r} there and {new.get(name)!r} now" for name in names)
        raise UserError(
            f"{found} belongs to a run with another config: {changes}; restore the config, or start a new run with "
            "another output_path"
        )


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_complete(path: Path) -> bool:
    try:
        sizes = read_manifest(path)["files"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remove(path: Path) -> None:
    # Moved aside first: a half-deleted folder must not look like a checkpoint.
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(aside / path.name)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
