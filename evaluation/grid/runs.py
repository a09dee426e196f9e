"""The runs of a sweep on the disk: one folder for each, which is complete or absent."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grid.points import GridPoint

from lm_eval_sae.cli import execute
from lm_eval_sae.engines.kept_completions import FOLDER, clear_results, model_files
from lm_eval_sae.errors import UserError
from lm_eval_sae.judge.client import get_judge
from lm_eval_sae.tasks.problems import TASK as PROBLEMS_TASK
from lm_eval_sae.tasks.problems import problems_file
from transformer_lens_r1.shared.files import hash_file, write_json

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig

RECORD = "run.json"
# Of lm-eval's arguments those that results depend on; model arguments and tasks are recorded apart.
RECORDED = (
    "model", "num_fewshot", "batch_size", "max_batch_size", "device", "gen_kwargs", "limit", "samples", "seed",
    "apply_chat_template", "fewshot_as_multiturn", "system_instruction",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedRun:
    """One task at one point of the grid."""

    task: str
    point: GridPoint
    folder: Path
    settings: Mapping[str, Any]
    """What its results depend on."""

    @property
    def record(self) -> dict[str, Any] | None:
        """What `evaluate_point` recorded; None where the run is not finished.

        Raises UserError where the folder holds something else than this run.
        """
        if not self.folder.exists():
            return None
        file = self.folder / RECORD
        if not file.is_file():
            raise UserError(f"{self.folder} was not made by a sweep; name another --output_dir")
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
        points: of the grid, the baseline among them.
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


def evaluate_point(run: PlannedRun, args: Namespace, probe: Probe, *, model_started: str) -> None:
    """Evaluates one run in the model of `probe`; its folder appears when it is complete.

    Args:
        run: which.
        args: of a baseline run, after `prepare_run`.
        probe: that has measured the point.
        model_started: when the model was; recorded.

    Raises:
        RuntimeError: lm-eval left no results, or the intervention was not in force.
    """
    begun = time.perf_counter()
    partial = run.folder.with_name(f"{run.folder.name}.partial")
    if run.folder.exists():  # complete but for the judge; its results stay until there are better ones
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(run.folder / FOLDER, partial / FOLDER)
    clear_results(partial)
    model_args = {**args.model_args, **run.point.arguments}
    own = {"tasks": [run.task], "model_args": model_args, "output_path": str(partial)}
    probe.model.set_intervention(run.point.steering)
    with contextlib.redirect_stdout(io.StringIO()):  # a table for every run: the report has them all
        stopped = execute(Namespace(**{**vars(args), **own}))
    files = list(partial.glob("*/results_*.json"))
    if len(files) != 1 or len(list(partial.glob("*/samples_*.jsonl"))) != 1:
        raise RuntimeError(f"{run.folder.name} ended without results")
    recorded = json.loads(files[0].read_text(encoding="utf-8"))["config"]["sae"]
    positions = recorded.pop("steered_positions") if recorded else None
    if recorded != (run.point.steering and run.point.steering.record()) or positions == 0:
        raise RuntimeError(f"{files[0]} records another intervention, or that nothing was steered: {recorded}")
    probe.confirm(run.point)
    record = {
        "steered_positions": positions,
        "probe": {
            "log_likelihoods": probe.values[run.point.name],
            "change_from_plain": probe.change(run.point),
            "noise": probe.noise,
        },
        "seconds": round(time.perf_counter() - begun, 2),
        "model_started": model_started,
        "judge_stopped": stopped,
    }
    write_json(partial / RECORD, {**record, "settings": run.settings})
    if run.folder.exists():
        shutil.rmtree(run.folder)
    partial.rename(run.folder)


def write_overview(file: Path, runs: Sequence[PlannedRun]) -> None:
    """The finished runs with what proves their intervention, in one file."""
    finished = [(run, run.record) for run in runs]
    rows = [
        {
            "folder": run.folder.name,
            "task": run.task,
            "features": [] if run.point.steering is None else run.point.steering.record()["features"],
            **{name: value for name, value in record.items() if name != "settings"},
        }
        for run, record in finished
        if record is not None
    ]
    write_json(file, {"probe_prompts": PROMPTS, "runs": rows})


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
