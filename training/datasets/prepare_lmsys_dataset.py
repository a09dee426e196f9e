"""Tokenise LMSYS-Chat-1M conversations, in the R1 or the model's own chat format, into rows of equal length.

    python training/datasets/prepare_lmsys_dataset.py --model_path deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
        --num_tokens 800_000_000 --output_dir tokens/lmsys

A record has a column `conversation`, a list of messages such as
[{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}].
"""

from collections.abc import Mapping, Sequence
from typing import Any

from token_data.prepare import make_parser, prepare

from transformer_lens_r1.chat_format import format_lmsys
from transformer_lens_r1.shared.errors import run


def format_record(record: Mapping[str, Any], **options: Any) -> str:
    """The text of one record, by the options of `format_lmsys`; raises `MalformedRow`."""
    return format_lmsys(record["conversation"], **options)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, dataset_path="lmsys/lmsys-chat-1m")
    prepare(
        parser.parse_args(argv),
        parser=parser,
        script="training/datasets/prepare_lmsys_dataset.py",
        columns=("conversation",),
        format_record=format_record,
        title="lmsys-chat-1m",
        licence="LMSYS-Chat-1M Dataset License Agreement",
    )


if __name__ == "__main__":
    run(main)
