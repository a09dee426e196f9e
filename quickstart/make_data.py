#!/usr/bin/env python
"""Make the quickstart's data: local stand-ins for LMSYS-Chat-1M and OpenThoughts-114k, and problems to evaluate on.

Three things are written, in about ten seconds and without the network:

    openthoughts/    1,000 reasoning traces, in the schema of open-thoughts/OpenThoughts-114k (config metadata)
    lmsys/           500 conversations, in the schema of lmsys/lmsys-chat-1m
    problems.jsonl   48 short problems with a number as answer, for the evaluation; none of them is in the other two

The text is worked exemplars that people wrote (shipped with lm-eval), problems of the reasoning-gym package, and
generated problems whose solutions were computed. `source` (lmsys: `model`) says which, and README.md the licences.

    python quickstart/make_data.py --output_dir quickstart-run/data --seed 42
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformer_lens_r1.shared.arguments import ArgumentParser, positive_int
from transformer_lens_r1.shared.errors import run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder

CARD = """
{what}

Made by `quickstart/make_data.py` for trying out the pipeline, not for drawing conclusions: it is small, and most of
it is generated. `{column}` names the source of each row: text from lm-eval's task files was written by people; what is
labelled `generated` was written by a program, which computed every result in it.
"""


def make(
    seed: int, *, num_reasoning: int, num_conversations: int, num_problems: int
) -> dict[str, list[dict[str, Any]]]:
    """All rows, as ``openthoughts``, ``lmsys`` and ``problems``; the same for the same arguments."""
    from reasoning_data.exemplars import load_exemplars
    from reasoning_data.problems import evaluation_problems
    from reasoning_data.schemas import lmsys_rows, openthoughts_rows

    exemplars = load_exemplars()
    # Each part has its own generator, so that asking for more of one leaves the others as they are.
    problems = evaluation_problems(random.Random(f"{seed} problems"), num_problems)
    seen = {row["problem"] for row in problems}
    openthoughts = openthoughts_rows(random.Random(f"{seed} openthoughts"), exemplars, num_reasoning, seen)
    lmsys = lmsys_rows(random.Random(f"{seed} lmsys"), exemplars, num_conversations, seen)
    return {"openthoughts": openthoughts, "lmsys": lmsys, "problems": problems}


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
    parser.add_argument("--seed", type=int, default=42, help="seed of every random choice")
    parser.add_argument("--num_reasoning", type=positive_int, default=1000, help="rows of openthoughts/")
    parser.add_argument("--num_conversations", type=positive_int, default=500, help="rows of lmsys/")
    parser.add_argument("--num_problems", type=positive_int, default=48, help="rows of problems.jsonl")
    args = parser.parse_args(argv)
    check_output_folder(args.output_dir, "problems.jsonl")

    from datasets import Dataset

    from transformer_lens_r1.shared.data import save_rows

    sizes = {name: getattr(args, name) for name in ("num_reasoning", "num_conversations", "num_problems")}
    rows = make(args.seed, **sizes)
    info = {"made_by": "quickstart/make_data.py", "seed": args.seed, **sizes}
    about = {
        "openthoughts": ("Reasoning traces in the schema of OpenThoughts-114k (config `metadata`).", "source"),
        "lmsys": ("Conversations in the schema of LMSYS-Chat-1M.", "model"),
    }
    with atomic_directory(args.output_dir) as folder:
        for name, features in schemas().items():
            dataset = Dataset.from_list(rows[name], features=features)
            what, column = about[name]
            save_rows(dataset, folder / name, info=info, card=CARD.format(what=what, column=column))
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows["problems"]]
        (folder / "problems.jsonl").write_text("".join(lines), encoding="utf-8")
    for name in rows:
        print(f"wrote {len(rows[name]):,} rows of {name} to {args.output_dir}")


if __name__ == "__main__":
    run(main)
