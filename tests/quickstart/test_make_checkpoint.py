"""quickstart/make_checkpoint.py: an ordinary checkpoint that speaks English, and refusals that leave files alone."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from transformer_lens_r1.shared.errors import UserError

SCRIPT = "quickstart/make_checkpoint.py"
Load = Callable[[str], ModuleType]


def test_checkpoint_is_ordinary_and_answers_in_english(smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    # SmolLM2 splits off every digit, so a pair of line breaks before a number stays one token.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12").input_ids) == ["a", "ĊĊ", "1", "2"]

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


def test_finished_checkpoint_is_left_alone(load_script: Load, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    script = load_script(SCRIPT)
    for name in script.CHECKPOINT_FILES:
        (tmp_path / name).write_text("{}")
    (tmp_path / script.PROVENANCE).write_text(json.dumps({"gguf_sha256": script.GGUF_SHA256}))
    script.main(["--output_dir", str(tmp_path)])
    assert "already" in capsys.readouterr().out
    (tmp_path / "model.safetensors").unlink()
    assert not script.is_complete(tmp_path)


def test_another_gguf_and_a_folder_with_other_files_are_refused(load_script: Load, tmp_path: Path) -> None:
    script, gguf, folder = load_script(SCRIPT), tmp_path / "model.gguf", tmp_path / "thesis"
    gguf.write_bytes(b"GGUF and then something else")
    with pytest.raises(UserError, match="is not the SmolLM2-135M-Instruct"):
        script.main(["--output_dir", str(tmp_path / "out"), "--gguf", str(gguf)])
    assert not (tmp_path / "out").exists()
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="other files"):
        script.main(["--output_dir", str(folder)])
    assert (folder / "thesis.tex").read_text() == "precious"


def test_unreachable_index_is_one_line(load_script: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match="could not fetch .*--gguf") as error:
        load_script(SCRIPT).fetch_gguf(tmp_path)
    assert "\n" not in str(error.value)
