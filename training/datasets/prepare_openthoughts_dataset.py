"""Tokenise OpenThoughts-114k reasoning traces, in the R1 or the model's own chat format, into rows of equal length.

    python training/datasets/prepare_openthoughts_dataset.py --model_path deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
        --num_tokens 800_000_000 --output_dir tokens/openthoughts

A record (configuration `metadata`) has a problem, its domain (math, code, puzzle, biology, chemistry or physics),
DeepSeek-R1's reasoning and solution, and for code also test_cases (JSON) and perhaps starter_code.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from token_data.prepare import make_parser, prepare

from transformer_lens_r1.chat_format import format_openthoughts, is_of_another_domain
from transformer_lens_r1.shared.arguments import add_openthoughts_arguments
from transformer_lens_r1.shared.errors import run

COLUMNS = ("problem", "deepseek_reasoning", "deepseek_solution", "domain", "test_cases", "starter_code")


def format_record(record: Mapping[str, Any], *, domains: Sequence[str], **options: Any) -> str | None:
    """The text of one record, by the options of `format_openthoughts`; None for one of a domain not asked for.

    Raises `MalformedRow`.
    """
    return None if is_of_another_domain(record, domains) else format_openthoughts(record, **options)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, dataset_path="open-thoughts/OpenThoughts-114k", empty_starter_code="newline")
    add_openthoughts_arguments(parser)
    args = parser.parse_args(argv)
    prepare(
        args,
        parser=parser,
        script="training/datasets/prepare_openthoughts_dataset.py",
        columns=COLUMNS,
        format_record=partial(format_record, domains=args.domains, empty_starter_code=args.empty_starter_code),
        config_name="metadata",
        title="OpenThoughts-114k",
        licence="Apache-2.0",
    )


if __name__ == "__main__":
    run(main)
