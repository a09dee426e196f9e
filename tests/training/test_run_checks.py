"""What config, model and tokens must have in common is checked before any weights load; every shipped config has it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from sae_training import checks, config

from transformer_lens_r1.loading import hook_layer, load_tokenizer
from transformer_lens_r1.shared.errors import UserError
from transformer_lens_r1.tokenising import vocabulary_hash

CONTEXT = 128

# The config.json of the models that the shipped configs are for, as far as the checks read them.
SIZES: dict[str, dict[str, Any]] = {
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
        "num_hidden_layers": 32, "vocab_size": 128256,
    },
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
        "num_hidden_layers": 32, "vocab_size": 128256,
    },
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 1536,
        "num_hidden_layers": 28, "vocab_size": 151936,
    },
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584,
        "num_hidden_layers": 28, "vocab_size": 152064,
    },
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 4096,
        "num_hidden_layers": 36, "vocab_size": 151936,
    },
    "quickstart-run/model": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576,
        "num_hidden_layers": 30, "vocab_size": 49152,
    },
}  # fmt: skip
CONFIGS = sorted((Path(__file__).resolve().parents[2] / "training" / "configs").rglob("*.yaml"))


def write_tokens(folder: Path, *, context: int, rows: int = 40, vocabulary_sha256: str | None = None) -> Path:
    """A token data set; with a hash, also the file that says which tokenizer made it."""
    folder.mkdir()
    ids = [[(row + position) % 300 for position in range(context)] for row in range(rows)]
    datasets.Dataset.from_dict({"tokens": ids}).to_parquet(str(folder / "train-00000.parquet"))
    if vocabulary_sha256 is not None:
        tokenizer = {"name": "someone/model", "vocabulary_sha256": vocabulary_sha256}
        (folder / "provenance.json").write_text(json.dumps({"tokenizer": tokenizer, "context_size": context}))
    return folder


@pytest.fixture
def build(tmp_path: Path, run_config: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """The configuration object of a run on the small model that holds 4 of 40 rows out."""

    def call(data: Path, **changes: Any) -> Any:
        values = {"dataset_path": str(data), "n_eval_batches": 1, "sae": {"d_in": 256, "d_sae": 512}, **changes}
        return config.build_config(run_config(tmp_path, **values))

    return call


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_that_is_shipped_fits_its_model_and_rows_of_its_length(tmp_path: Path, path: Path) -> None:
    values = config.read_config(path)
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(SIZES[values["model_name"]]))
    (checkpoint / "model.safetensors").touch()  # empty: reading it would fail
    tokens = write_tokens(tmp_path / "tokens", context=values["context_size"], rows=64)
    cfg = config.build_config(config.read_config(path, [f"model_name={checkpoint}", f"dataset_path={tokens}"]))
    assert checks.check_model(cfg).num_hidden_layers == SIZES[values["model_name"]]["num_hidden_layers"]
    train_rows, held_out_rows = checks.checked_rows(cfg)
    assert len(train_rows) + len(held_out_rows) == 64 and len(held_out_rows) > 0
    assert cfg.output_path.startswith(("sae_runs/", "quickstart-run/"))


def test_the_qwen_configs_are_the_papers_recipe_for_another_model(repository: Path) -> None:
    paper = config.read_config(repository / "training/configs/r1-distill-llama-8b.yaml")
    elsewhere = {"model_name", "hook_name", "dataset_path", "exclude_special_tokens", "logger", "output_path"}
    for name, excluded in (
        ("r1-distill-qwen-1.5b", [151646, 151643]), ("r1-distill-qwen-7b", [151646, 151643]),
        ("qwen3-8b", [151643, 151645]),
    ):  # fmt: skip
        qwen = config.read_config(repository / f"training/configs/{name}.yaml")
        assert {key for key in paper if paper[key] != qwen[key]} - {"sae"} == elsewhere and paper.keys() == qwen.keys()
        assert {key for key in paper["sae"] if paper["sae"][key] != qwen["sae"][key]} <= {"d_in", "d_sae"}
        size = SIZES[qwen["model_name"]]
        assert qwen["sae"]["d_sae"] == 16 * qwen["sae"]["d_in"] == 16 * size["hidden_size"]
        assert hook_layer(qwen["hook_name"]) == round(19 / 32 * size["num_hidden_layers"])
        assert qwen["exclude_special_tokens"] == excluded
    two = config.read_config(repository / "training/configs/r1-distill-llama-8b-two-gpus.yaml")
    places = {"device", "llm_device", "act_store_device", "prefetch_llm_batches", "logger", "output_path"}
    assert {key for key in two if two[key] != paper.get(key)} == places


def test_tokens_of_another_tokenizer_are_refused(build: Callable[..., Any], tmp_path: Path, tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.add_tokens(["another"])
    data = write_tokens(tmp_path / "tokens", context=CONTEXT, vocabulary_sha256=vocabulary_hash(tokenizer))
    with pytest.raises(UserError, match="was made with the tokenizer of someone/model, in which the same id means"):
        checks.checked_rows(build(data))


def test_a_run_that_reads_its_data_again_says_how_often(
    build: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tokens(tmp_path / "tokens", context=CONTEXT, rows=40)  # 4 held out: 36 × 128 = 4,608 tokens
    checks.checked_rows(build(data, training_tokens=4608))
    assert "WARNING" not in capsys.readouterr().err
    checks.checked_rows(build(data, training_tokens=9216))
    assert "reads 9,216 tokens, the norm estimate included" in (err := capsys.readouterr().err)
    assert "holds 4,608 to train on: rows repeat 2.0 times" in err
    sae = {"d_in": 256, "d_sae": 512, "normalize_activations": "expected_average_only_in"}
    checks.checked_rows(build(data, training_tokens=4608, sae=sae, n_batches_for_norm_estimate=9))
    assert "rows repeat 1.5 times" in capsys.readouterr().err  # 9 × 256 tokens more
