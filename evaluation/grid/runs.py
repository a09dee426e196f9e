"""The runs on the disk: one folder for each, which is complete or absent."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from grid.points import GridPoint
from lm_eval_sae.cli import execute
from lm_eval_sae.engines.kept_completions import FOLDER, clear_results, model_files
from lm_eval_sae.errors import NotSteered, UserError
from lm_eval_sae.judge.client import get_judge
from lm_eval_sae.tasks.problems import TASK as PROBLEMS_TASK
from lm_eval_sae.tasks.problems import problems_file
from transformer_lens_r1.shared.files import hash_file, write_json

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from lm_eval_sae.engines.hf_model import HFSAE
    from lm_eval_sae.engines.vllm_model import VLLMSAE

RECORD = "run.json"
# Of lm-eval's arguments those that results depend on; model arguments and tasks are recorded apart.
RECORDED = (
    "model", "num_fewshot", "batch_size", "max_batch_size", "device", "gen_kwargs", "limit", "samples", "seed",
    "apply_chat_template", "fewshot_as_multiturn", "system_instruction",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedRun:
    """One task under one intervention, or of the baseline."""

    task: str
    point: GridPoint
    folder: Path
    settings: Mapping[str, Any]
    """What its results depend on."""

    @property
    def partial(self) -> Path:
        """The folder while it is not complete."""
        return self.folder.with_name(f"{self.folder.name}.partial")

    @property
    def record(self) -> dict[str, Any] | None:
        """What `evaluate_run` recorded; None where the run is not finished.

        Raises UserError where the folder holds something else than this run.
        """
        if not self.folder.exists():
            return None
        file = self.folder / RECORD
        if not file.is_file():
            raise UserError(f"{self.folder} was not made by evaluate.py; name another --output_dir")
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            there = record["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is broken ({error!r}); delete {self.folder} to run it again") from error
        for name in dict.fromkeys([*self.settings, *there]):
            if there.get(name) != self.settings.get(name):
                raise UserError(
                    f"{self.folder} holds a run with other settings ({name} is {_shown(there.get(name))} there, "
                    f"{_shown(self.settings.get(name))} now; see {RECORD}); name another --output_dir, or delete it"
                )
        return record

    @property
    def finished(self) -> bool:
        """Whether it is complete, its judge included. Raises UserError as `record` does."""
        return self.record is not None and not self.record.get("judge_stopped")


def plan_runs(
    points: Sequence[GridPoint], tasks: Sequence[str], config: EvaluatorConfig, output_dir: Path
) -> list[PlannedRun]:
    """Every task at every point, in this order: a task's baseline run first.

    Args:
        points: the baseline among them.
        tasks: names.
        config: of the baseline run, as lm-eval reads it.
        output_dir: where the folders go.
    """
    model = os.path.basename(os.path.abspath(str(config.model_args["pretrained"])))
    judge = judge.report() if (judge := get_judge()) else None
    runs = []
    for task in tasks:
        shared = {name: getattr(config, name) for name in RECORDED}
        shared |= {"task": task, "model_args": config.model_args}
        shared["weights"] = model_files(str(config.model_args["pretrained"]))
        shared["metadata"] = {k: v for k, v in config.metadata.items() if k not in config.model_args}
        shared["judge"] = judge and {name: judge[name] for name in ("model", "host", "mode", "prompt_sha")}
        if task == PROBLEMS_TASK:
            shared["problems"] = hash_file(problems_file(config.metadata))
        for point in points:
            name = "-".join(filter(None, (model, task, point.name)))
            settings = shared | {"intervention": point.steering and point.steering.record(), "SAE": _sae_files(point)}
            runs.append(PlannedRun(task, point, output_dir / name, json.loads(json.dumps(settings, default=str))))
    return runs


def _sae_files(point: GridPoint) -> list[Any] | None:
    """An SAE trained again lies in the same folder. The weights are gigabytes: their size and time stand for them."""
    path = point.arguments.get("sae_path")
    if path is None:
        return None
    from lm_eval_sae.steering.sae_rows import CONFIG_FILE, WEIGHTS_FILE

    folder = Path(str(path)).expanduser()
    weights = (folder / WEIGHTS_FILE).stat()
    return [hash_file(folder / CONFIG_FILE), weights.st_size, weights.st_mtime_ns]


def generate_all(model: VLLMSAE, runs: Sequence[PlannedRun], args: Namespace, console: TextIO) -> None:
    """Generates in one batch all completions that the runs will need, each into what its run keeps.

    Args:
        model: stands in for a start (`instead_of_a_start`).
        runs: that are not finished.
        args: of a baseline run, after `prepare_run`.
        console: shows the progress.
    """
    requests = {task: _requests_of(model, task, args) for task in dict.fromkeys(run.task for run in runs)}
    jobs = [
        (run.point.steering, requests[run.task], run.partial / FOLDER)
        for run in runs
        if requests[run.task] and not run.folder.exists()  # else it is complete but for the judge
    ]
    with contextlib.ExitStack() as stack:

        def start(count: int) -> Callable[[int, int], None]:
            bar = stack.enter_context(tqdm(total=count, desc="answers", unit="answer", file=console))

            def show(finished: int, tokens: int) -> None:
                bar.set_postfix_str(f"{tokens / bar.format_dict['elapsed']:.0f} tokens/s", refresh=False)
                bar.update(finished - bar.n)

            return show

        # A run whose steering was not proven generates what it lacks by itself, and fails by itself.
        with contextlib.suppress(NotSteered):
            model.generate_ahead(jobs, start=start)


class _Asked(Exception):
    """lm-eval has asked a model for its answers."""


def _requests_of(model: VLLMSAE, task: str, args: Namespace) -> list[Instance]:
    """What lm-eval will ask a model to generate for a task."""
    found: list[Instance] = []

    def ask(requests: list[Instance], *_: Any, **__: Any) -> None:
        found.extend(requests)
        raise _Asked

    def other(*_: Any, **__: Any) -> None:
        raise _Asked

    model.generate_until, model.loglikelihood, model.loglikelihood_rolling = ask, other, other
    try:
        with contextlib.suppress(_Asked):
            execute(Namespace(**{**vars(args), "tasks": [task]}))
    finally:
        del model.generate_until, model.loglikelihood, model.loglikelihood_rolling  # those of its class are there again
    return found


def evaluate_run(run: PlannedRun, args: Namespace, model: HFSAE | VLLMSAE) -> float | None:
    """Evaluates one run; its folder appears when it is complete. Returns its accuracy, if it has one.

    Args:
        run: which.
        args: of a baseline run, after `prepare_run`.
        model: stands in for a start (`instead_of_a_start`).

    Raises:
        RuntimeError: lm-eval left no results, or the intervention was not in force.
    """
    if run.folder.exists():  # complete but for the judge; its results stay until there are better ones
        shutil.rmtree(run.partial, ignore_errors=True)
        shutil.copytree(run.folder / FOLDER, run.partial / FOLDER)
    clear_results(run.partial)
    model_args = {**args.model_args, **run.point.arguments}
    own = {"tasks": [run.task], "model_args": model_args, "output_path": str(run.partial)}
    model.set_intervention(run.point.steering)
    with contextlib.redirect_stdout(io.StringIO()):  # a table for every run: the report has them all
        stopped = execute(Namespace(**{**vars(args), **own}))
    files = list(run.partial.glob("*/results_*.json"))
    if len(files) != 1 or len(list(run.partial.glob("*/samples_*.jsonl"))) != 1:
        raise RuntimeError(f"{run.folder.name} ended without results")
    results = json.loads(files[0].read_text(encoding="utf-8"))
    recorded = results["config"]["sae"]
    positions = recorded.pop("steered_positions") if recorded else None
    if recorded != (run.point.steering and run.point.steering.record()) or positions == 0:
        raise RuntimeError(f"{files[0]} records another intervention, or that nothing was steered: {recorded}")
    record = {"steered_positions": positions, "judge_stopped": stopped, "settings": run.settings}
    write_json(run.partial / RECORD, record)
    if run.folder.exists():
        shutil.rmtree(run.folder)
    run.partial.rename(run.folder)
    metrics = results["results"][run.task]
    return next((value for name, value in metrics.items() if name.startswith(("exact_match,", "acc,"))), None)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
