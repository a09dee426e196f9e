"""Sums on the disk: the state of a pass that was cut off, and the chunks of features that separate jobs computed.

Each file is a safetensors file of `ActivationSums` that also says which run it belongs to, so that nothing is ever
continued or put together that does not belong together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import atomic_file

if TYPE_CHECKING:
    from reasonscore.score import ActivationSums
    from torch import Tensor

CHUNK = re.compile(r"chunk_(\d+)_of_(\d+)\.safetensors")
Fingerprint = Mapping[str, Any]
"""What determines the sums, by the names that people know it under."""


class SavedSums(NamedTuple):
    """Sums read back."""

    sums: ActivationSums
    about: dict[str, Any]
    """What they were saved with."""


def hash_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape and values."""
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_sums(path: Path, sums: ActivationSums, about: Mapping[str, Any]) -> None:
    """Write sums with what is to be known about them; what lay at ``path`` stays until the new file is whole."""
    from safetensors.torch import save_file

    tensors = {field.name: getattr(sums, field.name).cpu().contiguous() for field in fields(sums)}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"about": json.dumps(about, ensure_ascii=False)})


def read_about(path: Path) -> dict[str, Any]:
    """What a file of sums was saved with.

    Raises:
        UserError: it is damaged, or not a file of sums.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["about"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a file of sums, or damaged: delete it to compute it anew") from error


def load_sums(path: Path) -> SavedSums:
    """Read back what `save_sums` wrote, onto the CPU.

    Raises:
        UserError: it is damaged, or not a file of sums.
    """
    from reasonscore.score import ActivationSums
    from safetensors.torch import load_file

    about = read_about(path)
    return SavedSums(ActivationSums(**load_file(path)), about)


def differences(saved: Fingerprint, current: Fingerprint) -> str:
    """What two runs differ in, as ``--alpha (0.5 there, 0.7 here)``; an empty string where in nothing."""
    found = []
    for name in sorted({*saved, *current}, key=lambda name: (not name.startswith("--"), name)):
        there, here = saved.get(name), current.get(name)
        if there == here:
            continue
        short = all(isinstance(value, (str, int, float, list, type(None))) for value in (there, here))
        shown = f"{name} ({there} there, {here} here)"
        found.append(shown if short and len(shown) < 160 and "SHA-256" not in name else name)
    return ", ".join(found)


class PassState:
    """The state of one rank's pass, in a folder beside the output that is gone when the result is there."""

    def __init__(self, folder: Path, name: str, fingerprint: Fingerprint) -> None:
        """Name the state; nothing is read or written yet.

        Args:
            folder: what `state_folder` gave.
            name: of this rank and chunk, among others in the folder.
            fingerprint: of the run.
        """
        # As it will be read back: tuples are lists in JSON.
        self.fingerprint: Fingerprint = json.loads(json.dumps(fingerprint))
        self.path = folder / f"{name}.safetensors"

    def check(self) -> None:
        """Make sure, before any work, that the states in the folder are this run's; take away half-written files.

        Raises:
            UserError: one is another run's.
        """
        for path in sorted(self.path.parent.glob(f".{self.path.name}.*")):
            path.unlink(missing_ok=True)
        for path in sorted(self.path.parent.glob("[!.]*.safetensors")):
            try:
                found = differences(read_about(path)["fingerprint"], self.fingerprint)
            except FileNotFoundError:  # of another rank or chunk that has just finished
                continue
            if found:
                raise UserError(
                    f"{path} is the unfinished pass of another run, which differs in {found}: give its arguments to "
                    f"continue it, or delete {path.parent} to start anew"
                )

    def load(self) -> tuple[ActivationSums, int] | None:
        """The sums so far and the next row, or None where there is no state."""
        if not self.path.is_file():
            return None
        saved = load_sums(self.path)
        return saved.sums, saved.about["next_row"]

    def save(self, sums: ActivationSums, next_row: int) -> None:
        """Keep the sums over the rows before ``next_row``."""
        save_sums(self.path, sums, {"fingerprint": self.fingerprint, "next_row": next_row})

    def remove(self) -> None:
        """Forget the state; its folder goes with the last one."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def state_folder(output_dir: Path) -> Path:
    """Where states lie: beside the output, so that a folder of scores that is there is complete."""
    return output_dir.absolute().with_name(f"{output_dir.absolute().name}.unfinished")


def chunk_path(folder: Path, chunk: int, n_chunks: int) -> Path:
    """The file of one chunk."""
    return folder / f"chunk_{chunk}_of_{n_chunks}.safetensors"


def chunk_features(d_sae: int, chunk: int, n_chunks: int) -> slice:
    """The features of one chunk: contiguous ranges whose sizes differ by one at most, as `numpy.array_split` cuts."""
    size, longer = divmod(d_sae, n_chunks)
    start = chunk * size + min(chunk, longer)
    return slice(start, start + size + (chunk < longer))


def find_chunks(folder: Path) -> dict[int, Path]:
    """The files of chunks in a folder by number, in numeric order.

    Raises:
        UserError: files of different numbers of chunks lie there.
    """
    found = [(CHUNK.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    chunks = {(int(match[1]), int(match[2])): path for match, path in found if match}
    counts = sorted({n for _, n in chunks})
    if len(counts) > 1:
        raise UserError(
            f"{folder} holds chunks of several runs: of {' and of '.join(map(str, counts))}; keep one run's"
        )
    return {chunk: path for (chunk, _), path in sorted(chunks.items())}


def check_chunk_folder(folder: Path, chunk: int, n_chunks: int) -> None:
    """Make sure, before any work, that a chunk can go into ``folder``: empty, or with other chunks of as many.

    Raises:
        UserError: it holds something else, or cannot be written.
    """
    from transformer_lens_r1.shared.files import check_output_folder

    held = [path for path in folder.iterdir() if not path.name.startswith(".chunk_")] if folder.is_dir() else []
    chunks = find_chunks(folder)
    if len(chunks) != len(held):
        raise UserError(f"--output_dir {folder} holds other files than chunks of features; name another folder")
    if chunks or not folder.is_dir():
        check_output_folder(folder, next(iter(chunks.values())).name if chunks else "")
    elif not os.access(folder, os.W_OK):
        raise UserError(f"--output_dir {folder} cannot be written; name another folder")
    if any(chunk_path(folder, other, n_chunks) != path for other, path in chunks.items()):
        raise UserError(
            f"--output_dir {folder} holds {next(iter(chunks.values())).name}, of another run than chunk {chunk} of "
            f"{n_chunks}; name another folder"
        )


def check_same_run(folder: Path, fingerprint: Fingerprint) -> None:
    """Make sure that chunks already in ``folder`` belong to the run that ``fingerprint`` says.

    Raises:
        UserError: one does not; the message says what differs.
    """
    current = json.loads(json.dumps(fingerprint))
    for path in find_chunks(folder).values():
        found = differences(read_about(path)["fingerprint"], current)
        if found:
            raise UserError(f"{path} is a chunk of another run, which differs in {found}; name another --output_dir")


def merge_chunks(folder: Path) -> SavedSums:
    """The sums of all features from the chunks of one run, and what the first chunk says about the run.

    Raises:
        UserError: no chunks, a missing one, or chunks of different runs.
    """
    import torch

    paths = find_chunks(folder)
    if not paths:
        raise UserError(f"no chunks in {folder}: expected files like {chunk_path(folder, 0, 3).name}")
    n_chunks = int(CHUNK.fullmatch(next(iter(paths.values())).name)[2])
    foreign = [path.name for chunk, path in paths.items() if chunk >= n_chunks]
    if foreign:
        raise UserError(f"{folder} holds {foreign[0]}, but {n_chunks} chunks are numbered from 0 to {n_chunks - 1}")
    missing = [chunk for chunk in range(n_chunks) if chunk not in paths]
    if missing:
        numbers = ", ".join(map(str, missing))
        raise UserError(
            f"{folder} lacks chunk {numbers} of 0 to {n_chunks - 1}: run compute_score.py --chunk_num for it"
        )
    first, *others = [load_sums(path) for path in paths.values()]
    for saved, path in zip(others, list(paths.values())[1:], strict=True):
        found = differences(saved.about["fingerprint"], first.about["fingerprint"])
        if found:
            raise UserError(f"{path} and {paths[0].name} are chunks of different runs: they differ in {found}")
    parts = [first, *others]
    d_sae = first.about["d_sae"]
    for chunk, part in enumerate(parts):
        features = chunk_features(d_sae, chunk, n_chunks)
        if len(part.sums.maximum) != features.stop - features.start:
            raise UserError(f"{paths[chunk]} does not hold features {features.start} to {features.stop - 1}")
    from reasonscore.score import ActivationSums

    sums = ActivationSums(
        by_block=torch.cat([part.sums.by_block for part in parts], dim=-1),
        positions_by_block=first.sums.positions_by_block,
        n_matches=first.sums.n_matches,
        n_active=torch.cat([part.sums.n_active for part in parts]),
        maximum=torch.cat([part.sums.maximum for part in parts]),
    )
    return SavedSums(sums, first.about)
