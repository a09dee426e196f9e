"""The change that steering makes to the residual stream, as a torch module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lm_eval_sae.sae_rows import FeatureRow
from lm_eval_sae.steering import MODES


class FeatureIntervention(nn.Module):
    """Changes features of one layer's residual stream x, at every position.

    With f_i(x) the activation of feature i, d_i its decoder row, d̂_i that row at unit norm, v_i its value:

        set     x' = x + Σ_i (v_i − f_i(x)) d_i     the SAE's reconstruction with f_i = v_i, plus its error term
        clamp   x' = x + Σ_i (v_i − x·d̂_i) d̂_i
        add     x' = x + Σ_i v_i d̂_i

    `set` is exact for ReLU and JumpReLU SAEs: everything but the changed features cancels. All f_i are read from
    the x that comes in. Values live in buffers, so that a running engine can change them; the mode is fixed.

    Args:
        rows: the features, all of one SAE, in the units in which `values` are given.
        values: v_i, one per row.
        mode: one of MODES.
    """

    def __init__(self, rows: Sequence[FeatureRow], values: Sequence[float], *, mode: str = "set") -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, expected one of {MODES}")
        if len(rows) != len(values):
            raise ValueError(f"{len(rows)} features but {len(values)} values")
        self.mode = mode
        decoder = torch.stack([row.decoder for row in rows])
        direction = decoder if mode == "set" else decoder / decoder.norm(dim=1, keepdim=True).clamp(min=1e-8)
        self.register_buffer("encoder", torch.stack([row.encoder for row in rows]))  # [n, d_in]
        self.register_buffer("bias", torch.tensor([row.bias for row in rows]))  # [n]
        self.register_buffer("threshold", torch.tensor([row.threshold for row in rows]))  # [n]
        self.register_buffer("direction", direction)  # [n, d_in]
        self.register_buffer("value", torch.tensor(list(values), dtype=torch.float32))  # [n]

    def activations(self, x: Tensor) -> Tensor:
        """f(x) in float32: [..., d_in] → [..., n]. A standard SAE is a JumpReLU with threshold 0."""
        pre = x.float() @ self.encoder.T + self.bias
        return torch.relu(pre) * (pre > self.threshold)

    def change(self, x: Tensor) -> Tensor:
        """x' − x in float32, [..., d_in]: what is to be added, wherever the two halves of x are kept."""
        if self.mode == "set":
            amount = self.value - self.activations(x)
        elif self.mode == "clamp":
            amount = self.value - x.float() @ self.direction.T
        else:
            amount = self.value.expand(*x.shape[:-1], -1)
        return amount @ self.direction

    def forward(self, x: Tensor) -> Tensor:
        """x' of shape and dtype of x, computed in float32."""
        return (x.float() + self.change(x)).to(x.dtype)
