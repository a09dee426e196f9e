"""The names of the DeepSeek-R1 distills, in TransformerLens' own list of models.

TransformerLens refuses every name outside that list, and `hf_model=` alone does not help: it derives the
architecture from the name. After `register_r1_distills()`,

    HookedTransformer.from_pretrained_no_processing("DeepSeek-R1-Distill-Llama-8B")

loads from the Hub, or takes `hf_model=` and `tokenizer=`; what is built on it, such as SAELens' `load_model`, does too.
Its logits and residual streams are transformers' to rounding. To that end such a model takes its rotary tables from
transformers: TransformerLens divides positions by wavelengths instead of multiplying them by frequencies, and the
rounding of that grows with the position (to 3e-4 of the logits' scale at 8,400 tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

from transformer_lens_r1.architectures import R1_DISTILLS
from transformer_lens_r1.loading import check_architecture
from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    import torch

# The configuration of the `hf_model=` of the `from_pretrained` that is running; None if it is to come from the Hub.
# TransformerLens does not hand it to the function that reads configurations.
_given: ContextVar[Mapping[str, Any] | None] = ContextVar("given", default=None)
_registered: set[str] = set()


def register_r1_distills() -> list[str]:
    """Make `HookedTransformer.from_pretrained…` know the DeepSeek-R1 distills, with and without ``deepseek-ai/``.

    Names that TransformerLens lists by itself keep its own way of loading. A second call changes nothing.

    Returns:
        The Hub ids that this package serves.
    """
    from transformer_lens import loading_from_pretrained as loading
    from transformer_lens.components.abstract_attention import AbstractAttention

    new = [name for name in R1_DISTILLS if name not in loading.OFFICIAL_MODEL_NAMES]
    if new and not _registered:
        loading.get_pretrained_model_config = _with_given(loading.get_pretrained_model_config)
        loading.convert_hf_model_config = _with_r1_distills(loading.convert_hf_model_config)
        AbstractAttention.calculate_sin_cos_rotary = _with_exact_rotary(AbstractAttention.calculate_sin_cos_rotary)
    for name in new:
        loading.OFFICIAL_MODEL_NAMES.append(name)
        loading.MODEL_ALIASES.setdefault(name, [name.split("/")[-1]])
        _registered.add(name)
    return sorted(_registered)


def hooked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `HookedTransformerConfig` for a checkpoint of a supported architecture.

    Args:
        config: the checkpoint's config.json as transformers 5 reads it (`PretrainedConfig.to_dict()`), the rotary
            embedding under ``rope_parameters``.

    Raises:
        UserError: another architecture, or something that HookedTransformer cannot do or would ignore.
    """
    architecture = check_architecture("hf_model", config["model_type"], config.get("architectures"))
    _refuse_what_would_be_lost(config)
    n_heads, n_key_value_heads = config["num_attention_heads"], config["num_key_value_heads"]
    d_head = config.get("head_dim") or config["hidden_size"] // n_heads
    grouped = n_key_value_heads != n_heads
    return {
        "original_architecture": architecture.class_name,
        "d_model": config["hidden_size"],
        "d_head": d_head,
        "n_heads": n_heads,
        "n_key_value_heads": n_key_value_heads if grouped or architecture.numbers_ungrouped_heads else None,
        "use_qk_norm": architecture.qk_norm,
        "d_mlp": config["intermediate_size"],
        "n_layers": config["num_hidden_layers"],
        "n_ctx": config["max_position_embeddings"],
        "d_vocab": config["vocab_size"],
        "eps": config["rms_norm_eps"],
        "act_fn": config["hidden_act"],
        "initializer_range": config["initializer_range"],
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_dim": d_head,
        **_rotary(config["rope_parameters"], config["max_position_embeddings"]),
        # The distills were trained on text that starts with bos, unlike Qwen2 itself.
        "default_prepend_bos": True,
    }


def _refuse_what_would_be_lost(config: Mapping[str, Any]) -> None:
    lost = [name for name in ("attention_bias", "mlp_bias", "use_sliding_window") if config.get(name)]
    if config["hidden_act"] != "silu":
        lost.append(f"hidden_act {config['hidden_act']!r}")
    if lost:
        raise UserError(f"HookedTransformer would ignore that this model has {', '.join(lost)}; load_model() does not")


def _rotary(rope: Mapping[str, Any], n_ctx: int) -> dict[str, Any]:
    rope_type = rope.get("rope_type", "default")
    if rope_type == "default":
        return {"rotary_base": rope["rope_theta"]}
    if rope_type == "llama3":
        return {
            "rotary_base": rope["rope_theta"],
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": rope.get("original_max_position_embeddings", n_ctx),
        }
    raise UserError(f"this model's rotary scaling is {rope_type!r}, expected default or llama3; load_model() takes any")


def _with_given(get_pretrained_model_config: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(get_pretrained_model_config)
    def wrapped(model_name: str, hf_cfg: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        token = _given.set(hf_cfg or None)
        try:
            return get_pretrained_model_config(model_name, hf_cfg=hf_cfg, **kwargs)
        finally:
            _given.reset(token)

    return wrapped


def _with_r1_distills(convert_hf_model_config: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(convert_hf_model_config)
    def wrapped(model_name: str, **kwargs: Any) -> dict[str, Any]:
        from transformer_lens.loading_from_pretrained import make_model_alias_map
        from transformer_lens.utilities.quantization import quantization_method
        from transformers import AutoConfig

        name = make_model_alias_map().get(model_name.lower())
        if name not in _registered:
            return convert_hf_model_config(model_name, **kwargs)
        config = _given.get() or AutoConfig.from_pretrained(name, **kwargs).to_dict()
        return {**hooked_config(config), "tokenizer_name": name, "quantization_method": quantization_method(config)}

    return wrapped


def _with_exact_rotary(calculate_sin_cos_rotary: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(calculate_sin_cos_rotary)
    def wrapped(
        self: Any, rotary_dim: int, n_ctx: int, base: float = 10000, dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        dtype = dtype or torch.float32
        if f"deepseek-ai/{self.cfg.model_name}" not in _registered:
            return calculate_sin_cos_rotary(self, rotary_dim, n_ctx, base, dtype)
        angles = torch.arange(n_ctx, dtype=torch.float32)[:, None] * _frequencies(self.cfg, rotary_dim, base)
        angles = torch.cat([angles, angles], dim=-1)  # [pos, rotary_dim]
        return angles.sin().to(dtype), angles.cos().to(dtype)

    return wrapped


def _frequencies(cfg: Any, rotary_dim: int, base: float) -> torch.Tensor:
    """Radians per position [rotary_dim / 2], from transformers; one formula serves all."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(base)}
    if cfg.use_NTK_by_parts_rope:
        rope |= {
            "rope_type": "llama3",
            "factor": cfg.NTK_by_parts_factor,
            "low_freq_factor": cfg.NTK_by_parts_low_freq_factor,
            "high_freq_factor": cfg.NTK_by_parts_high_freq_factor,
            "original_max_position_embeddings": cfg.NTK_original_ctx_len,
        }
    config = LlamaConfig(head_dim=rotary_dim, rope_parameters=rope, max_position_embeddings=cfg.n_ctx)
    return LlamaRotaryEmbedding(config).inv_freq
