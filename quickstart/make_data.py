#!/usr/bin/env python
"""Make the quickstart's data: local stand-ins for LMSYS-Chat-1M and OpenThoughts-114k, and problems to evaluate on.

Four things are written, in a few seconds and without the network:

    openthoughts/    1,000 reasoning traces, in the schema of open-thoughts/OpenThoughts-114k (config metadata)
    lmsys/           500 conversations, in the schema of lmsys/lmsys-chat-1m
    ordinary/        prose without reasoning, in a column `text`
    problems.jsonl   48 short problems with a number as answer, for the evaluation; none of them is in the other two

The generated text lies in quickstart/data, whose README.md says how it was made. The text that people wrote is read
from the task files of the installed lm-eval.

    python quickstart/make_data.py --output_dir quickstart-data
"""

import gzip
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer_lens_r1.shared.arguments import ArgumentParser
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder

DATA = Path(__file__).resolve().parent / "data"
# Worked examples of BIG-Bench-Hard, MMLU (as in Flan) and GSM8K, below lm-eval's folder of tasks.
TASK_FILES = ("bbh/cot_fewshot/[a-z]*.yaml", "mmlu/flan_cot_fewshot/mmlu_*.yaml", "gsm8k/gsm8k-cot.yaml")
CARD = """
{what}

Made by `quickstart/make_data.py` for trying out the pipeline, not for drawing conclusions: it is small, and most of
it is generated. `{column}` names the source of each row: text from lm-eval's task files was written by people; what is
labelled `generated` was written by a program, which computed every result in it.
"""
ORDINARY = "in_the_year_2889.txt"
ABOUT = {
    "openthoughts": ("Reasoning traces in the schema of OpenThoughts-114k (config `metadata`).", "source"),
    "lmsys": ("Conversations in the schema of LMSYS-Chat-1M.", "model"),
}


class Exemplar(NamedTuple):
    """A question and the worked answer that a person wrote for it."""

    question: str
    reasoning: str
    answer: str
    """The closing sentence, which names the answer."""


def read_exemplars() -> dict[str, Exemplar]:
    """The exemplars in lm-eval's task files, by the beginning of the SHA-256 of their text.

    Raises:
        UserError: lm-eval is not installed.
    """
    import yaml

    spec = importlib.util.find_spec("lm_eval")  # finds the folder without importing the package, which takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lm-eval is not installed, and part of the text comes from its files: run setup.sh first")
    tasks = Path(spec.submodule_search_locations[0]) / "tasks"
    exemplars = {}
    for path in (path for pattern in TASK_FILES for path in tasks.glob(pattern)):
        # BaseLoader: every value is text, and tags that name Python functions are not followed.
        task = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        for sample in task.get("fewshot_config", {}).get("samples", []):
            question, target = sample.get("question") or sample["input"], sample["target"]
            reasoning = target.strip().removeprefix("Let's think step by step.").strip()
            end = max(reasoning.rfind("So the answer is"), reasoning.rfind("The answer is"))
            key = hashlib.sha256((question + target).encode()).hexdigest()[:12]
            exemplars[key] = Exemplar(question.strip(), reasoning[:end].strip(), reasoning[end:].strip())
    return exemplars


def read_rows(exemplars: Mapping[str, Exemplar]) -> dict[str, list[dict[str, Any]]]:
    """The rows of both data sets, ``openthoughts`` and ``lmsys``, with the exemplars in their places.

    Raises:
        UserError: an exemplar that the data names is not among ``exemplars``.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ABOUT}
    try:
        with gzip.open(DATA / "traces.jsonl.gz", "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                name = row.pop("data_set")
                complete = _openthoughts_row if name == "openthoughts" else _lmsys_row
                rows[name].append(complete(row, exemplars))
    except KeyError as error:
        raise UserError(
            f"the installed lm-eval lacks worked example {error}; install the version that requirements.txt names"
        ) from error
    return rows


def _openthoughts_row(row: dict[str, Any], exemplars: Mapping[str, Exemplar]) -> dict[str, Any]:
    if key := row.pop("exemplar", None):
        question, reasoning, answer = exemplars[key]
        row |= {"problem": question, "deepseek_reasoning": reasoning}
        row |= {"deepseek_solution": answer, "ground_truth_solution": answer}
    return {**row, "test_cases": row.get("test_cases", ""), "starter_code": row.get("starter_code")}


def _lmsys_row(row: dict[str, Any], exemplars: Mapping[str, Exemplar]) -> dict[str, Any]:
    messages = [message for part in row["conversation"] for message in _messages(part, exemplars)]
    return {
        **row,
        "conversation": messages,
        "turn": sum(message["role"] == "user" for message in messages),
        "language": "English",
        "openai_moderation": [],  # no moderation model was asked
        "redacted": False,
    }


def _messages(part: dict[str, str], exemplars: Mapping[str, Exemplar]) -> Iterator[dict[str, str]]:
    if "exemplar" not in part:
        yield part
        return
    question, reasoning, answer = exemplars[part["exemplar"]]
    yield {"role": "user", "content": question}
    yield {"role": "assistant", "content": f"{reasoning} {answer}"}


def schemas() -> dict[str, Any]:
    """The features of the two data sets, as the Hub's originals have them."""
    from datasets import Features, List, Value

    text, flag, number = Value("string"), Value("bool"), Value("float64")
    categories = ("harassment", "hate", "self-harm", "sexual", "violence")
    more = ("harassment/threatening", "hate/threatening", "self-harm/instructions", "self-harm/intent")
    categories += (*more, "sexual/minors", "violence/graphic")
    names = ("problem", "deepseek_reasoning", "deepseek_solution", "ground_truth_solution", "domain", "source")
    return {
        "openthoughts": Features({name: text for name in (*names, "test_cases", "starter_code")}),
        "lmsys": Features(
            {
                "conversation_id": text,
                "model": text,
                "conversation": List({"content": text, "role": text}),
                "turn": Value("int64"),
                "language": text,
                "openai_moderation": List(
                    {
                        "categories": {name: flag for name in sorted(categories)},
                        "category_scores": {name: number for name in sorted(categories)},
                        "flagged": flag,
                    }
                ),
                "redacted": flag,
            }
        ),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write the data to")
    args = parser.parse_args(argv)
    check_output_folder(args.output_dir, "problems.jsonl")
    rows = read_rows(read_exemplars())

    from datasets import Dataset

    from transformer_lens_r1.shared.data import save_rows

    with atomic_directory(args.output_dir) as folder:
        for name, features in schemas().items():
            what, column = ABOUT[name]
            dataset = Dataset.from_list(rows[name], features=features)
            card = CARD.format(what=what, column=column)
            save_rows(dataset, folder / name, info={"made_by": "quickstart/make_data.py"}, card=card)
            print(f"{name}: {len(dataset):,} rows")
        (folder / "ordinary").mkdir()
        text = (DATA / ORDINARY).read_text(encoding="utf-8")
        (folder / "ordinary" / "text.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
        shutil.copy(DATA / "problems.jsonl", folder)
    print(f"wrote the data to {args.output_dir}")


if __name__ == "__main__":
    run(main)
