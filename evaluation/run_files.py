"""The results_*.json and samples_*.jsonl that lm-eval wrote, as runs: one task under one intervention."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasoning_words import WordCounter

from transformer_lens_r1.errors import UserError

ACCURACY = ("exact_match", "acc")  # a task's own word for it, the first that is there
BACK_ENDS = {"hf-sae": "hf", "hf-auto": "hf", "huggingface": "hf", "vllm-sae": "vllm"}
# What identifies the model or steers it, is compared under a name of its own, or cannot change what is generated.
OTHER_MODEL_ARGS = ("pretrained", "model", "revision", "dtype", "gpu_memory_utilization")
JUDGE_SETTINGS = ("model", "host", "mode", "prompt_sha")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Question:
    """What a run logged of one question. Its texts stay in the file."""

    metrics: Mapping[str, float]
    """Of the task's metrics those that are numbers; means over the answers where there are several."""
    n_answers: int
    digest: bytes
    """Of the texts."""
    word_counts: tuple[int, ...]
    """How often each reasoning word occurs in all of its texts."""
    offset: int
    """Where its row begins in the samples file, in bytes."""


@dataclass(frozen=True)
class Run:
    """One task of one results file."""

    file: Path
    date: str
    task: str
    model: str
    """Hub id or folder, as it was given."""
    revision: str
    features: tuple[Mapping[str, Any], ...] | None
    """The intervention, one record per feature; None for a plain run."""
    steered_positions: int | None
    n_questions: int
    metrics: Mapping[str, float]
    """Means of the results file, and "<metric>_stderr"."""
    requirements: Mapping[str, Any]
    """Without the same of these, two runs did not answer the same questions."""
    settings: Mapping[str, Any]
    """Without the same of these, a difference is not the intervention's alone."""
    samples_file: Path
    questions: Mapping[str, Question] = field(repr=False, default_factory=dict)
    """By the hashes of row and prompt; empty where lm-eval did not log them."""

    @property
    def steered(self) -> bool:
        return self.features is not None

    @property
    def accuracy_name(self) -> str:
        return next((name for name in ACCURACY if name in self.metrics), ACCURACY[0])

    @property
    def n_answers(self) -> int:
        """Answers per question."""
        return max((question.n_answers for question in self.questions.values()), default=1)

    @property
    def identity(self) -> tuple:
        """Runs with the same one are repetitions of one another."""
        record = json.dumps([self.features, self.requirements, self.settings], sort_keys=True, default=str)
        return self.task, self.model, self.revision, record

    def row(self, question: Question) -> dict[str, Any]:
        """The row of the samples file."""
        with self.samples_file.open("rb") as file:
            file.seek(question.offset)
            return json.loads(file.readline())


def read_runs(folders: Iterable[Path], *, words: WordCounter | None = None) -> list[Run]:
    """Every run below the folders; of several that differ in nothing but their date, the latest.

    Raises UserError for a missing folder, a broken file, or where there are no results at all.
    """
    files: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder of results at {folder}; expected what evaluation/evaluate.sh wrote")
        root = folder.resolve()
        for file in root.rglob("results_*.json"):
            # Runs in progress lie in *.partial
            if not any(part.endswith(".partial") for part in file.relative_to(root).parts):
                files.add(file)
    latest: dict[tuple, Run] = {}
    for file in sorted(files, key=lambda file: (file.name, file)):  # the name holds the time
        for run in read_results(file, words=words):
            latest[run.identity] = run
    if not latest:
        raise UserError(f"no results_*.json below {', '.join(map(str, folders))}")
    return list(latest.values())


def read_results(file: Path, *, words: WordCounter | None = None) -> list[Run]:
    """The runs, one per task, of one results file and the samples beside it. Raises UserError for a broken file."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        return [
            _run(file, results, task, words)
            for task in results["results"]
            if task in results.get("n-samples", {})  # else it is a group's mean
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a results file of lm-eval: {error!r}") from error


def _run(file: Path, results: Mapping[str, Any], task: str, words: WordCounter | None) -> Run:
    config = results["config"]
    model_args = _model_args(config.get("model_args"))
    model = str(results.get("model_name") or model_args.get("pretrained") or "unknown")
    date = file.stem.removeprefix("results_")
    samples_file = file.with_name(f"samples_{task}_{date}.jsonl")
    features, positions = _intervention(config.get("sae"))
    task_config = results.get("configs", {}).get(task, {})
    return Run(
        file=file,
        date=date,
        task=task,
        model=os.path.normpath(model),
        revision=str(config.get("model_revision") or model_args.get("revision") or "main"),
        features=features,
        steered_positions=positions,
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
        settings=_settings(results, config, model_args, task_config),
        samples_file=samples_file,
        questions=read_samples(samples_file, words=words),
    )


def _settings(
    results: Mapping[str, Any], config: Mapping[str, Any], model_args: Mapping[str, Any], task: Mapping[str, Any]
) -> dict[str, Any]:
    back_end = str(config.get("model"))
    generation = task.get("generation_kwargs") or config.get("gen_kwargs") or {}
    judge = config.get("judge")
    torch = re.search(r"^PyTorch version: (\S+)", str(results.get("pretty_env_info")), re.MULTILINE)
    return {
        "limit": config.get("limit"),
        "back end": BACK_ENDS.get(back_end, back_end),
        "model dtype": str(config.get("model_dtype") or model_args.get("dtype")).removeprefix("torch."),
        "lm-eval version": results.get("lm_eval_version"),
        "transformers version": results.get("transformers_version"),
        "vLLM version": config.get("vllm_version"),
        "torch version": torch and torch.group(1),
        "judge": judge and {name: judge.get(name) for name in JUDGE_SETTINGS},
        "scoring": ADDRESS.sub("", str(task.get("process_results"))),
        "repeats": task.get("repeats"),
        "batch size": config.get("batch_size"),
        "seed": config.get("torch_seed"),
        **{f"generation argument {name}": value for name, value in sorted(generation.items())},
        **{
            f"model argument {name}": value
            for name, value in sorted(model_args.items())
            if name not in OTHER_MODEL_ARGS and not name.startswith("sae_")
        },
    }


def _model_args(recorded: Any) -> dict[str, Any]:
    """lm-eval records what it was given: a mapping, or "name=value,name=value"."""
    if isinstance(recorded, str):
        pairs = (part.partition("=") for part in recorded.split(",") if part)
        return {name: value for name, _, value in pairs}
    return dict(recorded or {})


def _intervention(record: Mapping[str, Any] | None) -> tuple[tuple[Mapping[str, Any], ...] | None, int | None]:
    if record is None:
        return None, None
    return tuple(record["features"]), record.get("steered_positions")


def _metrics(recorded: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's key is "<metric>,<filter>", of which the first filter counts; a stderr of one question is "N/A"."""
    metrics: dict[str, float] = {}
    for key, value in recorded.items():
        name, comma, _ = key.partition(",")
        if comma and isinstance(value, int | float):
            metrics.setdefault(name, float(value))
    return metrics


def read_samples(file: Path, *, words: WordCounter | None = None) -> dict[str, Question]:
    """What was logged of each question, by the hashes of its row and its prompt; {} where there is no such file.

    Raises UserError for a line that is no JSON, which a run that was cut off leaves.
    """
    if not file.is_file():
        return {}
    questions: dict[str, Question] = {}
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                key = f"{row['doc_id']} {row['doc_hash']} {row['prompt_hash']}"
                if key not in questions:  # one row per filter: the first counts
                    questions[key] = _question(row, offset, words)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file} is broken at line {number} ({error!r}); run that evaluation again") from error
            offset += len(line)
    return questions


def _question(row: Mapping[str, Any], offset: int, words: WordCounter | None) -> Question:
    digest = hashlib.sha256()
    counts = [0] * (len(words.words) if words else 0)
    n_answers = 0
    for text in answer_texts(row):
        n_answers += 1
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        if words:
            counts = [a + b for a, b in zip(counts, words.count(text), strict=True)]
    numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    numbers.pop("doc_id", None)
    return Question(numbers, n_answers, digest.digest(), tuple(counts), offset)


def answer_texts(row: Mapping[str, Any]) -> Iterator[str]:
    """The answers of a row of the samples file, in order; of a task that generates none, what was logged instead."""
    for request in row["resps"]:
        for response in request:
            yield response if isinstance(response, str) else json.dumps(response)
