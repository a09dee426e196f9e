"""Tokenise OpenThoughts-114k reasoning traces, in the R1 chat format, into rows of equal length.

    python training/datasets/prepare_openthoughts_dataset.py --model_path deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
        --num_tokens 800_000_000 --output_dir tokens/openthoughts

A record (configuration `metadata`) has a problem, its domain (math, code, puzzle, biology, chemistry or physics),
DeepSeek-R1's reasoning and solution, and for code also test_cases (JSON) and perhaps starter_code.
"""

from collections.abc import Sequence

from token_data.prepare import prepare

from transformer_lens_r1.chat_format import format_openthoughts
from transformer_lens_r1.shared.errors import run

COLUMNS = ("problem", "deepseek_reasoning", "deepseek_solution", "domain", "test_cases", "starter_code")


def main(argv: Sequence[str] | None = None) -> None:
    prepare(
        argv,
        script="training/datasets/prepare_openthoughts_dataset.py",
        description=__doc__,
        dataset_path="open-thoughts/OpenThoughts-114k",
        columns=COLUMNS,
        format_record=format_openthoughts,
        config_name="metadata",
        title="OpenThoughts-114k",
        licence="Apache-2.0",
    )


if __name__ == "__main__":
    run(main)
