"""Runs with known answers, in the files that `python -m lm_eval_sae` writes."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from report.rows import Row, summarize
from report.runs import read_runs

TASK = "planted"
PLAIN = [[float(i % 2)] for i in range(40)]
STEERED = [[float(i % 2 or i % 8 == 0)] for i in range(40)]
"""5 more of the 40 are right than in PLAIN, none is lost."""


def rows_of(folder: Path) -> list[Row]:
    """The rows of the report about all runs in a folder."""
    return summarize(read_runs([folder]), n_resamples=200)


def feature(index: int = 7, *, strength: float = 2.0, **changes: Any) -> dict[str, Any]:
    """The record of one steered feature."""
    record = {
        "sae": "/saes/one", "architecture": "standard", "hook_name": "blocks.19.hook_resid_post", "layer": 19,
        "d_in": 4096, "d_sae": 65536, "feature_idx": index, "strength": strength, "max_activation": 5.84,
        "value": strength * 5.84, "mode": "set", "units": "folded",
    }  # fmt: skip
    return record | changes


def setting(*keys: str, value: object) -> Callable[[dict[str, Any]], None]:
    """An edit of the results file, for `write_run`: one value, found by its keys."""

    def edit(results: dict[str, Any]) -> None:
        for key in keys[:-1]:
            results = results.setdefault(key, {})
        results[keys[-1]] = value

    return edit


def write_run(
    folder: Path,
    right: Sequence[Sequence[float]],
    *,
    tokens: Sequence[Sequence[int]] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
    features: Sequence[Mapping[str, Any]] | None = None,
    problems: Sequence[str] | None = None,
    date: str = "2026-01-01T00-00-00.0",
    edit: Callable[[dict[str, Any]], object] = lambda results: None,
) -> Path:
    """Write results_*.json and samples_*.jsonl.

    Args:
        folder: made here.
        right: 1 or 0 for each answer, [questions][answers].
        tokens: completion tokens of each answer; 100 by default.
        texts: of the answers; by default they say whether they are right.
        features: records; None for a baseline.
        problems: the questions.
        date: as in the names of the files.
        edit: changes the results before they are written.
    """
    n, n_answers = len(right), len(right[0])
    tokens = tokens or [[100] * n_answers] * n
    rows = []
    for i in range(n):
        answers = [
            {
                "exact_match": float(right[i][j]),
                "completion_tokens": tokens[i][j],
                "reasoning_tokens": tokens[i][j] // 2,
                "truncated": 0.0,
                "undecided": 0.0,
            }
            for j in range(n_answers)
        ]
        means = {name: sum(answer[name] for answer in answers) / n_answers for name in answers[0]}
        problem = problems[i] if problems else f"Question {i}?"
        shown = list(texts[i]) if texts else [f"answer {i} {'right' if r else 'wrong'}" for r in right[i]]
        row = {
            "doc_id": i, "doc": {"problem": problem, "answer": str(i)}, "target": str(i),
            "arguments": {"gen_args_0": {"arg_0": f"Prompt: {problem}", "arg_1": {}}}, "resps": [shown],
            "filtered_resps": shown, "filter": "none", "metrics": list(means), "target_hash": "t",
            "doc_hash": hashlib.sha256(problem.encode()).hexdigest(), "prompt_hash": "p", **means,
        }  # fmt: skip
        if n_answers > 1:
            best, most = max(right[i]), float(sum(right[i]) > n_answers / 2)
            row |= {"repeats": answers, f"cov@{n_answers}": float(best), f"maj@{n_answers}": most}
        rows.append(row)
    numbers = [name for name, value in rows[0].items() if isinstance(value, int | float) and name != "doc_id"]
    positions = sum(map(sum, tokens))
    results = {
        "results": {TASK: {f"{name},none": sum(row[name] for row in rows) / n for name in numbers}},
        "configs": {
            TASK: {
                "generation_kwargs": {"temperature": 0.6, "max_gen_toks": 1024},
                "repeats": n_answers,
                "process_results": "def process(doc, results): …",
            }
        },
        "versions": {TASK: 1.0},
        "n-shot": {TASK: 0},
        "n-samples": {TASK: {"original": n, "effective": n}},
        "config": {
            "model": "hf-sae",
            "model_args": {"pretrained": "/models/tiny", "dtype": "float32"},
            "model_num_parameters": 2529024,
            "model_dtype": "torch.float32",
            "model_revision": "main",
            "model_sha": "",
            "sae": features and {"features": list(features), "steered_positions": positions},
            "judge": None,
            "batch_size": "8",
            "limit": None,
            "torch_seed": 1234,
        },
        "pretty_env_info": "PyTorch version: 2.13.0+cpu\nIs debug build: False",
        "transformers_version": "5.19.0",
        "lm_eval_version": "0.4.13",
        "model_name": "/models/tiny",
        "chat_template_sha": None,
        "system_instruction_sha": None,
    }
    edit(results)
    folder.mkdir(parents=True)
    (folder / f"results_{date}.json").write_text(json.dumps(results))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"samples_{TASK}_{date}.jsonl").write_text(lines)
    return folder
