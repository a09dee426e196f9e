"""The command line: lm-eval's own, with this package's models and tasks, and one line for a mistake.

`--model hf` is `hf-sae` here and `--model vllm` is `vllm-sae`: without `sae_*` arguments the engines are lm-eval's own,
tokens are counted, sampled requests have a seed each in vLLM, and no prompt is cut off.
"""

import contextlib
import hashlib
import io
import json
import logging
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from lm_eval_sae import TASKS_DIR, register_filters, register_models
from lm_eval_sae.engines.arguments import (
    FLAGS,
    check_device,
    check_flags_given_once,
    check_generation_arguments,
    refuse_for_steering,
    refuse_secrets,
    require_usable_card,
    require_vllm,
)
from lm_eval_sae.engines.kept_completions import kept_in
from lm_eval_sae.errors import UserError, did_you_mean
from lm_eval_sae.judge.client import get_judge
from lm_eval_sae.steering.arguments import check_model, read_steering, split_arguments
from lm_eval_sae.tasks.loading import (
    data_before_the_model,
    load_tasks,
    own_tasks_only,
    unknown_task,
    uses_own_tasks,
)
from lm_eval_sae.tasks.problems import TASK as PROBLEMS_TASK
from lm_eval_sae.tasks.problems import problems_file

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig

HF_MODELS = ("hf", "hf-auto", "huggingface", "hf-sae")
VLLM_MODELS = ("vllm", "vllm-sae")
JUDGE_STOPPED = 3
"""Exit status."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `lm_eval` with `argv` (sys.argv by default).

    Raises:
        UserError: a mistake of the user's.
        SystemExit: with JUDGE_STOPPED, where the results are written but the judge stopped answering.
    """
    from lm_eval.utils import setup_logging

    setup_logging()
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.command == "run":
        prepare_run(args)
    if stopped := execute(args):
        print(
            f"error: the results are written, but the judge stopped answering ({stopped}); config.judge there says how "
            "many questions are open; run again once it answers: its verdicts and the completions are kept",
            file=sys.stderr,
        )
        raise SystemExit(JUDGE_STOPPED)


def execute(args: Namespace) -> str | None:
    """Does what `parse` read, after `prepare_run` where it is a run, whose data are loaded before the model.

    Returns why the judge stopped answering, None if it did not. Raises UserError for an unknown task, and for data
    that cannot be loaded.
    """
    register_filters()  # the tasks need it under any model, and other commands load them too
    judge = get_judge() if args.command == "run" else None
    stopped = None
    with contextlib.ExitStack() as stack:
        if uses_own_tasks(args):
            stack.enter_context(own_tasks_only())
        if args.command == "run":
            stack.enter_context(data_before_the_model())
        kept = stack.enter_context(kept_in(getattr(args, "output_path", None)))
        try:
            args.func(args)
        except ValueError as error:
            if str(error).startswith("Tasks not found"):
                raise unknown_task(str(error).partition(": ")[2]) from error
            raise
        finally:
            if judge is not None:  # one process may do many runs, each with its own account of the judge
                stopped = judge.end_run()
        kept.needed_again = stopped is not None
    return stopped


def parse(argv: Sequence[str], *, more_flags: Iterable[str] = ()) -> Namespace:
    """lm-eval's parser, which says what is wrong in one line and takes no abbreviated flags.

    Args:
        argv: the command line without the program.
        more_flags: that the user could have meant by one that lm-eval does not know.
    """
    from lm_eval._cli.harness import HarnessCLI

    cli = HarnessCLI()
    commands: dict[str, ArgumentParser] = cli._subparsers.choices
    argv = list(argv)
    if not argv or (argv[0] not in commands and argv[0] not in ("-h", "--help")):
        argv.insert(0, "run")  # lm-eval's older style, without a command
    known = {flag for parser in commands.values() for flag in parser._option_string_actions} | set(more_flags)

    def fail(message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        hint = did_you_mean(unknown.group(1).partition("=")[0], known) if unknown else ""
        raise UserError(message + hint)

    for parser in (cli._parser, *commands.values()):
        parser.error = fail
        parser.allow_abbrev = False
    args = cli._parser.parse_args(argv)
    if hasattr(args, "include_path"):
        in_file = _of_config_file(args, "include_path") or []
        given = args.include_path or in_file
        args.include_path = [str(TASKS_DIR), *([given] if isinstance(given, str) else given)]
    return args


def _of_config_file(args: Namespace, name: str) -> Any:
    """What lm-eval's --config file says, which a value of ours on the command line would hide."""
    file = getattr(args, "config", None)
    if not file or not Path(file).is_file():
        return None
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None  # lm-eval's to say
    return content.get(name) if isinstance(content, dict) else None


def read_config(args: Namespace) -> "EvaluatorConfig":
    """The arguments as lm-eval will read them, its --config file included. Raises UserError if it cannot."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    logging.disable(logging.WARNING)  # lm-eval reads the same arguments again, and says the same then
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return EvaluatorConfig.from_cli(Namespace(**vars(args)))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    finally:
        logging.disable(logging.NOTSET)


def task_names(config: "EvaluatorConfig") -> list[str]:
    """The tasks that are asked for. Raises UserError if there are none."""
    tasks = config.tasks.split(",") if isinstance(config.tasks, str) else config.tasks
    if not tasks:
        raise UserError("no --tasks; for instance --tasks math-500")
    return tasks


def prepare_run(args: Namespace) -> None:
    """Checks a run against the SAE, the model's config and the data before anything is loaded; edits `args`."""
    config = read_config(args)
    refuse_secrets(config.model_args)
    if PROBLEMS_TASK in task_names(config):
        problems_file(config.metadata)
    ours, others = split_arguments(config.model_args)
    if config.model in (*HF_MODELS, *VLLM_MODELS):
        args.model = "hf-sae" if config.model in HF_MODELS else "vllm-sae"
        _check_engine(args, config, others, steered=bool(ours))
        _check_steering(args, config, ours, others)
    elif ours:
        raise UserError(f"--model {config.model} cannot steer; expected hf-sae or vllm-sae")
    if judge := get_judge():
        judge.check()
    register_models()


def _check_engine(args: Namespace, config: "EvaluatorConfig", others: Mapping[str, Any], *, steered: bool) -> None:
    """Checks the arguments that are not of steering; edits `args`."""
    if "pretrained" not in others:
        raise UserError("--model_args has no pretrained=<Hub id or folder of the model>")
    check_flags_given_once(others, {name: getattr(config, name) for name in FLAGS})
    if args.model == "hf-sae":
        device = getattr(args, "device", None) or _of_config_file(args, "device")  # lm-eval has a default of its own
        if device is None:
            require_usable_card()
        elif not others.get("parallelize"):
            check_device(device)
    else:
        require_vllm()
        if steered:
            refuse_for_steering(others)
        from vllm.platforms import current_platform

        require_usable_card(vllm_on_cpu=current_platform.is_cpu())
        if "seed" not in others and config.seed and config.seed[2] is not None:
            # One seed for both back ends: transformers draws from torch's generator, vLLM from its own.
            args.model_args = {**config.model_args, "seed": config.seed[2]}
    check_generation_arguments(config.gen_kwargs, engine=args.model)


def _check_steering(
    args: Namespace, config: "EvaluatorConfig", ours: Mapping[str, Any], others: Mapping[str, Any]
) -> None:
    """Checks the SAE against the model's config; edits `args`."""
    from lm_eval_sae.engines.model_files import load_model_config, load_tokenizer

    name = str(others["pretrained"])
    steering = read_steering(ours, partial(load_tokenizer, name, others))
    model_config = load_model_config(name, others)
    if steering is not None:
        check_model(steering, model_config, name=name)
        if config.use_cache:
            # lm-eval's cache of responses does not know which model gave them.
            record = json.dumps(steering.record(), sort_keys=True)
            args.use_cache = f"{config.use_cache}-sae-{hashlib.sha256(record.encode()).hexdigest()[:12]}"


def check_tasks(args: Namespace) -> list[str]:
    """Loads the tasks and their data, for who runs them later.

    Returns the single tasks that lm-eval would run, each once and in its order; one that only its group defines is
    named "group::task". Raises UserError as `execute` does, and if no tasks are asked for.
    """
    register_filters()
    config = read_config(args)
    task_names(config)
    with own_tasks_only() if uses_own_tasks(args) else contextlib.nullcontext():
        try:
            manager = config.process_tasks(config.metadata)
        except ValueError as error:
            raise unknown_task(str(error).partition(": ")[2]) from error
        return list(load_tasks(manager, config)["tasks"])
