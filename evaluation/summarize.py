"""One table from plain and steered evaluations: accuracy, length, and how both differ from the plain run.

Reads the results_*.json and samples_*.jsonl that lm-eval wrote anywhere below the given folders, and pairs each
steered run with the plain run of the same task and model, question by question.

    python evaluation/summarize.py --results evaluation/results --output_dir evaluation/results/report

Writes summary.md and summary.csv and prints the table. Of several runs with the same task, model and intervention
the latest counts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_lens_r1.arguments import ArgumentParser
from transformer_lens_r1.errors import UserError, run
from transformer_lens_r1.files import atomic_file

ACCURACY = ("exact_match", "acc")  # a task's own word for it, the first that is there
# Settings that a plain and a steered run must share for their difference to be the feature's.
SHARED = (
    "limit", "gen_kwargs", "batch_size", "model_dtype", "model_revision", "torch_seed", "chat_template_sha", "version",
)  # fmt: skip
COLUMNS = {
    "task": "task",
    "model": "model",
    "intervention": "intervention",
    "questions": "questions",
    "accuracy": "accuracy",
    "accuracy_stderr": "± stderr",
    "completion_tokens": "mean tokens",
    "truncated": "truncated",
    "accuracy_difference": "Δ accuracy",
    "tokens_difference": "Δ tokens",
    "texts_changed": "texts changed",
    "note": "note",
}


@dataclass(frozen=True)
class Sample:
    """One question of one run."""

    text: str  # what the model wrote
    accuracy: float | None
    tokens: float | None  # None where the back end did not count


@dataclass(frozen=True)
class Run:
    """One task of one results file."""

    task: str
    model: str
    sae: Mapping[str, Any] | None  # the intervention as lm_eval_sae records it; None for a plain run
    questions: int
    metrics: Mapping[str, float | None]  # of accuracy, its standard error, length and truncation
    settings: Mapping[str, Any]
    samples: Mapping[str, Sample]  # by question; empty where lm-eval did not log them

    @property
    def intervention(self) -> str:
        """E.g. "set 46379 to 2 × 5.84 (blocks.19.hook_resid_post)", or "none"."""
        if self.sae is None:
            return "none"
        s = self.sae
        units = "" if s["units"] == "folded" else f", {s['units']}"
        return (
            f"{s['mode']} {s['feature_idx']} to {s['strength']:g} × {s['max_activation']:.4g} ({s['hook_name']}{units})"
        )


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Every run below the folders, the latest of each task, model and intervention.

    Raises UserError for a missing folder, a broken file, or where there are no results at all.
    """
    files: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder of results at {folder}; expected what evaluation/evaluate.sh wrote")
        # Runs in progress lie in *.partial
        found = folder.rglob("results_*.json")
        files |= {file for file in found if not any(part.endswith(".partial") for part in file.parts)}
    latest: dict[tuple, Run] = {}
    for file in sorted(files, key=lambda file: file.name):  # the name holds the time
        for found_run in read_results(file):
            latest[found_run.task, found_run.model, found_run.intervention, _sae_name(found_run)] = found_run
    if not latest:
        raise UserError(f"no results_*.json below {', '.join(map(str, folders))}")
    return list(latest.values())


def read_results(file: Path) -> list[Run]:
    """The runs, one per task, of one results file and the samples beside it."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        config = results["config"]
        tasks = results["results"]
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{file} is not a results file of lm-eval: {error!r}") from error
    runs = []
    for task, metrics in tasks.items():
        if task not in results.get("n-samples", {}):
            continue  # a group's mean
        accuracy = next((name for name in ACCURACY if _metric(metrics, name) is not None), ACCURACY[0])
        date = file.stem.removeprefix("results_")
        runs.append(
            Run(
                task=task,
                model=results.get("model_name") or str(config.get("model_args", {}).get("pretrained", "")),
                sae=config.get("sae"),
                questions=results["n-samples"][task]["effective"],
                metrics={
                    "accuracy": _metric(metrics, accuracy),
                    "accuracy_stderr": _metric(metrics, f"{accuracy}_stderr"),
                    "completion_tokens": _metric(metrics, "completion_tokens"),
                    "truncated": _metric(metrics, "truncated"),
                },
                settings={
                    **{name: config.get(name) for name in SHARED if name in config},
                    "chat_template_sha": results.get("chat_template_sha"),
                    "version": results.get("versions", {}).get(task),
                },
                samples=read_samples(file.with_name(f"samples_{task}_{date}.jsonl"), accuracy=accuracy),
            )
        )
    return runs


def read_samples(file: Path, *, accuracy: str) -> dict[str, Sample]:
    """What was logged of each question, by the hashes of its row and its prompt; {} where there is no such file.

    Raises UserError for a line that is no JSON, which a run that was cut off leaves.
    """
    if not file.is_file():
        return {}
    samples: dict[str, Sample] = {}
    with file.open(encoding="utf-8", errors="replace") as lines:  # a cut character is a cut line
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file} is broken at line {number} ({error}); run that evaluation again") from error
            key = f"{row['doc_id']} {row['doc_hash']} {row['prompt_hash']}"
            text = row["resps"][0][0]
            samples.setdefault(  # one row per filter: the first counts
                key,
                Sample(
                    text=text if isinstance(text, str) else json.dumps(text),
                    accuracy=row.get(accuracy),
                    tokens=row.get("completion_tokens"),
                ),
            )
    return samples


def summarize(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per run, with the keys of COLUMNS: plain runs first, each followed by its steered ones.

    Differences are steered minus plain, means over the questions that both runs have.
    """
    plain = {(r.task, r.model): r for r in runs if r.sae is None}
    rows = []
    for r in sorted(runs, key=lambda r: (r.task, r.model, r.sae is not None, r.intervention)):
        row: dict[str, Any] = {
            "task": r.task,
            "model": r.model,
            "intervention": r.intervention,
            "questions": r.questions,
            **r.metrics,
        }
        partner = plain.get((r.task, r.model))
        if r.sae is not None:
            row |= compare(r, partner) if partner else {"note": "no plain run"}
        rows.append({column: row.get(column) for column in COLUMNS})
    return rows


def compare(steered: Run, plain: Run) -> dict[str, Any]:
    """Differences of a steered run to a plain one over the questions they share, and what else differs."""
    shared = [(steered.samples[key], plain.samples[key]) for key in steered.samples if key in plain.samples]
    notes = [name for name in SHARED if steered.settings.get(name) != plain.settings.get(name)]
    note = f"settings differ: {', '.join(notes)}" if notes else ""
    if not shared:
        return {"note": "; ".join(filter(None, ["no questions in common with the plain run", note]))}
    if len(shared) < max(len(steered.samples), len(plain.samples)):
        note = "; ".join(filter(None, [f"{len(shared)} questions in common", note]))
    return {
        "accuracy_difference": _mean_difference((s.accuracy, p.accuracy) for s, p in shared),
        "tokens_difference": _mean_difference((s.tokens, p.tokens) for s, p in shared),
        "texts_changed": sum(s.text != p.text for s, p in shared),
        "note": note or None,
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for people: a note column only where there is a note."""
    columns = [name for name in COLUMNS if name != "note" or any(row["note"] for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[name] for name in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(name, row[name]) for name in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value.replace("|", "\\|")
    if name in ("accuracy", "truncated"):
        return f"{value:.1%}"
    if name == "accuracy_stderr":
        return f"± {value:.1%}"
    if name == "accuracy_difference":
        return f"{100 * value:+.1f} points"
    if name == "tokens_difference":
        return f"{value:+.1f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _metric(metrics: Mapping[str, Any], name: str) -> float | None:
    """lm-eval's key is "<metric>,<filter>"; a standard error of one question is "N/A"."""
    value = next((value for key, value in metrics.items() if key.partition(",")[0] == name), None)
    return float(value) if isinstance(value, int | float) else None


def _mean_difference(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return sum(differences) / len(differences) if differences else None


def _sae_name(found_run: Run) -> str:
    return found_run.sae["sae"] if found_run.sae else ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, metavar="DIR", help="folders, searched to any depth"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for summary.md and summary.csv")
    args = parser.parse_args(argv)

    rows = summarize(read_runs(args.results))
    table = markdown(rows)
    with atomic_file(args.output_dir / "summary.md") as path:
        path.write_text("# Plain and steered evaluation\n\n" + table, encoding="utf-8")
    with atomic_file(args.output_dir / "summary.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)
    print(table, end="")
    print(f"Written to {args.output_dir / 'summary.md'} and summary.csv")


if __name__ == "__main__":
    run(main)
