"""Memory of training an SAE, as formulas of the sizes alone.

Memory is what tensors take. What a number of formulas have in front of them is how many tensors of a kind are alive at
once in transformers' layers with sdpa attention, and in the step of `trainer.Trainer`.
tests/training/test_plan.py compares all of them with real models and SAEs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a language model."""

    width: int  # of the residual stream
    mlp_width: int
    head_width: int
    vocabulary: int

    @classmethod
    def of_config(cls, config: PretrainedConfig) -> ModelSize:
        """Sizes from a checkpoint's config.json."""
        return cls(
            width=config.hidden_size,
            mlp_width=config.intermediate_size,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
        )


def model_bytes(parameters: int, size: ModelSize, dtype: str) -> int:
    """Memory of the loaded model, in which TransformerBridge gives the unembedding a bias of zeros."""
    return BYTES[dtype] * (parameters + size.vocabulary)


def sae_parameters(d_in: int, d_sae: int) -> int:
    """Parameters of a standard SAE: W_enc, W_dec, b_enc and b_dec."""
    return 2 * d_in * d_sae + d_sae + d_in


def forward_peak_bytes(size: ModelSize, *, rows: int, context: int, dtype: str) -> int:
    """Most memory that a pass through any number of layers takes at once, weights not counted.

    The peak is in a layer's MLP, where the embeddings, the residual stream before and after attention, and its norm are
    alive. Fused attention takes less, and so does the norm of Qwen3's queries (but in Qwen3-0.6B, by 0.5 %).
    """
    b, tokens = BYTES[dtype], rows * context
    # Cosines and sines [context, head], positions [context] as int64.
    positions = 2 * context * size.head_width * b + 8 * context
    return positions + (4 * size.width + 3 * size.mlp_width) * tokens * b


def step_peak_bytes(d_in: int, d_sae: int, tokens: int, *, autocast: bool) -> int:
    """Most memory that a training step takes at once, float32 gradients included, weights and Adam's state not.

    The peak is in the backward pass: where the gradient of the features is summed, with five tensors [tokens, d_sae]
    and the decoder's gradient alive in two parts, or where those parts are summed. Adam's fused step needs less.
    """
    features, inputs, matrix = 4 * tokens * d_sae, 4 * tokens * d_in, 4 * d_in * d_sae
    vectors = 4 * (d_in + d_sae)
    if autocast:  # one of the decoder's parts is in bfloat16, and so are the gradients of the output
        return max(5 * features + 3 * matrix // 2, 3 * features + 3 * matrix) + 5 * inputs // 2 + vectors
    return max(5 * features + 2 * matrix, 4 * features + 3 * matrix) + 3 * inputs + vectors


def evaluation_peak_bytes(
    size: ModelSize, *, d_in: int, d_sae: int, rows: int, context: int, dtype: str, loss: bool
) -> tuple[int, int]:
    """Upper bounds of the memory that measuring a batch of held-out rows takes at once.

    Returns:
        On the model's device: a forward pass and, if the loss is measured, logits of the
        batch, with those of one row in float32 and their logarithms. On the SAE's device: pre-activations, features,
        which of them are active, and four tensors as large as the input.
    """
    logits = context * size.vocabulary * (rows * BYTES[dtype] + 8) * loss
    on_model = forward_peak_bytes(size, rows=rows, context=context, dtype=dtype) + logits
    return on_model, rows * context * (9 * d_sae + 16 * d_in)


def buffer_tokens(*, buffer: int, batch: int, pass_tokens: int, mix_fraction: float) -> int:
    """Tokens that the activation buffer has room for: a full buffer, and one more pass of the model behind it.

    Args:
        buffer: `n_batches_in_buffer` × the tokens of a row that are used.
        batch: tokens in a training batch.
        pass_tokens: tokens in a pass of the model.
        mix_fraction: part of the buffer that is kept for the next round.
    """
    return max(buffer, int(mix_fraction * buffer) + batch) + pass_tokens


def checkpoint_bytes(d_in: int, d_sae: int, *, buffer: int) -> int:
    """Files of a checkpoint: the SAE and Adam's two moments in float32, two figures of each feature, the buffer."""
    return 4 * (3 * sae_parameters(d_in, d_sae) + 2 * d_sae) + buffer


def snapshot_bytes(d_in: int, d_sae: int) -> int:
    """Files of a snapshot of the SAE: its weights in float32, and how often each feature fires."""
    return 4 * (sae_parameters(d_in, d_sae) + d_sae)
