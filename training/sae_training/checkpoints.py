"""What a run leaves on the disk while it trains: checkpoints like `step-000001234`, each complete or absent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import atomic_directory, write_json
from transformer_lens_r1.shared.same_run import check_same_run

if TYPE_CHECKING:
    from sae_lens import LanguageModelSAERunnerConfig

MANIFEST = "manifest.json"
OWNER = "owner.json"  # in the folder of checkpoints: which run they are of
SUMMARY = "training_summary.json"
SAE_CONFIG, RUN_CONFIG = "cfg.json", "runner_cfg.json"  # SAELens' names
REMEDY = "restore it, or start a new run with another output_path"
# What may change between the parts of a run without changing its result.
FREE = (
    "device", "llm_device", "act_store_device", "prefetch_llm_batches", "verbose", "logger", "compile_llm",
    "llm_compilation_mode", "compile_sae", "sae_compilation_mode", "n_checkpoints", "checkpoint_path",
    "save_final_checkpoint", "output_path", "resume_from_checkpoint", "sae_lens_version", "sae_lens_training_version",
)  # fmt: skip
FREE_OF_SAE = ("device", "metadata")
# Settings of ours that decide it: `config.EXTRA_KEYS` holds them all.
DECIDING_EXTRAS = ("float32_matmul_precision", "rope_original_context", "decoder_init")


class ExistingRun:
    """What is on the disk of the run that a config describes."""

    def __init__(self, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
        self.output = output = Path(str(cfg.output_path))
        if cfg.checkpoint_path is not None:
            _check_owner(Path(cfg.checkpoint_path), output)
        found = [] if cfg.checkpoint_path is None else complete(Path(cfg.checkpoint_path))
        self.checkpoint = found[0] if found else None
        self.is_trained = (output / SAE_CONFIG).is_file() and (output / SUMMARY).is_file()
        if self.is_trained and self.checkpoint is not None:
            # An SAE that is older than the checkpoint is the result of an earlier run, which this one will replace.
            times = [(path / SAE_CONFIG).stat().st_mtime_ns for path in (output, self.checkpoint)]
            self.is_trained = times[0] >= times[1]
        self.is_measured = self.is_trained and "held_out" in json.loads((output / SUMMARY).read_text(encoding="utf-8"))

    def check_fresh(self) -> None:
        """Raise `UserError` if a new run would lose what an interrupted one has saved."""
        if self.checkpoint is not None and not self.is_trained:
            raise UserError(
                f"{self.checkpoint} is of a run that has not ended: add --resume to continue it, delete "
                f"{self.checkpoint.parent} to drop it, or name another output_path"
            )

    def check_same(self, cfg: LanguageModelSAERunnerConfig[Any], extra: Mapping[str, Any]) -> None:
        """Raise `UserError` if what there is belongs to a run with another config."""
        if self.is_trained:
            saved = json.loads((self.output / RUN_CONFIG).read_text(encoding="utf-8"))
            check_same_run(self.output, deciding(saved), run_settings(cfg, extra), remedy=REMEDY)
        elif self.checkpoint is not None:
            saved = deciding(read_manifest(self.checkpoint)["config"])
            check_same_run(self.checkpoint, saved, run_settings(cfg, extra), remedy=REMEDY)


def run_settings(cfg: LanguageModelSAERunnerConfig[Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that decide a run's result, those that SAELens does not have among them."""
    return deciding(recorded_settings(cfg, extra))


def recorded_settings(cfg: LanguageModelSAERunnerConfig[Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `runner_cfg.json` beside the SAE: SAELens' settings, and those of ours that decide the result."""
    return {**cfg.to_dict(), **{key: extra[key] for key in DECIDING_EXTRAS}}


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of SAELens' configuration that decides a run's result."""
    settings = {key: value for key, value in config.items() if key not in FREE}
    return {**settings, "sae": {key: value for key, value in config["sae"].items() if key not in FREE_OF_SAE}}


def _check_owner(folder: Path, output: Path) -> None:
    """Raise `UserError` if a folder of checkpoints belongs to a run with another output."""
    file = folder / OWNER
    if file.is_file():
        check_same_run(folder, json.loads(file.read_text(encoding="utf-8")), owner(folder, output), remedy=REMEDY)


def owner(folder: Path, output: Path) -> dict[str, str]:
    """What tells the run with this output from every other, also after both have moved together."""
    return {"output_path": os.path.relpath(output.resolve(), folder.resolve())}


def name_of(steps: int, norm_batches: int = 0) -> str:
    """A checkpoint's name; names sort by age.

    Args:
        steps: training steps done.
        norm_batches: batches read to estimate the mean norm, which comes before the first step.
    """
    return f"step-{steps:09d}" + (f"-norm-{norm_batches:09d}" if steps == 0 else "")


def stream_file(rank: int) -> str:
    """The file of a checkpoint with the activation stream of a rank."""
    return "activations.safetensors" if rank == 0 else f"activations-rank-{rank}.safetensors"


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
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    for old in [other for other in complete(folder) if other != path][keep - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, newest first."""
    found = sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []
    return [path for path in found if _is_complete(path)]


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What `write` was given to keep."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))


def begin(folder: Path, output: Path, *, keep: bool) -> None:
    """Make a folder the one of the run with this output.

    Args:
        folder: of its checkpoints.
        output: the run's output_path.
        keep: whether the run continues from a checkpoint; otherwise earlier ones go, which would count as newer.
    """
    (clean if keep else remove_all)(folder)
    write_json(folder / OWNER, owner(folder, output))


def clean(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_all(folder: Path) -> None:
    """Remove the checkpoints of a finished run, and the folder if nothing else is in it."""
    clean(folder)
    for path in folder.glob("step-*"):
        shutil.rmtree(path, ignore_errors=True)
    if folder.is_dir() and not {path.name for path in folder.iterdir()} - {OWNER}:
        shutil.rmtree(folder)


def _is_complete(path: Path) -> bool:
    """Whether every file is there at its full size; half-written and half-removed checkpoints are not complete."""
    try:
        sizes = read_manifest(path)["files"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
