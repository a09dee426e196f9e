"""The judge's answers on disk: one small file each, so that parallel runs share them and a killed run loses none."""

import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path

from lm_eval_sae.errors import UserError

logger = logging.getLogger(__name__)


class VerdictCache:
    """A folder of verdicts by key. Files are written beside their place and moved into it: whole or absent."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder. Raises UserError where nothing can be written there."""
        self.folder = folder
        self._writable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"the judge's answers cannot be kept in {folder}: {error.strerror or error}; "
                "set JUDGE_CACHE to a folder that can be written"
            ) from error

    def get(self, key: str) -> bool | None:
        """The verdict of a key; None where there is none, or its file is damaged."""
        try:
            verdict = json.loads(self._file(key).read_bytes())["same"]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return verdict if isinstance(verdict, bool) else None

    def put(self, key: str, verdict: bool) -> None:
        """Keeps a verdict. A full disk is a warning, and no reason to lose the evaluation that asked."""
        if not self._writable:
            return
        file = self._file(key)
        temporary = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{key}.", dir=file.parent)
            with os.fdopen(handle, "w") as stream:
                json.dump({"same": verdict}, stream)
            os.replace(temporary, file)
        except OSError as error:
            self._writable = False
            logger.warning("The judge's answers are no longer kept: %s", error.strerror or error)
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def _file(self, key: str) -> Path:
        # 256 folders, because some file systems are slow where one holds many thousand files.
        return self.folder / key[:2] / f"{key}.json"
