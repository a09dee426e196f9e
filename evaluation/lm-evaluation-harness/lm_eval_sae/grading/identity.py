"""What decides whether an answer is right, as a value that two runs can be compared by.

lm-eval records the source of a task's own scoring function, which is a line that calls this package.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def _hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def scoring_identity(folder: Path | None = None) -> dict[str, Any]:
    """`scoring_sha256`, of the source of this package, which imports nothing else of `lm_eval_sae`, and
    `math_verify_version`. lm-eval's version, which its normalisers have, is in the results file anyway.

    Args:
        folder: of another source, to be compared.
    """
    return {
        "scoring_sha256": LOADED if folder is None else _hash_of(folder),
        "math_verify_version": version("math-verify"),
    }


# At once: the files may be edited while a run lasts, after their code was loaded.
LOADED = _hash_of(FOLDER)
