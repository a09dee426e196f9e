"""What a token data set says about itself: its card, the versions that made it, and lines for the terminal."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

LIBRARIES = ("transformer-lens-r1", "datasets", "tokenizers", "transformers")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the rows depend on."""
    return {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}


def make_card(name: str, info: Mapping[str, Any]) -> str:
    """The body of a token data set's README.md: what its rows are, and how they were made."""
    tokenizer = info["tokenizer"]
    made_for = f"`{tokenizer['name']}`{_at(tokenizer)}" if tokenizer["name"] else "an unknown tokenizer"
    parts = info.get("parts")
    made_of = _source_lines(info["source"]) if parts is None else "".join(_part_lines(part) for part in parts)
    library_versions = ", ".join(f"{library} {number}" for library, number in info["versions"].items())
    return f"""
# {name}

{info["rows"]:,} rows of {info["context_size"]:,} tokens ({info["tokens"]:,} tokens), tokenised for {made_for}, in the
column `tokens`. {_how_cut(info)}
The draw and the order of the rows have the seed {info["seed"]}.

## Source

{made_of}
The source's licence holds for these tokens too: the text can be read from them.

## How it was made

```bash
{info["command"]}
```

Versions: {library_versions}. `provenance.json` beside this file holds the details.

## Use

```python
from datasets import load_dataset

rows = load_dataset("<this repository or folder>", split="train")
```
"""


def _how_cut(info: Mapping[str, Any]) -> str:
    eos_id = info["tokenizer"]["eos_id"]
    if "published" not in (info["row_rule"] or ""):
        return (
            f"Documents are joined by the end-of-sequence id ({eos_id}) and cut into rows; no\n"
            "beginning-of-sequence id was put in."
        )
    return (
        f"Documents are joined by the end-of-sequence token ({eos_id}); every 1,000 of them are cut into 20\n"
        "strings, which are tokenised and cut into rows, as TransformerLens 2.x did (`--rows published`)."
    )


def _at(source: Mapping[str, Any]) -> str:
    """Revision and commit, as far as they are known."""
    known = [f"{key} `{source[key]}`" for key in ("revision", "commit") if source.get(key)]
    return f" ({', '.join(known)})" if known else ""


def _source_lines(source: Mapping[str, Any], rows: int | None = None) -> str:
    config = f", configuration `{source['config']}`" if source.get("config") else ""
    share = f"{rows:,} rows" if rows is not None else f"{source['rows_available']:,} rows to draw from"
    left_out = f", {source['malformed']:,} of them malformed and left out" if source.get("malformed") else ""
    return (
        f"- `{source['dataset']}`{_at(source)}{config}: {source['records']:,} records{left_out}; {share}. "
        f"Licence: {source.get('licence') or 'not stated'}.\n"
    )


def _part_lines(part: Mapping[str, Any]) -> str:
    provenance = part["provenance"] or {}
    if "source" in provenance:
        return _source_lines(provenance["source"], part["rows"])
    if "parts" in provenance:
        inner = "".join(f"  {_part_lines(inner)}" for inner in provenance["parts"])
        return f"- `{part['name']}`: {part['rows']:,} rows, merged from\n{inner}"
    return f"- `{part['name']}`{_at(part)}: {part['rows']:,} rows. Licence: not stated.\n"


def say(line: str) -> None:
    """A line for the person at the terminal, on stderr: stdout stays free."""
    print(line, file=sys.stderr, flush=True)
