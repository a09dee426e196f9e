"""A model and an SAE of random weights, made on the spot: of the paper's sizes on a GPU, of toy sizes on a CPU."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import REPOSITORY, Machine
from sae_training.plan_memory import ModelSize
from sae_training.plan_work import ModelWork, sae_flops
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER = REPOSITORY / "tests" / "fixtures" / "tiny-llama"
IGNORED = [0, 1]
"""Ids of the tokenizer's bos and eos."""
WORDS: dict[str, list[tuple[int, ...]]] = {
    "wait": [(5,), (6, 7)], "but": [(9,), (10,)], "so": [(12,), (5, 14)], "maybe": [(20, 8)], "however": [(31,)],
}  # fmt: skip
"""A reasoning vocabulary of ids. "maybe" hardly ever occurs."""
ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
DENSITY = 0.1
"""Part of the positions that a feature is active at."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of model, SAE and text."""

    width: int
    mlp_width: int
    heads: int
    key_value_heads: int
    layers: int
    layer: int
    """The one whose output the SAE reads; there is a layer behind it."""
    vocabulary: int
    features: int
    context: int
    check_rows: int
    """Rows on which results are compared."""
    speed_rows: int
    """Rows on which passes are timed."""
    batch: int
    """Tokens in a training batch."""

    @property
    def hook_name(self) -> str:
        return f"blocks.{self.layer}.hook_resid_post"

    @property
    def model(self) -> ModelSize:
        """What the formulas of `--plan` take."""
        return ModelSize.of_config(self.config())

    def forward_flops(self, layers: int, *, context: int | None = None) -> int:
        """Work of a row that passes through the first layers."""
        return ModelWork.of_config(self.config(), context=context or self.context).flops(layers)

    def step_flops(self, tokens: int) -> int:
        """Work of a training step of the SAE."""
        config = {"architecture": "standard", "d_in": self.width, "d_sae": self.features, "apply_b_dec_to_input": False}
        return sae_flops(config, tokens)[0]

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.mlp_width,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.key_value_heads,
            max_position_embeddings=131_072, rope_parameters=ROPE, rms_norm_eps=1e-5, tie_word_embeddings=False,
            initializer_range=1 / self.width**0.5, bos_token_id=IGNORED[0], eos_token_id=IGNORED[1],
        )  # fmt: skip

    def tokens(self, rows: int, *, seed: int = 0) -> Tensor:
        """Ids int64 [rows, context] as frequent as words are, ignored ones among them."""
        frequency = 1 / (torch.arange(self.vocabulary) + 10.0)
        generator = torch.Generator().manual_seed(seed)
        return torch.multinomial(frequency.expand(rows, -1), self.context, replacement=True, generator=generator)


PAPER = Sizes(4096, 14336, 32, 8, 4, 2, 4096, 65536, 1024, check_rows=4, speed_rows=128, batch=4096)
TOY = Sizes(64, 96, 2, 1, 3, 1, 512, 512, 64, check_rows=32, speed_rows=32, batch=256)


@dataclass(frozen=True)
class Material:
    """A checkpoint and an SAE on the disk."""

    sizes: Sizes
    checkpoint: Path
    sae: Path


def sizes_for(machine: Machine) -> Sizes:
    return PAPER if machine.is_cuda else TOY


def make_material(work: Path, machine: Machine) -> Material:
    """Make checkpoint and SAE, unless an earlier part has made them.

    Weights of the model are in bfloat16, so that models in both formats have the same.
    """
    sizes = sizes_for(machine)
    made = Material(sizes, work / "checkpoint", work / "sae")
    if made.sae.is_dir():
        return made
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(sizes.config())
    torch.set_default_dtype(torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # they start at one, where a lost one would not show
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif "embed" in name:  # as large as what layers add, or rounding would grow from layer to layer
            torch.nn.init.normal_(parameter)
    model.save_pretrained(made.checkpoint)
    for path in TOKENIZER.glob("*token*.json"):
        shutil.copy(path, made.checkpoint)
    with torch.no_grad():
        states = model.float()(sizes.tokens(2, seed=1), output_hidden_states=True).hidden_states
    _save_sae(made.sae, sizes, states[sizes.layer + 1].flatten(0, 1))
    return made


def _save_sae(folder: Path, sizes: Sizes, residual: Tensor) -> None:
    """Write a standard SAE in SAELens' layout, with decoder rows of many norms.

    Args:
        folder: that is made.
        sizes: of the SAE.
        residual: residual streams [n, d_in]. Features look along these, each mixed with as much noise.
    """
    d_in, d_sae = sizes.width, sizes.features
    seen = normalize(residual - residual.mean(dim=0))[torch.arange(d_sae) % len(residual)]
    directions, decoder = (normalize(seen + torch.randn(d_sae, d_in) / d_in**0.5) for _ in range(2))  # [d_sae, d_in]
    rank = int((1 - DENSITY) * len(residual))
    bias = torch.cat([-(residual @ part.T).kthvalue(rank, dim=0).values for part in directions.split(8192)])
    norm = torch.rand(d_sae, 1) * 1.5 + 0.5
    config = {
        "architecture": "standard", "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": sizes.hook_name, "context_size": sizes.context, "prepend_bos": False},
    }  # fmt: skip
    unfinished = folder.with_name("sae.unfinished")
    unfinished.mkdir(exist_ok=True)
    weights = {"W_enc": (directions / norm).T.contiguous(), "b_enc": bias / norm[:, 0], "W_dec": decoder * norm}
    save_file({**weights, "b_dec": residual.mean(dim=0)}, unfinished / "sae_weights.safetensors")
    (unfinished / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    unfinished.rename(folder)
