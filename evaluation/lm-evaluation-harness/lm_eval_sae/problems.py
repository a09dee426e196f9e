"""Problems from a file of the user's, for the task `quickstart_problems`."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_sae.errors import UserError

if TYPE_CHECKING:
    import datasets

TASK = "quickstart_problems"
VARIABLE = "QUICKSTART_PROBLEMS"
COLUMNS = ("problem", "answer")
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def problems_file(metadata: Mapping[str, Any]) -> Path:
    """The file that `--metadata problems=FILE`, else the environment, names. Raises UserError where it is none."""
    named = metadata.get("problems") or os.environ.get(VARIABLE)
    if not named:
        raise UserError(f"the task {TASK} needs {VARIABLE}=<file> or --metadata problems=<file>")
    path = Path(str(named)).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in FORMATS and not file.name.startswith("."))
        if len(files) != 1:
            raise UserError(f"{path} holds {len(files)} files of problems; expected one .jsonl or .parquet file")
        path = files[0]
    if not path.is_file() or path.suffix not in FORMATS:
        raise UserError(f"no file of problems at {path}; expected .jsonl or .parquet with {', '.join(COLUMNS)}")
    return path


def load_problems(**metadata: Any) -> "dict[str, datasets.Dataset]":
    """lm-eval's `custom_dataset`: {"test": dataset} with columns `problem` and `answer`, all as text.

    Raises UserError where the file or one of the columns is missing, or it has no rows.
    """
    import datasets

    path = problems_file(metadata)
    read: Callable = getattr(datasets.Dataset, f"from_{FORMATS[path.suffix]}")
    dataset = read(str(path), keep_in_memory=True)
    missing = [column for column in COLUMNS if column not in dataset.column_names]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}'; it has {', '.join(dataset.column_names)}")
    if len(dataset) == 0:
        raise UserError(f"{path} holds no problems")
    return {"test": dataset.cast_column("answer", datasets.Value("string"))}
