"""The results_*.json and samples_*.jsonl that lm-eval wrote, as runs: one task under one intervention."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from report.labels import ablated, distinct_names
from report.reasoning_words import WordCounter
from transformer_lens_r1.shared.errors import UserError

ACCURACY = ("exact_match", "acc")  # a task's own word for it, the first that is there
BACK_ENDS = {"hf-sae": "hf", "hf-auto": "hf", "huggingface": "hf", "vllm-sae": "vllm"}
# What identifies the model or steers it, is compared under a name of its own, or cannot change what is generated.
OTHER_MODEL_ARGS = ("pretrained", "model", "revision", "dtype", "gpu_memory_utilization")
SCORING_CODE = "scoring code"
"""The setting that says which code checked the answers (`config.scoring`); older runs do not record it."""
JUDGE_SETTINGS = ("model", "host", "mode", "prompt_sha")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
GPU = re.compile(r"^(?:GPU models and configuration: *)?GPU \d+: ([^(\n]+)", re.MULTILINE)
FOREIGN_STEERING = ("sae_", "steer")
"""How the arguments of other code that steers begin, and the names of its models."""


@dataclass(frozen=True, eq=False)
class Run:
    """One task of one results file."""

    file: Path
    name: str
    """The file from its folder of results on; with the folder's name if there are several."""
    task: str
    model: str
    """Hub id or folder, as it was given."""
    revision: str
    features: tuple[Mapping[str, Any], ...] | None
    """The intervention, one record per feature; None for a baseline, empty if other code steered and
    did not record it."""
    control_of: Mapping[str, Any] | None
    """ "feature_idx" and "strength" of the feature that this one is a matched control of."""
    word_bias: Mapping[str, Any] | None
    """ "bias" on the logits of "tokens" by word, where no feature is steered."""
    steered_positions: int | None
    n_questions: int
    metrics: Mapping[str, float]
    """Means of the results file, and "<metric>_stderr"."""
    requirements: Mapping[str, Any]
    """Unless these are the same, two runs did not answer the same questions."""
    settings: Mapping[str, Any]
    """Unless these are the same, a difference is not the intervention's alone."""
    questions: pd.DataFrame = field(repr=False)
    """A row for each question (see `read_samples`); empty if lm-eval did not log them."""

    @property
    def date(self) -> str:
        """As in the name of the file."""
        return self.file.stem.removeprefix("results_")

    @property
    def steered(self) -> bool:
        return self.features is not None

    @property
    def control(self) -> str | None:
        """Of "ablate", "matched" and "words"; None if it is no control."""
        if self.word_bias or self.control_of:
            return "words" if self.word_bias else "matched"
        return "ablate" if self.features and all(map(ablated, self.features)) else None

    @property
    def accuracy_name(self) -> str:
        return next((name for name in ACCURACY if name in self.metrics), ACCURACY[0])

    @property
    def n_answers(self) -> int:
        """Answers per question."""
        return int(self.questions["n_answers"].max()) if len(self.questions) else 1

    @property
    def identity(self) -> tuple:
        """Runs with the same one are repetitions of one another, on the same questions."""
        intervention = [self.features, self.control_of, self.word_bias]
        everything = [*intervention, self.requirements, self.settings, sorted(self.questions.index)]
        return self.task, self.model, self.revision, json.dumps(everything, sort_keys=True, default=str)

    def samples(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The rows of the samples file of these questions, one after another: their texts may not fit into memory."""
        with _samples_file(self.file, self.task).open("rb") as file:
            for offset in self.questions.loc[keys, "offset"]:
                file.seek(offset)
                yield json.loads(file.readline())


def read_runs(folders: Iterable[Path], *, words: WordCounter | None = None) -> list[Run]:
    """Every run below the folders; of several that differ in nothing but their date, the latest.

    Args:
        folders: of results, searched to any depth.
        words: what to count in the answers.

    Raises:
        UserError: a folder is missing, a file is broken, or there are no results at all.
    """
    files: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder of results at {folder}; expected what evaluation/evaluate.sh wrote")
        root = folder.resolve()
        for file in root.rglob("results_*.json"):
            # Runs in progress lie in *.partial
            if not any(part.endswith(".partial") for part in file.relative_to(root).parts):
                files.setdefault(file, root)
    if not files:
        raise UserError(f"no results_*.json below {', '.join(map(str, folders))}")
    roots = distinct_names(str(root) for root in files.values())
    latest = {}
    for file in sorted(files, key=lambda file: (file.name, file)):  # the name holds the time
        name = file.relative_to(files[file]).as_posix()
        name = name if len(roots) == 1 else f"{roots[str(files[file])]}/{name}"
        latest |= {run.identity: run for run in read_results(file, name, words=words)}
    return list(latest.values())


def read_results(file: Path, name: str, *, words: WordCounter | None = None) -> list[Run]:
    """The runs, one per task, of one results file and the samples beside it.

    Raises:
        UserError: the file is broken, or holds a number or an intervention that no report can be made of.
    """
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        return [
            _run(file, name, results, task, words)
            for task in results["results"]
            if task in results.get("n-samples", {})  # else it is a group's mean
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not a results file of lm-eval ({error!r}); move it elsewhere, or run that evaluation again"
        ) from error


def _run(file: Path, name: str, results: Mapping[str, Any], task: str, words: WordCounter | None) -> Run:
    config = results["config"]
    model_args = _model_args(config.get("model_args"))
    record = config.get("sae")
    foreign = record is None and any(
        argument.startswith(FOREIGN_STEERING) for argument in (str(config.get("model")), *model_args)
    )
    if record is not None:  # which says it all
        model_args = {argument: value for argument, value in model_args.items() if not argument.startswith("sae_")}
    return Run(
        file=file,
        name=name,
        task=task,
        model=os.path.normpath(str(results.get("model_name") or model_args.get("pretrained") or "unknown")),
        revision=str(config.get("model_revision") or model_args.get("revision") or "main"),
        features=tuple(record["features"]) if record is not None else () if foreign else None,
        control_of=record and record.get("control_of"),
        word_bias=record and record.get("word_bias"),
        steered_positions=record and record.get("steered_positions"),
        n_questions=int(results["n-samples"][task]["effective"]),
        metrics=_metrics(results["results"][task]),
        requirements={
            "task version": results.get("versions", {}).get(task),
            "model commit": config.get("model_sha") or None,
            "parameters of the model": config.get("model_num_parameters"),
            "chat template": results.get("chat_template_sha"),
            "system instruction": results.get("system_instruction_sha"),
            "few-shot examples": results.get("n-shot", {}).get(task),
        },
        settings=_settings(results, config, model_args, results.get("configs", {}).get(task, {})),
        questions=read_samples(_samples_file(file, task), words=words),
    )


def _samples_file(results: Path, task: str) -> Path:
    return results.with_name(f"samples_{task}_{results.stem.removeprefix('results_')}.jsonl")


def _settings(
    results: Mapping[str, Any], config: Mapping[str, Any], model_args: Mapping[str, Any], task: Mapping[str, Any]
) -> dict[str, Any]:
    back_end = str(config.get("model"))
    generation = task.get("generation_kwargs") or config.get("gen_kwargs") or {}
    environment = str(results.get("pretty_env_info"))
    torch = re.search(r"^PyTorch version: (\S+)", environment, re.MULTILINE)
    gpus = sorted({name.strip() for name in GPU.findall(environment)})
    return {
        "limit": config.get("limit"),
        "back end": BACK_ENDS.get(back_end, back_end),
        "model dtype": str(config.get("model_dtype") or model_args.get("dtype")).removeprefix("torch."),
        "lm-eval version": results.get("lm_eval_version"),
        "transformers version": results.get("transformers_version"),
        "vLLM version": config.get("vllm_version"),
        "torch version": torch and torch.group(1),
        # cuda:0 and cuda:1 are cards of one machine.
        "device": str(config["device"]).partition(":")[0] if config.get("device") else None,
        "GPU": ", ".join(gpus) or None,
        **{f"judge's {name}": (config.get("judge") or {}).get(name) for name in JUDGE_SETTINGS},
        "task's scoring": _digest(ADDRESS.sub("", str(task.get("process_results")))),
        SCORING_CODE: config.get("scoring") and _digest(config["scoring"]),
        "repeats": task.get("repeats"),
        "batch size": config.get("batch_size"),
        "seed": config.get("torch_seed"),
        **{f"generation argument {name}": _typed(value) for name, value in sorted(generation.items())},
        **{
            f"model argument {name}": _typed(value)
            for name, value in sorted(model_args.items())
            if name not in OTHER_MODEL_ARGS
        },
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _model_args(recorded: Any) -> dict[str, Any]:
    """lm-eval records what it was given: a mapping, or "name=value,name=value"."""
    if isinstance(recorded, str):
        return dict(part.split("=", 1) for part in recorded.split(",") if part)
    return dict(recorded or {})


def _typed(value: Any) -> Any:
    """A number or flag that was recorded as it was typed on the command line, as what it is."""
    try:
        found = json.loads(value.lower()) if isinstance(value, str) else value
    except ValueError:
        return value
    return found if isinstance(found, int | float) else value


def _metrics(recorded: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's key is "<metric>,<filter>", of which the first filter counts; a stderr of one question is "N/A"."""
    metrics: dict[str, float] = {}
    for key, value in recorded.items():
        name, comma, _ = key.partition(",")
        if comma and isinstance(value, int | float):
            # Nothing is made of lm-eval's own standard errors, unless the answers were not logged.
            metrics.setdefault(name, float(value) if name.endswith("_stderr") else _finite(name, value))
    return metrics


def _finite(name: str, value: float) -> float:
    # A mean over questions would otherwise leave out the one that is not a number.
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, expected a finite number")
    return float(value)


def read_samples(file: Path, *, words: WordCounter | None = None) -> pd.DataFrame:
    """What was logged of each question, without its texts, by the hashes of its row and its prompt.

    Args:
        file: samples_*.jsonl; no rows if there is none.
        words: what to count in the answers.

    Returns:
        A column for each metric that is a number (a mean over the answers if there are several), and "n_answers",
        "digests" of the texts of the answers, "words" (how often each reasoning word occurs in all of them together)
        and "offset", where the row begins in the file, in bytes.

    Raises:
        UserError: a line is not JSON, which a run that was cut off leaves, or holds a number that is not finite.
    """
    if not file.is_file():
        return pd.DataFrame()
    found: dict[str, dict[str, Any]] = {}
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                key = f"{row['doc_id']} {row['doc_hash']} {row['prompt_hash']}"
                if key not in found:  # one row per filter: the first counts
                    found[key] = _question(row, words) | {"offset": offset}
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file} is broken at line {number} ({error!r}); run that evaluation again") from error
            offset += len(line)
    return pd.DataFrame(list(found.values()), index=list(found))


def _question(row: Mapping[str, Any], words: WordCounter | None) -> dict[str, Any]:
    texts = list(answer_texts(row))
    numbers = {name: _finite(name, value) for name, value in row.items() if isinstance(value, int | float)}
    counts = [words.count(text) for text in texts] if words else []
    return numbers | {
        "n_answers": len(texts),
        "digests": [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts],
        "words": [sum(column) for column in zip(*counts, strict=True)],
    }


def answer_texts(row: Mapping[str, Any]) -> Iterator[str]:
    """The answers of a row of the samples file, in order; of a task that generates none, what was logged instead."""
    for request in row["resps"]:
        for response in request:
            yield response if isinstance(response, str) else json.dumps(response)
