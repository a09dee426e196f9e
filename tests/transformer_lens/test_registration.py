"""The R1 distills by name in TransformerLens, and in what is built on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformer_lens import HookedTransformer, loading_from_pretrained
from transformer_lens.components.abstract_attention import AbstractAttention
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from transformer_lens_r1 import R1_DISTILLS, UserError, register_r1_distills, registration


def load_hooked(name: str, tokenizer: Path, hf_model: PreTrainedModel) -> HookedTransformer:
    """The model under a distill's name, with the tokenizer of a folder."""
    register_r1_distills()
    return HookedTransformer.from_pretrained_no_processing(
        name, hf_model=hf_model, tokenizer=AutoTokenizer.from_pretrained(tokenizer)
    )


@pytest.mark.parametrize("name", [*R1_DISTILLS, "DeepSeek-R1-Distill-Llama-8B"])
def test_every_distill_loads_by_its_name_with_and_without_prefix(
    make_checkpoint: Callable[[str], Path], name: str
) -> None:
    folder = make_checkpoint("qwen2, theta 1e4" if "Qwen" in name else "llama, grouped queries")
    model = load_hooked(name, folder, AutoModelForCausalLM.from_pretrained(folder))
    assert model.cfg.n_layers == 3 and model.cfg.model_name == name.split("/")[-1]
    assert "blocks.2.hook_resid_post" in model.hook_dict


def test_registering_twice_changes_nothing() -> None:
    first, convert = register_r1_distills(), loading_from_pretrained.convert_hf_model_config
    names = list(loading_from_pretrained.OFFICIAL_MODEL_NAMES)
    assert register_r1_distills() == first == sorted(R1_DISTILLS)
    assert loading_from_pretrained.convert_hf_model_config is convert
    assert names == loading_from_pretrained.OFFICIAL_MODEL_NAMES and len(set(names)) == len(names)


def test_names_that_transformer_lens_brings_itself_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is registered yet, and TransformerLens has one of the names, with its own alias and conversion."""
    own = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    listed = [name for name in loading_from_pretrained.OFFICIAL_MODEL_NAMES if name not in R1_DISTILLS] + [own]
    monkeypatch.setattr(registration, "_registered", set())
    monkeypatch.setattr(loading_from_pretrained, "OFFICIAL_MODEL_NAMES", listed)
    monkeypatch.setattr(loading_from_pretrained, "MODEL_ALIASES", {own: ["r1-8b"]})
    monkeypatch.setattr(loading_from_pretrained, "convert_hf_model_config", lambda name, **_: {"own": name})
    monkeypatch.setattr(loading_from_pretrained, "get_pretrained_model_config", lambda *_, **__: None)
    monkeypatch.setattr(AbstractAttention, "calculate_sin_cos_rotary", lambda *_, **__: None)

    assert register_r1_distills() == sorted(set(R1_DISTILLS) - {own})
    assert listed.count(own) == 1 and loading_from_pretrained.MODEL_ALIASES[own] == ["r1-8b"]
    assert loading_from_pretrained.convert_hf_model_config(own) == {"own": own}


def test_other_models_keep_the_rotary_tables_of_transformer_lens() -> None:
    register_r1_distills()
    wrapped = AbstractAttention.calculate_sin_cos_rotary
    config = loading_from_pretrained.HookedTransformerConfig(
        n_layers=1, d_model=16, n_ctx=64, d_head=8, d_vocab=10, act_fn="silu", model_name="something-else",
        positional_embedding_type="rotary", rotary_dim=8,
    )  # fmt: skip
    layer = HookedTransformer(config).blocks[0].attn
    for ours, own in zip(wrapped(layer, 8, 50, 1e4), wrapped.__wrapped__(layer, 8, 50, 1e4), strict=True):
        assert torch.equal(ours, own)


def test_a_model_of_another_architecture_under_a_distills_name_is_one_line(tiny_llama: Path) -> None:
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=327))
    with pytest.raises(UserError, match="gpt2; supported are LlamaForCausalLM, Qwen2ForCausalLM"):
        load_hooked("DeepSeek-R1-Distill-Llama-8B", tiny_llama, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}),
        ("attention_bias", True), ("mlp_bias", True), ("use_sliding_window", True), ("hidden_act", "gelu"),
    ],
)  # fmt: skip
def test_what_hooked_transformer_would_ignore_is_refused(
    make_checkpoint: Callable[[str], Path], name: str, value: object
) -> None:
    folder = make_checkpoint("llama")
    hf_model = AutoModelForCausalLM.from_pretrained(folder)
    setattr(hf_model.config, name, value)
    with pytest.raises(UserError, match=r"load_model\(\)"):
        load_hooked("DeepSeek-R1-Distill-Llama-8B", folder, hf_model)


def test_bos_is_put_before_text_as_the_distills_were_trained(make_checkpoint: Callable[[str], Path]) -> None:
    folder = make_checkpoint("qwen2, theta 1e4")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_hooked("DeepSeek-R1-Distill-Qwen-7B", folder, AutoModelForCausalLM.from_pretrained(folder))
    ids = tokenizer("Wait", add_special_tokens=False).input_ids
    assert model.to_tokens("Wait")[0].tolist() == [tokenizer.bos_token_id, *ids]
