"""Models load whole or only their first layers, tokenizers with a pad of their own, and mistakes end in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoints import deviation
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from transformer_lens_r1 import (
    R1_DISTILLS,
    UserError,
    hook_layer,
    load_config,
    load_model,
    load_tokenizer,
    residual_stream,
)
from transformer_lens_r1.architectures import KNOWN_MODELS
from transformer_lens_r1.forward import logits
from transformer_lens_r1.loading import checkpoint_source


@pytest.fixture(params=["llama, grouped queries", "qwen2, theta 1e4", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, make_checkpoint: Callable[[str], Path]) -> Path:
    """A tiny random checkpoint of each architecture, with 3 layers."""
    return make_checkpoint(request.param)


def test_residual_stream_is_what_the_hook_point_holds(checkpoint: Path) -> None:
    model, tokens = load_model(checkpoint), torch.randint(0, 327, (2, 40))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    for layer in range(3):
        name = f"blocks.{layer}.hook_resid_post"
        assert deviation(residual_stream(model, tokens, name), cache[name]) < 1e-5


def test_a_model_of_the_first_layers_refuses_a_loss(checkpoint: Path) -> None:
    tokens = torch.randint(0, 327, (2, 40))
    for whole in (load_model(checkpoint), load_model(checkpoint, n_layers=3)):
        assert whole(tokens, return_type="loss") > 0
    part = load_model(checkpoint, n_layers=2)
    for loss in (
        lambda: part(tokens, return_type="loss"),
        lambda: part(tokens, return_type="both"),
        lambda: part(tokens, return_type="loss", labels=tokens),
        lambda: part.run_with_hooks(tokens, return_type="loss"),
        lambda: part.original_model(tokens, labels=tokens),
    ):
        with pytest.raises(UserError, match="first 2 of 3 layers"):
            loss()
    part(tokens)


def test_residual_stream_runs_nothing_behind_the_hook(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    reached: list[str] = []
    model.twin.lm_head.register_forward_hook(lambda *_: reached.append("unembedding"))
    model.twin.model.norm.register_forward_hook(lambda *_: reached.append("norm"))
    for layer, module in enumerate(model.twin.model.layers):
        module.register_forward_hook(lambda *_, layer=layer: reached.append(f"layer {layer}"))
    residual_stream(model, torch.tensor([[5, 6, 7]]), "blocks.1.hook_resid_post")
    assert reached == ["layer 0", "layer 1"]
    logits(model, torch.tensor([[5, 6, 7]]), "blocks.1.hook_resid_post")
    assert reached[2:] == ["layer 0", "layer 1", "layer 2", "norm", "unembedding"]


def test_pad_is_neither_bos_nor_eos_and_survives_loading(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.pad_token_id not in (None, tokenizer.bos_token_id, tokenizer.eos_token_id)
    # this vocabulary has no token to spare: the new one stands behind it and takes no row of the embedding
    assert tokenizer.pad_token_id == 327
    assert load_model(checkpoint).tokenizer.pad_token_id == 327


def test_pad_prefers_a_token_of_the_vocabulary(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_0|>", "<|finetune_right_pad_id|>"]})
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<|finetune_right_pad_id|>"


@pytest.mark.parametrize("name", ["blocks.2.hook_resid_pre", "blocks.x.hook_resid_post", "hook_embed", ""])
def test_other_hook_points_are_refused(name: str) -> None:
    assert hook_layer("blocks.19.hook_resid_post") == 19
    with pytest.raises(UserError, match=r"expected blocks\.<layer>\.hook_resid_post"):
        hook_layer(name)


def test_bad_checkpoints_are_refused_before_loading(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"Should have a `model_type` key in its config\.json"):
        load_config(tmp_path)
    shutil.copy(tiny_llama / "config.json", tmp_path)
    with pytest.raises(UserError, match="no weights"):
        load_config(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(UserError, match="GPT2LMHeadModel; supported are LlamaForCausalLM, Qwen2ForCausalLM"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Lama-8B", "did you mean 'deepseek-ai/DeepSeek-R1-Distill-Llama-8B'?"),
        ("nobody/no-such-model", "cannot load the model nobody/no-such-model: "),
        ("./models/mine", "expected an existing folder or a Hub id like user/name"),
    ],
)
def test_unknown_names_are_one_line(name: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_model(name)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_known_model_is_found_by_its_name_alone() -> None:
    assert len(R1_DISTILLS) == 6 and set(R1_DISTILLS) < set(KNOWN_MODELS)
    for name in KNOWN_MODELS:
        assert checkpoint_source(name.split("/")[1].lower()) == checkpoint_source(name) == name
    assert {"Qwen/Qwen3-8B", "Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.2-1B"} < set(KNOWN_MODELS)


def test_damaged_and_incomplete_weights_are_one_line(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)
    assert len(load_model(folder, n_layers=1).blocks) == 1  # the layer that is damaged is not among these
    content = (checkpoint / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot read the weights of") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"device": "gpu"}, {"device": "cuda:99"}, {"n_layers": 0}, {"n_layers": 9}])
def test_wrong_arguments_are_refused_before_the_weights_are_read(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr("transformer_lens_r1.loading._read_weights", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(UserError):
        load_model(tiny_llama, **options)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("{", "cannot load the model"),
        ({"hidden_size": 128}, "of shape [327, 64], but its config.json asks for [327, 128]"),
        ({"num_hidden_layers": 4}, "lack"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "cannot read the weights"),
    ],
)
def test_damaged_and_foreign_configurations_are_one_line(
    make_checkpoint: Callable[[str], Path], tmp_path: Path, changes: Any, expected: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(changes if isinstance(changes, str) else json.dumps({**config, **changes}))
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_hook_beyond_the_last_layer_is_refused_by_every_way_of_running(checkpoint: Path) -> None:
    model, tokens = load_model(checkpoint, n_layers=2), torch.tensor([[5, 6, 7]])
    hook = ("blocks.2.hook_resid_post", lambda activations, hook: activations)
    for run in (
        lambda: residual_stream(model, tokens, hook[0]),
        lambda: model.run_with_hooks(tokens, fwd_hooks=[hook]),
        lambda: model.run_with_cache(tokens, names_filter=hook[0]),
        lambda: model.run_with_cache(tokens, names_filter=[hook[0]]),
    ):
        with pytest.raises(UserError, match=r"no hook point blocks\.2\.hook_resid_post: the model has layers 0 to 1"):
            run()


def test_every_character_of_a_record_survives_the_tokenizer_and_a_tag_is_one_token(tiny_llama: Path) -> None:
    text = "<think>\n Wie groß ist 17 × ½?\r\n\t“so” 🤔 </think> "
    tokenizer = load_tokenizer(tiny_llama)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert [ids.count(tokenizer.convert_tokens_to_ids(tag)) for tag in ("<think>", "</think>")] == [1, 1]


def test_a_vocabulary_without_the_tags_is_said_once(
    smollm2: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"  # a name that nothing has been said of
    folder.symlink_to(smollm2)
    for _ in range(2):
        load_tokenizer(folder)
    load_model(folder, n_layers=1)
    said = "".join(capfd.readouterr())
    assert said.count("note:") == 1 and f"the vocabulary of {folder} has no <｜" in said


def test_the_tokenizer_is_the_callers_and_none_is_loaded_besides(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerLens alone would load it again, from the main revision, where it does not add bos by itself."""
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.add_tokens(["<zz>"])
    kept = dict(tokenizer.init_kwargs)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("a tokenizer was loaded"))
    model = load_model(checkpoint, tokenizer=tokenizer)
    assert model.tokenizer is tokenizer and tokenizer.init_kwargs == kept
    bos = tokenizer.bos_token_id
    for prepend_bos in (True, False):
        ids = model.to_tokens("Wait<zz>", prepend_bos=prepend_bos)[0].tolist()
        assert ids == [bos] * prepend_bos + tokenizer("Wait<zz>", add_special_tokens=False).input_ids
