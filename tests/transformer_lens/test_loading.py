"""Models load with transformers' own numbers, whole or only their first layers, and mistakes end in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from transformer_lens_r1 import UserError, hook_layer, load_config, load_model, load_tokenizer, residual_stream


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A tiny random checkpoint of each architecture, with the tokenizer of `tiny_llama`."""
    folder = tmp_path_factory.mktemp(request.param)
    sizes = {
        "vocab_size": 327, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    if request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, initializer_range=0.2))
        for layer in model.model.layers:  # Qwen2's attention biases start at zero, where a lost one would not show
            torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


def assert_same_as_transformers(folder: Path, tokens: torch.Tensor, *, tolerance: float, every: int = 1) -> None:
    """Logits, and the residual streams of layers 0, every, …, agree with transformers' to ``tolerance`` of scale."""
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    streams: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(reference.model.layers):
        block.register_forward_hook(lambda _m, _i, out, layer=layer: streams.__setitem__(layer, out))
    with torch.no_grad():
        logits = reference(tokens).logits
    model = load_model(folder, dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), logits, atol=tolerance * logits.abs().max().item(), rtol=0)
    assert len(streams) == len(reference.model.layers)
    for layer, stream in list(streams.items())[::every]:
        ours = residual_stream(model, tokens, f"blocks.{layer}.hook_resid_post")
        torch.testing.assert_close(ours, stream, atol=tolerance * stream.abs().max().item(), rtol=0)


def test_logits_and_residual_streams_equal_transformers(checkpoint: Path) -> None:
    # eos stands in the middle of the rows, as it does between joined documents
    tokens = torch.randint(0, 327, (3, 60), generator=torch.Generator().manual_seed(1))
    assert_same_as_transformers(checkpoint, tokens, tolerance=1e-5)


def test_smollm2_logits_and_residual_streams_equal_transformers(smollm2: Path) -> None:
    tokens = load_tokenizer(smollm2)("Wait, let me check: 17 times 6 is 102, not 92.", return_tensors="pt").input_ids
    assert_same_as_transformers(smollm2, tokens, tolerance=1e-5, every=10)


def test_first_layers_alone_give_the_same_residual_stream(checkpoint: Path) -> None:
    tokens = torch.randint(0, 327, (2, 40))
    part, whole = load_model(checkpoint, n_layers=2), load_model(checkpoint)
    assert len(part.blocks) == 2
    torch.testing.assert_close(
        residual_stream(part, tokens, "blocks.1.hook_resid_post"),
        residual_stream(whole, tokens, "blocks.1.hook_resid_post"),
    )


def test_residual_stream_runs_nothing_behind_the_hook(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    reached: list[str] = []
    model.original_model.lm_head.register_forward_hook(lambda *_: reached.append("unembedding"))
    model.blocks[2].register_forward_hook(lambda *_: reached.append("layer 2"))
    residual_stream(model, torch.tensor([[5, 6, 7]]), "blocks.1.hook_resid_post")
    assert reached == []
    model(torch.tensor([[5, 6, 7]]))
    assert reached == ["layer 2", "unembedding"]


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
    with pytest.raises(UserError, match=r"no config\.json"):
        load_config(tmp_path)
    shutil.copy(tiny_llama / "config.json", tmp_path)
    with pytest.raises(UserError, match="no weights"):
        load_config(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(UserError, match="GPT2LMHeadModel; supported are LlamaForCausalLM, Qwen2ForCausalLM"):
        load_config(tmp_path)
    with pytest.raises(UserError, match="first 9 layers of a model that has 4"):
        load_model(tiny_llama, n_layers=9)
