"""The change that steering makes to one layer, as a torch module that both back ends use."""

from collections.abc import Sequence
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

    It is a table with an intervention in each row, so that every token of a batch can have its own. A row has `places`
    features. All that tells one intervention from another lies in buffers: a running engine can change it, and a graph
    that was compiled or captured holds nothing of it. An empty place changes nothing, nor does an empty row. All modes
    are one formula, with g_i(x) = w_i·x + b_i where that exceeds θ_i, else 0:

        x' = x + Σ_i (v_i − g_i(x)) u_i

        set     w_i, b_i the encoder's, θ_i ≥ 0 the threshold (0 for ReLU), u_i = d_i
        clamp   w_i = u_i = d̂_i, b_i = 0, θ_i = −∞
        add     w_i = 0, b_i = 0, u_i = d̂_i

    `published` is `set` with m for x. `published_clamp` has the w_i, b_i and θ_i of `clamp`, and u_i = Σ_k T_ki d̂_k: by
    its definition m_n = m + Σ_i c_i d̂_i with c_i = v_i − m·d̂_i − Σ_(j<i) (d̂_i·d̂_j) c_j, so c = T (v − D̂ m) with
    T = (I + L)⁻¹, L the part of D̂ D̂ᵀ below its diagonal.

    Args:
        d_in: width of the residual stream.
        places: how many features an intervention can change.
        rows: how many interventions it holds.
    """

    def __init__(self, d_in: int, places: int, rows: int = 1) -> None:
        super().__init__()
        self.d_in, self.places = d_in, places
        self.register_buffer("encoder", torch.zeros(rows, places, d_in))  # w
        self.register_buffer("bias", torch.zeros(rows, places))  # b
        self.register_buffer("threshold", torch.zeros(rows, places))  # θ
        self.register_buffer("direction", torch.zeros(rows, places, d_in))  # u
        self.register_buffer("value", torch.zeros(rows, places))  # v
        # 1, or 0 where x stands for m: what the residual counts beside m in vLLM, whose layers return the two halves.
        self.register_buffer("reads_residual", torch.ones(rows, 1))

    def load(self, features: Sequence["FeatureSetting"], row: int = 0) -> None:
        """Makes the changes of these features those of a row."""
        for name, value in row_values(features, d_in=self.d_in, places=self.places).items():
            getattr(self, name)[row] = value.to(self.bias.device)

    def activations(self, x: Tensor, row: int | Tensor = 0) -> Tensor:
        """g(x) in float32; in modes `set` and `published` the features' activations.

        Args:
            x: [..., d_in].
            row: of all positions, or of each position, [...].

        Returns:
            [..., places].
        """
        pre = (x.float().unsqueeze(-2) * self.encoder[row]).sum(-1) + self.bias[row]
        return pre * (pre > self.threshold[row])

    def change(self, x: Tensor, row: int | Tensor = 0) -> Tensor:
        """x' − x in float32, [..., d_in]: what is to be added, wherever the two halves of x are kept."""
        difference = self.value[row] - self.activations(x, row)  # v − g(x)
        return (difference.unsqueeze(-1) * self.direction[row]).sum(-2)

    def forward(self, x: Tensor) -> Tensor:
        """x' of shape and dtype of x, computed in float32, by the first row."""
        return (x.float() + self.change(x)).to(x.dtype)


def row_values(features: Sequence["FeatureSetting"], *, d_in: int, places: int) -> dict[str, Tensor]:
    """The buffers of a `FeatureIntervention` for one row that makes the given changes: float32.

    Raises ValueError if there are more features than places.
    """
    if len(features) > places:
        raise ValueError(f"{len(features)} features for {places} places")
    empty = FeatureIntervention(d_in, places)
    values = {name: getattr(empty, name)[0] for name in BUFFERS}
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
    module.load(features)
    return module
