"""prepare_openthoughts_dataset.py: its rows are those of the records asked for, in the text asked for."""

import json
from pathlib import Path

import prepare_openthoughts_dataset as script
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from random_checkpoints import KINDS, save_random_checkpoint
from transformer_lens.utilities import tokenize_and_concatenate
from transformers import AutoTokenizer

CONTEXT = 16


@pytest.mark.parametrize(("options", "newline"), [([], ""), (["--as_published", "--rows", "stream"], "\n")])
def test_rows_of_some_domains_in_the_text_asked_for(
    tiny_llama: Path,
    fixtures_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    newline: str,
) -> None:
    domains = ["code", "math", "biology"] * 20
    records = [
        {
            "problem": f"problem {index} of {domain}", "deepseek_reasoning": "Wait.", "deepseek_solution": "So.",
            "domain": domain, "test_cases": "{}", "starter_code": "",
        }
        for index, domain in enumerate(domains)
    ]  # fmt: skip
    Dataset.from_list(records).to_parquet(tmp_path / "source" / "train.parquet")
    output = tmp_path / "out"
    paths = ["--model_path", str(tiny_llama), "--dataset_path", str(tmp_path / "source"), "--output_dir", str(output)]
    script.main([*paths, "--context_size", str(CONTEXT), "--domains", "code,biology", *options])
    assert ("--num_tokens 800000000 asks for" in capsys.readouterr().err) == bool(options)

    spec = json.loads((fixtures_dir / "prompts.json").read_text(encoding="utf-8"))["openthoughts"]
    users = {
        "code": spec["user_by_domain"]["code_without_fn_name"] + newline,
        "biology": spec["user_by_domain"]["biology"],
    }
    texts = [
        f"{spec['system']}<｜User｜>{users[record['domain']].replace('{problem}', record['problem'])}"
        "<｜Assistant｜><think>\nWait.\n</think>\nSo."
        for record in records
        if record["domain"] != "math"
    ]
    expected = tokenize_and_concatenate(
        Dataset.from_dict({"text": texts}),
        AutoTokenizer.from_pretrained(tiny_llama),
        max_length=CONTEXT,
        add_bos_token=False,
        num_proc=None,
    )["tokens"][:].tolist()
    rows = pq.read_table(sorted(output.glob("*.parquet")))["tokens"].to_pylist()
    assert sorted(rows) == sorted(expected)
    provenance = json.loads((output / "provenance.json").read_text())
    assert provenance["source"]["malformed"] == 0 and "--domains code,biology" in provenance["command"]


def test_rows_in_the_models_own_chat_format(tiny_llama: Path, tmp_path: Path) -> None:
    save_random_checkpoint(*KINDS["qwen3"], tmp_path / "model", tokenizer=tiny_llama)
    record = {
        "problem": "Why?", "deepseek_reasoning": "Wait.", "deepseek_solution": "So.", "domain": "physics",
        "test_cases": "{}", "starter_code": "",
    }  # fmt: skip
    Dataset.from_list([record] * 9).to_parquet(tmp_path / "source" / "train.parquet")
    out = tmp_path / "out"
    paths = ["--model_path", str(tmp_path / "model"), "--dataset_path", str(tmp_path / "source")]
    script.main([*paths, "--output_dir", str(out), "--context_size", "900", "--chat_format", "model"])
    (row, *_) = pq.read_table(sorted(out.glob("*.parquet")))["tokens"].to_pylist()
    text = AutoTokenizer.from_pretrained(tiny_llama).decode(row)
    assert "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\nWait.\n</think>\n\nSo.<|im_end|>" in text
    assert "<｜User｜>" not in text


def test_the_model_has_the_published_default() -> None:
    assert (
        script.make_parser("", dataset_path="x").parse_args([]).model_path == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    )
