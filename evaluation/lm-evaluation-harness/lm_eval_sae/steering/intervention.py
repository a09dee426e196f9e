"""The change that steering makes to one layer, as a torch module that both back ends use."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lm_eval_sae.steering.arguments import FeatureSetting

BUFFERS = ("encoder", "bias", "threshold", "direction", "value", "reads_residual")


class FeatureIntervention(nn.Module):
    """Changes features of one layer's residual stream x, or as published of its MLP's output m, at every position.

    With f_i(x) the activation of feature i, d_i its decoder row, d̂_i that row at unit norm, v_i its value:

        set     x' = x + Σ_i (v_i − f_i(x)) d_i     the SAE's reconstruction with f_i = v_i, plus its error term
        clamp   x' = x + Σ_i (v_i − x·d̂_i) d̂_i
        add     x' = x + Σ_i v_i d̂_i

    `set` is exact for ReLU and JumpReLU SAEs: everything but the changed features cancels. All features are read from
    the x that comes in.

    The published code hooks the first output of vLLM's layer, which is m and not x, and takes the SAE's weights as they
    are stored (b_dec counts in f as in `set`). x gets what is added to m. One feature is set; several are clamped, one
    after another:

        published        m' = m + (v − f(m)) d
        published_clamp  m' = m_n,  m_0 = m,  m_i = m_(i−1) + (v_i − m_(i−1)·d̂_i) d̂_i

    Each feature takes one of `slots` places. All that tells one intervention from another lies in buffers: a running
    engine can change it, and a graph that was compiled or captured holds nothing of it. An empty slot changes
    nothing. All modes are one formula, with g_i(x) = w_i·x + b_i where that exceeds θ_i, else 0:

        x' = x + Σ_i (v_i − g_i(x)) u_i

        set     w_i, b_i the encoder's, θ_i ≥ 0 the threshold (0 for ReLU), u_i = d_i
        clamp   w_i = u_i = d̂_i, b_i = 0, θ_i = −∞
        add     w_i = 0, b_i = 0, u_i = d̂_i

    `published` is `set` with m for x. `published_clamp` has the w_i, b_i and θ_i of `clamp`, and u_i = Σ_k T_ki d̂_k: by
    its definition m_n = m + Σ_i c_i d̂_i with c_i = v_i − m·d̂_i − Σ_(j<i) (d̂_i·d̂_j) c_j, so c = T (v − D̂ m) with
    T = (I + L)⁻¹, L the part of D̂ D̂ᵀ below its diagonal.

    Args:
        d_in: width of the residual stream.
        slots: how many features it can change at once.
    """

    def __init__(self, d_in: int, slots: int) -> None:
        super().__init__()
        self.d_in, self.slots = d_in, slots
        self.register_buffer("encoder", torch.zeros(slots, d_in))  # w
        self.register_buffer("bias", torch.zeros(slots))  # b
        self.register_buffer("threshold", torch.zeros(slots))  # θ
        self.register_buffer("direction", torch.zeros(slots, d_in))  # u
        self.register_buffer("value", torch.zeros(slots))  # v
        # 1, or 0 where x stands for m: what the residual counts beside m in vLLM, whose layers return the two halves.
        self.register_buffer("reads_residual", torch.ones(1))
        self.register_buffer("positions", torch.zeros((), dtype=torch.int64))  # changed since `load`

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Takes what `slot_values` returned, into the buffers that are there, and counts positions from 0."""
        for name in BUFFERS:
            getattr(self, name).copy_(values[name])
        self.positions.zero_()

    def activations(self, x: Tensor) -> Tensor:
        """g(x) in float32: [..., d_in] → [..., slots]; in modes `set` and `published` the features' activations."""
        pre = x.float() @ self.encoder.T + self.bias
        return pre * (pre > self.threshold)

    def change(self, x: Tensor) -> Tensor:
        """x' − x in float32, [..., d_in]: what is to be added, wherever the two halves of x are kept."""
        return (self.value - self.activations(x)) @ self.direction

    def forward(self, x: Tensor) -> Tensor:
        """x' of shape and dtype of x, computed in float32."""
        return (x.float() + self.change(x)).to(x.dtype)


def slot_values(features: Sequence["FeatureSetting"], *, d_in: int, slots: int) -> dict[str, Tensor]:
    """The buffers of a `FeatureIntervention` that makes the given changes: float32, shapes as there.

    Raises ValueError if there are more features than slots.
    """
    if len(features) > slots:
        raise ValueError(f"{len(features)} features for {slots} slots")
    empty = FeatureIntervention(d_in, slots)
    values = {name: getattr(empty, name) for name in BUFFERS}
    for i, feature in enumerate(features):
        row = feature.row
        values["value"][i] = feature.value
        if feature.mode in ("set", "published"):
            values["encoder"][i] = row.encoder
            values["bias"][i] = row.bias
            values["threshold"][i] = max(row.threshold, 0.0)
            values["direction"][i] = row.decoder
        else:
            values["direction"][i] = row.decoder / row.decoder_norm
            if feature.mode in ("clamp", "published_clamp"):
                values["encoder"][i] = values["direction"][i]
                values["threshold"][i] = -torch.inf
    if any(feature.on_mlp_output for feature in features):
        values["reads_residual"].zero_()
    if any(feature.mode == "published_clamp" for feature in features):
        values["direction"][: len(features)] = one_after_another(values["direction"][: len(features)])
    return values


def one_after_another(directions: Tensor) -> Tensor:
    """The u_i of `published_clamp` (see `FeatureIntervention`) from the d̂_i, in their order: [features, d_in] each."""
    d = directions.double()
    # (I + L)ᵀ U = D̂; "unitriangular" puts the ones on the diagonal.
    return torch.linalg.solve_triangular((d @ d.T).triu(), d, upper=True, unitriangular=True).float()


def make_intervention(features: Sequence["FeatureSetting"]) -> FeatureIntervention:
    """The module that makes the given changes, all at one layer."""
    d_in = features[0].d_in
    module = FeatureIntervention(d_in, len(features))
    module.load(slot_values(features, d_in=d_in, slots=len(features)))
    return module
