"""One feature's panels, computed by SAEDashboard from activations that are already there."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from sae_dashboard.components import ActsHistogramData, FeatureTablesData, LogitsHistogramData
from sae_dashboard.components_config import (
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_dashboard.data_parsing_fns import get_features_table_data, get_logits_table_data
from sae_dashboard.feature_data import FeatureData
from sae_dashboard.layout import SaeVisLayoutConfig
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sequence_data_generator import SequenceDataGenerator
from torch import Tensor

from feature_pages.activations import StoredActivations

if TYPE_CHECKING:
    from sae_lens import SAE

TOP_SEQUENCES = 20
NO_TOKEN = -1
"""Fills a sequence beyond the end of its row; never shown."""


class _WholeRows(SequenceDataGenerator):
    """SAEDashboard looks for peaks only where there is room for the text around them, and so misses those at the ends
    of a row; here rows are lengthened with `NO_TOKEN` on both sides, which leaves room around every token."""

    def __init__(self, cfg: SaeVisConfig, tokens: Tensor, W_U: Tensor) -> None:
        before, after = cfg.feature_centric_layout.seq_cfg.buffer
        self.before, self.after = before + 1, after  # one more is asked for, of which it shows nothing
        super().__init__(cfg, torch.nn.functional.pad(tokens, (self.before, self.after), value=NO_TOKEN), W_U)

    def sequences(self, activations: Tensor, logits: Tensor) -> Any:
        """Groups of sequences around the highest activations and around some of each interval."""
        return self.get_sequences_data(
            feat_acts=torch.nn.functional.pad(activations, (self.before, self.after)),
            feat_logits=logits,
            resid_post=torch.tensor([]),  # the library has no use for these two
            feature_resid_dir=torch.tensor([]),
        )

    def get_indices_dict(self, buffer: Any, feat_acts: Tensor) -> tuple[dict[str, Tensor], Tensor, int]:
        rows = feat_acts[:, self.before : feat_acts.shape[1] - self.after]
        groups, positions, n_positions = super().get_indices_dict(None, rows)
        shift = torch.tensor([0, self.before])
        return {title: chosen + shift for title, chosen in groups.items()}, positions + shift, n_positions


class Panels:
    """Makes the panels of one shown feature after another.

    Args:
        tokens: int64 [rows, context].
        features: the shown features' indices in the SAE.
        stored: their activations.
        sae: with the decoder norm folded in.
        unembedding: the model's W_U, [d_model, d_vocab].
        n_quantiles: intervals of activations that sequences are drawn from.
        tokens_around: tokens shown before and after an activating one, as far as its row has them.
        seed: of the sequences drawn from each interval of activations.
    """

    def __init__(
        self,
        tokens: Tensor,
        features: Sequence[int],
        stored: StoredActivations,
        *,
        sae: SAE,
        unembedding: Tensor,
        hook_name: str,
        n_quantiles: int = 5,
        tokens_around: int = 10,
        seed: int = 42,
    ) -> None:
        self.features, self.stored, self.seed = list(features), stored, seed
        self.directions = sae.W_dec[self.features]  # [features, d_model]
        self.unembedding = unembedding
        sequences = SequencesConfig(
            stack_mode="stack-all",
            buffer=(tokens_around, tokens_around),
            n_quantiles=n_quantiles,
            top_acts_group_size=min(TOP_SEQUENCES, tokens.numel()),
        )
        logits = (LogitsHistogramConfig(), LogitsTableConfig())
        self.layout = SaeVisLayoutConfig(
            columns=[Column(sequences), Column(ActsHistogramConfig(), *logits), Column(FeatureTablesConfig())],
            height=None,
        )
        # Of a feature that is not active on this text there are no activations to show.
        self.dead_layout = SaeVisLayoutConfig(columns=[Column(*logits), Column(FeatureTablesConfig())], height=None)
        config = SaeVisConfig(hook_point=hook_name, features=self.features, feature_centric_layout=self.layout)
        self._sequences = _WholeRows(config, tokens, unembedding)

    @cached_property
    def _tables(self) -> dict[str, list[Any]]:
        """The rows of every feature's tables; correlations are with the other shown features."""
        return get_features_table_data(
            feature_out_dir=self.directions,
            corrcoef_neurons=self.stored.correlations.neurons,
            corrcoef_encoder=self.stored.correlations.features,
            n_rows=self.layout.feature_tables_cfg.n_rows,
        )

    def compute(self, index: int) -> tuple[FeatureData, SaeVisLayoutConfig]:
        """The panels of ``features[index]`` and their layout; the same whichever others were computed before."""
        activations = self.stored.of(index)  # [rows, context]
        active = activations[activations > 0]
        logits = (self.directions[index].to(self.unembedding) @ self.unembedding).float().cpu()  # [d_vocab]
        # SAEDashboard draws sequences with the global generator.
        random.seed(self.seed * 1_000_003 + self.features[index])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="eindex")
            data = FeatureData(
                feature_tables_data=FeatureTablesData(**{name: rows[index] for name, rows in self._tables.items()}),
                logits_histogram_data=LogitsHistogramData.from_data(
                    data=logits, n_bins=self.layout.logits_hist_cfg.n_bins, tickmode="5 ticks", title="LOGIT EFFECTS"
                ),
                logits_table_data=get_logits_table_data(logits, n_rows=self.layout.logits_table_cfg.n_rows),
            )
            if not len(active):
                return data, self.dead_layout
            data.acts_histogram_data = ActsHistogramData.from_data(
                data=active,
                n_bins=self.layout.act_hist_cfg.n_bins,
                tickmode="5 ticks",
                title=f"ACTIVATIONS<br>DENSITY = {len(active) / activations.numel():.3%}",
            )
            data.sequence_data = self._sequences.sequences(activations, logits)
            return data, self.layout
