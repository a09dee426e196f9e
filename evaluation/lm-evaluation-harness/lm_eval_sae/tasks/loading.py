"""The tasks of a run: their names, and their data before the model is loaded."""

import contextlib
import functools
import random
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lm_eval_sae import TASKS_DIR
from lm_eval_sae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict


def unknown_task(name: str) -> UserError:
    """The error that says so."""
    ours = [file.stem for file in TASKS_DIR.glob("[!_]*.yaml")]
    return UserError(f"no task '{name}'{did_you_mean(name, ours)}; 'python -m lm_eval_sae ls tasks' lists all")


def uses_own_tasks(args: Namespace) -> bool:
    """Whether every task is one of this package's or of --include_path."""
    from lm_eval.tasks import TaskManager

    tasks = getattr(args, "tasks", None)
    if args.command != "run" or not isinstance(tasks, list):
        return False
    return set(tasks) <= set(TaskManager(include_path=args.include_path, include_defaults=False).all_tasks)


@contextlib.contextmanager
def own_tasks_only() -> Iterator[None]:
    """lm-eval without its own tasks: it reads their 14,000 files at every start, which takes 7 s."""
    import lm_eval.tasks

    original = lm_eval.tasks.TaskManager
    lm_eval.tasks.TaskManager = functools.partial(original, include_defaults=False)
    try:
        yield
    finally:
        lm_eval.tasks.TaskManager = original


@contextlib.contextmanager
def data_before_the_model() -> Iterator[None]:
    """lm-eval finds the tasks, loads the model and then the tasks' data; while this lasts it loads the data at once.

    Raises UserError as `load_tasks` does.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    original = EvaluatorConfig.process_tasks

    def process_tasks(config: "EvaluatorConfig", metadata: dict | None = None) -> "TaskManager":
        manager = original(config, metadata)
        loaded = load_tasks(manager, config)
        manager.load = lambda _tasks: loaded
        return manager

    EvaluatorConfig.process_tasks = process_tasks
    try:
        yield
    finally:
        EvaluatorConfig.process_tasks = original


def load_tasks(manager: "TaskManager", config: "EvaluatorConfig") -> "TaskDict":
    """What lm-eval's manager loads for the tasks of a run, their data included.

    Args:
        manager: that found the tasks.
        config: of the run, after lm-eval's process_tasks.

    Raises:
        UserError: data are gated, not there or out of reach, a package that they need is missing, or two of the tasks
            contain the same one.
    """
    import numpy as np
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    if config.seed is not None:  # some tasks order choices as they load, and lm-eval has set these seeds then
        if config.seed[0] is not None:
            random.seed(config.seed[0])
        if config.seed[1] is not None:
            np.random.seed(config.seed[1])
    objects: list[Any] = []
    for task in config.tasks:
        name = task if isinstance(task, str) else task.get("group") or task.get("task")
        try:
            loaded = manager.load([task])
        except (OSError, ValueError, ImportError, RuntimeError, DatasetsError, HTTPError) as error:
            raise _no_data(name, error) from error
        groups = loaded.get("groups", {})
        objects += [groups[name]] if name in groups else loaded["tasks"].values()
    try:
        return manager.load(objects)
    except ValueError as error:  # says which task is there twice
        raise UserError(f"--tasks: {error}") from error


def _no_data(task: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = ""
    if "gated" in reason.lower():
        hint = "; accept the terms on the page of the data set and log in with `hf auth login`"
    return UserError(f"the data of the task {task} cannot be loaded: {reason}{hint}")
