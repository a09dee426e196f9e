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

from reasoning_words import WordCounter

from transformer_lens_r1.shared.errors import UserError

ACCURACY = ("exact_match", "acc")  # a task's own word for it, the first that is there
BACK_ENDS = {"hf-sae": "hf", "hf-auto": "hf", "huggingface": "hf", "vllm-sae": "vllm"}
# What identifies the model or steers it, is compared under a name of its own, or cannot change what is generated.
OTHER_MODEL_ARGS = ("pretrained", "model", "revision", "dtype", "gpu_memory_utilization")
SCORING_CODE = "scoring code"
"""The setting that says which code checked the answers (lm_eval_sae.grading.identity); older runs have none."""
JUDGE_SETTINGS = ("model", "host", "mode", "prompt_sha")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
GPU = re.compile(r"^(?:GPU models and configuration: *)?GPU \d+: ([^(\n]+)", re.MULTILINE)
FEATURE_FIELDS = {"sae": str, "hook_name": str, "feature_idx": int, "mode": str, "units": str, "value": int | float}
"""What a report needs of the record of a steered feature."""
FOREIGN_STEERING = ("sae_", "steer")
"""How the arguments of other code that steers begin, and the names of its models."""


@dataclass(frozen=True)
class Question:
    """What a run logged of one question. Its texts stay in the file."""

    metrics: Mapping[str, float]
    """Of the task's metrics those that are numbers; means over the answers where there are several."""
    digests: tuple[bytes, ...]
    """Of the text of each answer."""
    word_counts: tuple[int, ...]
    """How often each reasoning word occurs in all of its texts."""
    offset: int
    """Where its row begins in the samples file, in bytes."""

    @property
    def n_answers(self) -> int:
        return len(self.digests)


@dataclass(frozen=True)
class Run:
    """One task of one results file."""

    file: Path
    root: Path
    """The folder of results below which the file was found."""
    date: str
    """As in the name of the file."""
    task: str
    model: str
    """Hub id or folder, as it was given."""
    revision: str
    features: tuple[Mapping[str, Any], ...] | None
    """The intervention, one record per feature; None for a plain run, empty where it was not recorded."""
    unrecorded: Mapping[str, Any]
    """What other code was given to steer with, where it recorded no intervention; else empty."""
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
        """Runs with the same one are repetitions of one another, on the same questions."""
        return *self.identity_without_samples, hashlib.sha256("\n".join(sorted(self.questions)).encode()).digest()

    @property
    def identity_without_samples(self) -> tuple:
        """The identity, as far as it is known of a run whose answers were not logged."""
        everything = [self.features, self.unrecorded, self.requirements, self.settings]
        return self.task, self.model, self.revision, json.dumps(everything, sort_keys=True, default=str)

    def row(self, question: Question) -> dict[str, Any]:
        """The row of the samples file."""
        with self.samples_file.open("rb") as file:
            file.seek(question.offset)
            return json.loads(file.readline())


def read_runs(folders: Iterable[Path], *, words: WordCounter | None = None) -> list[Run]:
    """Every run below the folders; of several that differ in nothing but their date, the latest.

    Without its answers a run does not say which questions it answered: it gives way to a later one of the same settings
    that logged them, and replaces none.

    Raises UserError for a missing folder, a broken file, or where there are no results at all.
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
    latest: dict[tuple, Run] = {}
    silent: dict[tuple, Run] = {}
    for file in sorted(files, key=lambda file: (file.name, file)):  # the name holds the time
        for run in read_results(file, root=files[file], words=words):
            if run.questions:
                latest[run.identity] = run
                silent.pop(run.identity_without_samples, None)
            else:
                silent[run.identity_without_samples] = run
    if not latest and not silent:
        raise UserError(f"no results_*.json below {', '.join(map(str, folders))}")
    return [*latest.values(), *silent.values()]


def read_results(file: Path, *, root: Path | None = None, words: WordCounter | None = None) -> list[Run]:
    """The runs, one per task, of one results file and the samples beside it.

    Args:
        file: results_*.json.
        root: the folder of results that it belongs to; its own by default.
        words: what to count in the answers.

    Raises:
        UserError: the file is broken, or holds a number or an intervention that no report can be made of.
    """
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        return [
            _run(file, root or file.parent, results, task, words)
            for task in results["results"]
            if task in results.get("n-samples", {})  # else it is a group's mean
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = str(error) if type(error) is ValueError else repr(error)
        raise UserError(
            f"{file} is not a results file of lm-eval: {what}; move it elsewhere, or run that evaluation again"
        ) from error


def _run(file: Path, root: Path, results: Mapping[str, Any], task: str, words: WordCounter | None) -> Run:
    config = results["config"]
    model_args = _model_args(config.get("model_args"))
    model = str(results.get("model_name") or model_args.get("pretrained") or "unknown")
    date = file.stem.removeprefix("results_")
    samples_file = file.with_name(f"samples_{task}_{date}.jsonl")
    features, positions = _intervention(config.get("sae"))
    unrecorded = {} if features else _unrecorded_steering(config, model_args)
    n_questions = results["n-samples"][task]["effective"]
    if not isinstance(n_questions, int) or n_questions < 1:
        raise ValueError(f"{task} has {n_questions!r} questions, expected a whole number of at least 1")
    task_config = results.get("configs", {}).get(task, {})
    return Run(
        file=file,
        root=root,
        date=date,
        task=task,
        model=os.path.normpath(model),
        revision=str(config.get("model_revision") or model_args.get("revision") or "main"),
        features=() if unrecorded else features,
        unrecorded=unrecorded,
        steered_positions=positions,
        n_questions=n_questions,
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
    environment = str(results.get("pretty_env_info"))
    torch = re.search(r"^PyTorch version: (\S+)", environment, re.MULTILINE)
    gpus = sorted({name.strip() for name in GPU.findall(environment)})
    device = config.get("device")
    return {
        "limit": config.get("limit"),
        "back end": BACK_ENDS.get(back_end, back_end),
        "model dtype": str(config.get("model_dtype") or model_args.get("dtype")).removeprefix("torch."),
        "lm-eval version": results.get("lm_eval_version"),
        "transformers version": results.get("transformers_version"),
        "vLLM version": config.get("vllm_version"),
        "torch version": torch and torch.group(1),
        # cuda:0 and cuda:1 are cards of one machine.
        "device": device and str(device).partition(":")[0],
        "GPU": ", ".join(gpus) or None,
        "judge": judge and {name: judge.get(name) for name in JUDGE_SETTINGS},
        "scoring": ADDRESS.sub("", str(task.get("process_results"))),
        SCORING_CODE: config.get("scoring"),
        "repeats": task.get("repeats"),
        "batch size": config.get("batch_size"),
        "seed": config.get("torch_seed"),
        **{f"generation argument {name}": _typed(value) for name, value in sorted(generation.items())},
        **{
            f"model argument {name}": _typed(value)
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


def _typed(value: Any) -> Any:
    """A number or flag that was recorded as it was typed on the command line, as what it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value.lower())
    except ValueError:
        return value
    return found if isinstance(found, int | float) else value


def _intervention(record: Any) -> tuple[tuple[Mapping[str, Any], ...] | None, int | None]:
    """The features and the number of steered positions; None and None for a plain run. Raises ValueError."""
    if record is None:
        return None, None
    features = record.get("features") if isinstance(record, Mapping) else None
    if not isinstance(features, list) or not features:
        raise ValueError(f"config.sae names no feature: {_short(record)}")
    for feature in features:
        if not isinstance(feature, Mapping):
            raise ValueError(f"config.sae has {_short(feature)} in place of a feature")
        for name, kind in FEATURE_FIELDS.items():
            if not isinstance(feature.get(name), kind):
                raise ValueError(f"a feature in config.sae has {name} {_short(feature.get(name))}")
        for name in ("value", "strength", "max_activation"):
            if (number := feature.get(name)) is not None:
                _finite(number, f"{name} of feature {feature['feature_idx']}")
    return tuple(features), record.get("steered_positions")


def _unrecorded_steering(config: Mapping[str, Any], model_args: Mapping[str, Any]) -> dict[str, Any]:
    """What says that other code steered the run; {} for a plain run."""
    found = {name: value for name, value in model_args.items() if name.startswith(FOREIGN_STEERING)}
    if not found and str(config.get("model")).startswith(FOREIGN_STEERING):
        return {"model": config.get("model")}
    return found


def _metrics(recorded: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's key is "<metric>,<filter>", of which the first filter counts; a stderr of one question is "N/A".

    Raises ValueError for a mean that is no finite number.
    """
    metrics: dict[str, float] = {}
    for key, value in recorded.items():
        name, comma, _ = key.partition(",")
        if comma and isinstance(value, int | float):
            # Nothing is made of lm-eval's own standard errors.
            metrics.setdefault(name, float(value) if name.endswith("_stderr") else _finite(value, name))
    return metrics


def _finite(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {_short(value)}, expected a finite number")
    return float(value)


def _short(value: Any) -> str:
    return "missing" if value is None else f"{value!r:.60}"


def read_samples(file: Path, *, words: WordCounter | None = None) -> dict[str, Question]:
    """What was logged of each question, by the hashes of its row and its prompt; {} where there is no such file.

    Raises UserError for a line that is no JSON, which a run that was cut off leaves, or holds no finite numbers.
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
    digests = []
    counts = [0] * (len(words.words) if words else 0)
    for text in answer_texts(row):
        digests.append(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
        if words:
            counts = [a + b for a, b in zip(counts, words.count(text), strict=True)]
    numbers = {name: _finite(value, name) for name, value in row.items() if isinstance(value, int | float)}
    numbers.pop("doc_id", None)
    return Question(numbers, tuple(digests), tuple(counts), offset)


def answer_texts(row: Mapping[str, Any]) -> Iterator[str]:
    """The answers of a row of the samples file, in order; of a task that generates none, what was logged instead."""
    for request in row["resps"]:
        for response in request:
            yield response if isinstance(response, str) else json.dumps(response)
