"""The folder beside an output in which its unfinished work lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.shared.files import check_output_folder, write_json
from transformer_lens_r1.shared.same_run import check_same_run

BEGUN = "begun.json"
SPARE_BYTES = 100_000_000
"""Room for what is written besides: pages and the scripts that they load."""


def work_folder(output_dir: Path) -> Path:
    """The folder of unfinished work for ``output_dir``."""
    return output_dir.absolute().with_name(f"{output_dir.absolute().name}.partial")


def begin(folder: Path, run: Mapping[str, Any], n_bytes: int) -> None:
    """Make the folder for unfinished work, or find in it the work of a run that depends on the same.

    Args:
        folder: what `work_folder` gave.
        run: everything that the result depends on.
        n_bytes: that the activations will take in it: a full disk would end the run after hours.

    Raises:
        UserError: the work there is another run's, or the disk is too full.
    """
    if (folder / BEGUN).is_file():
        begun = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
        check_same_run(folder, begun, run, remedy="repeat its command to finish it, or delete it to start over")
        return
    check_output_folder(folder, BEGUN, name="the folder for unfinished work,")
    free = shutil.disk_usage(folder.parent).free
    if free < n_bytes + SPARE_BYTES:
        raise UserError(
            f"the activations take {n_bytes / 1e9:.1f} GB beside --output_dir, where {free / 1e9:.1f} GB are free: "
            "choose another disk, a smaller --topk, or a smaller --n_samples"
        )
    write_json(folder / BEGUN, run)
