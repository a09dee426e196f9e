"""Problems from a file of the user's, for the task `quickstart_problems`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_sae.errors import UserError

if TYPE_CHECKING:
    import datasets

TASK = "quickstart_problems"
VARIABLE = "QUICKSTART_PROBLEMS"
COLUMNS = ("problem", "answer")
FORMATS = (".jsonl", ".json", ".parquet")


def problems_file(metadata: Mapping[str, Any]) -> Path:
    """The file that `--metadata problems=FILE`, else the environment, names. Raises UserError if it is none."""
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
    """lm-eval's `custom_dataset`: {"test": dataset} with the columns `problem` and `answer`, as text.

    A number is the text that the file writes it with; other columns are left out.

    Raises UserError if the file or one of the columns is missing, it has no rows, or a value is no text or number.
    """
    import datasets

    path = problems_file(metadata)
    rows = [_problem(row, f"{path}, row {number}") for number, row in enumerate(_read_rows(path), 1)]
    if not rows:
        raise UserError(f"{path} holds no problems")
    return {"test": datasets.Dataset.from_list(rows)}


def _read_rows(path: Path) -> list[Any]:
    """The rows of a file; numbers of a JSON file as text."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return _parse(text, str(path))
    lines = enumerate(text.split("\n"), 1)
    return [_parse(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _parse(text: str, where: str) -> Any:
    try:
        # Arrow would give a column one type: numbers beside text would be quoted, and long ones rounded.
        return json.loads(text, parse_int=str, parse_float=str)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); expected one row a line, or a list of rows") from error


def _problem(row: Any, where: str) -> dict[str, str]:
    values = {column: row.get(column) for column in COLUMNS} if isinstance(row, dict) else {}
    if not values or not all(type(value) in (str, int, float) for value in values.values()):
        raise UserError(f"{where}: expected a row with {' and '.join(COLUMNS)}, each a text or a number")
    return {column: str(value) for column, value in values.items()}
