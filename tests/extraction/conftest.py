"""What the tests of extraction/ share: SAEs made with today's SAELens classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def make_sae(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves a random SAE of the given architecture in today's layout and returns its folder.

    Decoder directions have norms between 0.5 and 2, so that folding them changes something.
    """
    from sae_lens.registry import get_sae_class

    def make(
        architecture: str = "standard", *, d_in: int = 16, d_sae: int = 40, name: str = "sae", **metadata: Any
    ) -> Path:
        options = {"k": 5} if architecture.startswith("topk") else {}
        if architecture == "topk_rescaled":
            architecture, options["rescale_acts_by_decoder_norm"] = "topk", True
        if architecture == "batchtopk":
            return _trained_batchtopk(tmp_path / name, d_in, d_sae)
        sae_class, config_class = get_sae_class(architecture)
        config = config_class(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu", **options)
        metadata = {"hook_name": "blocks.2.hook_resid_post", "context_size": 32, "prepend_bos": False, **metadata}
        for key, value in metadata.items():
            setattr(config.metadata, key, value)
        sae = sae_class(config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, parameter in sae.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1 if key.startswith("W") else 0.3))
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
            sae.W_dec.mul_(torch.rand(d_sae, 1, generator=generator) * 1.5 + 0.5)
            if architecture == "jumprelu":
                sae.threshold.abs_()
        folder = tmp_path / name
        sae.save_model(folder)
        return folder

    return make


def _trained_batchtopk(folder: Path, d_in: int, d_sae: int) -> Path:
    """A BatchTopK SAE as its trainer saves it for use: a JumpReLU SAE with the learnt threshold."""
    from sae_lens.registry import get_sae_training_class

    sae_class, config_class = get_sae_training_class("batchtopk")
    config = config_class(d_in=d_in, d_sae=d_sae, k=5, dtype="float32", device="cpu")
    for key, value in {"hook_name": "blocks.2.hook_resid_post", "context_size": 32, "prepend_bos": False}.items():
        setattr(config.metadata, key, value)
    sae = sae_class(config)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d_in, d_sae, generator=torch.Generator().manual_seed(0)))
        sae.W_dec.copy_(sae.W_enc.T / sae.W_enc.norm(dim=0)[:, None] * torch.linspace(0.5, 2, d_sae)[:, None])
        sae.topk_threshold.fill_(0.5)
    sae.save_inference_model(folder)
    return folder
