"""Runs the parts one after the other, each in a process of its own, and writes their rows as one table.

    python report.py OUTPUT_FOLDER [part ...]

`bash tests/gpu.sh` calls it with the environment that the parts need. Rows of parts that were run earlier into the same
folder stay in the table, with when and where they were run. Nothing but Python's own library is needed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("scores", "training", "steering", "two_gpus")
LIMIT = float(os.environ.get("LIMIT", 8 * 60))
"""Seconds after which a part is ended."""
COLUMNS = ("part", "what", "value", "expected", "ok")
Row = dict[str, Any]


def run_part(part: str, work: Path, log: Path) -> dict[str, Any]:
    """Run one part to its end.

    Returns:
        `machine`, what it ran on; `seconds`; and `rows`, with a failed check at the end where the part failed.
    """
    found = work / f"{part}.jsonl"
    started = time.monotonic()
    command = [sys.executable, str(HERE / f"part_{part}.py"), str(found), str(work)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(LIMIT)
            ended = None if status == 0 else f"exit status {status}, see {log.name}"
        except subprocess.TimeoutExpired:
            ended = f"not done after {LIMIT:.0f} s, see {log.name}"
        finally:
            end_group(process)
    lines = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
    machine, *rows = [json.loads(line) for line in lines] or [{}]
    if ended is not None:
        rows.append({"kind": "check", "what": "ran to its end", "value": ended, "expected": "yes", "ok": False})
    seconds = round(time.monotonic() - started, 1)
    return {"machine": machine, "seconds": seconds, "rows": [{"part": part, **row} for row in rows]}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a part, its engines and ranks included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def render(parts: dict[str, Any]) -> str:
    """The parts as text: a line for what each ran on, then one table."""
    lines = [
        f"{name}: {', '.join(str(value) for value in part['machine'].values())}; {part['seconds']:.0f} s"
        for name, part in parts.items()
    ]
    marks = {True: "yes", False: "NO", None: ""}
    rows = [row for part in parts.values() for row in part["rows"]]
    table = [COLUMNS, *(tuple(str(row.get(name, "")) for name in COLUMNS[:-1]) + (marks[row["ok"]],) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    table.insert(1, tuple("-" * width for width in widths))
    lines += ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    output, chosen = Path(arguments[0]), arguments[1:] or PARTS
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        print(f"error: no part {unknown[0]!r}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    output.mkdir(parents=True, exist_ok=True)
    earlier = output / "report.json"
    parts = json.loads(earlier.read_text(encoding="utf-8"))["parts"] if earlier.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as work:
        for part in dict.fromkeys(chosen):
            print(f"{part} …", end=" ", flush=True)
            parts[part] = run_part(part, Path(work), output / f"{part}.log")
            checks = [row for row in parts[part]["rows"] if row["kind"] == "check"]
            passed = sum(row["ok"] for row in checks)
            print(f"{passed} of {len(checks)} checks passed in {parts[part]['seconds']:.0f} s", flush=True)
            parts = {name: parts[name] for name in PARTS if name in parts}
            text = render(parts)
            earlier.write_text(json.dumps({"parts": parts}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            (output / "report.txt").write_text(f"{text}\n", encoding="utf-8")
    print(f"\n{text}\n\nwritten to {output}: report.txt, report.json")
    return int(any(row["ok"] is False for part in chosen for row in parts[part]["rows"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
