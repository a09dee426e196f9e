"""Sums on the disk: the state of a pass that was cut off, and the chunks of features that separate jobs computed.

Each file is a safetensors file of `ActivationSums` that also says which run it belongs to, so that nothing is ever
continued or put together that does not belong together.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from reasonscore.score import ActivationSums
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import atomic_file, check_output_folder
from transformer_lens_r1.shared.same_run import check_same_run


def save_sums(path: Path, sums: ActivationSums, about: Mapping[str, Any]) -> None:
    """Write sums, and what is to be known about them; under ``run``, what determines them."""
    tensors = {field.name: getattr(sums, field.name).cpu().contiguous() for field in fields(sums)}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"about": json.dumps(about, ensure_ascii=False)})


def read_about(path: Path) -> dict[str, Any]:
    """What a file of sums was saved with.

    Raises:
        UserError: it is damaged, or not a file of sums.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["about"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of sums, or damaged: delete it to compute it again") from error


def load_sums(path: Path) -> tuple[ActivationSums, dict[str, Any]]:
    """Read back what `save_sums` wrote, onto the CPU; errors are those of `read_about`."""
    about, tensors = read_about(path), load_file(path)
    if tensors.keys() != {field.name for field in fields(ActivationSums)}:
        raise UserError(f"{path} is of another version of compute_score.py: delete it to compute it again")
    return ActivationSums(**tensors), about


class PassState:
    """The state of one rank's pass, in a folder beside the output that is gone when the result is there."""

    def __init__(self, output_dir: Path, name: str, run: Mapping[str, Any]) -> None:
        """Look for the state of an earlier run of the same command, before any work.

        Args:
            output_dir: of the result. The state lies beside it: a folder of scores that is there is complete.
            name: of this rank and chunk, among others in the folder.
            run: what determines the sums, for `check_same_run`.

        Raises:
            UserError: the state there is another run's.
        """
        folder = output_dir.absolute().with_name(f"{output_dir.absolute().name}.unfinished")
        self.run = run
        self.path = folder / f"{name}.safetensors"
        for half_written in folder.glob(f".{self.path.name}.*"):
            half_written.unlink(missing_ok=True)
        if self.path.is_file():
            remedy = f"give its arguments to continue it, or delete {folder} to start over"
            check_same_run(self.path, read_about(self.path)["run"], run, remedy=remedy)

    def load(self) -> tuple[ActivationSums, int] | None:
        """The sums so far and the next row, or None if there is no state."""
        if not self.path.is_file():
            return None
        sums, about = load_sums(self.path)
        return sums, about["next_row"]

    def save(self, sums: ActivationSums, next_row: int) -> None:
        """Keep the sums over the rows before ``next_row``."""
        save_sums(self.path, sums, {"run": self.run, "next_row": next_row})

    def remove(self) -> None:
        """Forget the state; its folder goes with the last one."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def chunk_path(folder: Path, chunk: int, n_chunks: int) -> Path:
    """The file of one chunk."""
    return folder / f"chunk_{chunk}_of_{n_chunks}.safetensors"


def chunk_features(d_sae: int, chunk: int, n_chunks: int) -> slice:
    """The features of one chunk: contiguous ranges whose sizes differ by one at most, as `numpy.array_split` cuts."""
    size, longer = divmod(d_sae, n_chunks)
    start = chunk * size + min(chunk, longer)
    return slice(start, start + size + (chunk < longer))


def find_chunks(folder: Path) -> dict[int, Path]:
    """The files of chunks in a folder, in the order of their numbers.

    Raises:
        UserError: chunks of runs with different numbers of chunks lie there.
    """
    found = [re.fullmatch(r"chunk_(\d+)_of_(\d+)\.safetensors", path.name) for path in folder.glob("chunk_*")]
    chunks = sorted((int(match[1]), int(match[2])) for match in found if match)
    if len({n_chunks for _, n_chunks in chunks}) > 1:
        raise UserError(f"{folder} holds chunks of several runs: keep one run's")
    return {chunk: chunk_path(folder, chunk, n_chunks) for chunk, n_chunks in chunks}


def check_chunk_folder(folder: Path, run: Mapping[str, Any]) -> None:
    """Make sure, before any work, that a chunk of ``run`` can go into ``folder``.

    Raises:
        UserError: chunks of another run lie there, or it cannot be written.
    """
    if not folder.is_dir():
        check_output_folder(folder, "")
    elif not os.access(folder, os.W_OK):
        raise UserError(f"--output_dir {folder} cannot be written; name another folder")
    for path in find_chunks(folder).values():
        check_same_run(path, read_about(path)["run"], run, remedy="name another --output_dir")


def merge_chunks(folder: Path) -> tuple[ActivationSums, dict[str, Any]]:
    """The sums of all features from the chunks of one run, and what the first chunk was saved with.

    Raises:
        UserError: no chunks, a missing one, or chunks of different runs.
    """
    paths = find_chunks(folder)
    if not paths:
        raise UserError(f"no chunks in {folder}: expected files like {chunk_path(folder, 0, 3).name}")
    parts = {path: load_sums(path) for path in paths.values()}
    first, about = next(iter(parts.values()))
    for path, (_, other) in parts.items():
        check_same_run(path, other["run"], about["run"], remedy=f"{folder} must hold the chunks of one run")
    n_chunks = about["run"]["--num_chunks"]
    missing = [str(chunk) for chunk in range(n_chunks) if chunk not in paths]
    if missing:
        raise UserError(
            f"{folder} lacks chunk {', '.join(missing)} of 0 to {n_chunks - 1}: run compute_score.py --chunk_num for it"
        )

    by_feature = {
        name: torch.cat([getattr(sums, name) for sums, _ in parts.values()], dim=-1)
        for name in ("by_block", "n_active", "maximum", "by_part")
    }
    return replace(first, **by_feature), about
