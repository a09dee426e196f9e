"""What decides whether an answer is right, as a value that two runs can be compared by.

lm-eval records the source of a task's own scoring function, which is a line that calls this package.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PACKAGE = "lm_eval_sae"
FIRST_MODULE = "scoring"


@functools.cache
def _identity(folder: Path) -> tuple[str, str | None]:
    digest = hashlib.sha256()
    for file in scoring_files(folder):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    try:
        return digest.hexdigest(), version("math-verify")
    except PackageNotFoundError:
        return digest.hexdigest(), None


def scoring_identity(folder: Path = FOLDER) -> dict[str, Any]:
    """`scoring_sha256`, of the source of `scoring` and of all modules of this package that it imports, directly or not;
    `math_verify_version`, None where it is not installed.

    Args:
        folder: of the package's source.
    """
    sha, math_verify = _identity(folder)
    return {"scoring_sha256": sha, "math_verify_version": math_verify}


def scoring_files(folder: Path = FOLDER) -> list[Path]:
    """The source files behind a verdict, in the order of their paths."""
    first = folder / f"{FIRST_MODULE}.py"
    found, waiting = {first}, [first]
    while waiting:
        for file in _imported(waiting.pop(), folder):
            if file not in found:
                found.add(file)
                waiting.append(file)
    return sorted(found)


def _imported(source: Path, folder: Path) -> Iterator[Path]:
    """The modules of this package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                above = source.relative_to(folder).parts[: -node.level]
                start = ".".join(filter(None, (PACKAGE, *above, start)))
            # What is imported from a package may itself be a module.
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == PACKAGE and rest:
                place = folder.joinpath(*rest.split("."))
                yield from filter(Path.is_file, (place.with_suffix(".py"), place / "__init__.py"))


# At once: the files may be edited while a run lasts, after their code was loaded.
_identity(FOLDER)
