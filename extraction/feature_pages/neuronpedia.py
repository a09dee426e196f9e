"""Shown features in the files that Neuronpedia imports, as SAEDashboard writes them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sae_dashboard.components import SequenceData
from sae_dashboard.feature_data import FeatureData
from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
from sae_dashboard.sae_vis_data import SaeVisConfig, SaeVisData

from transformer_lens_r1.loading import hook_layer
from transformer_lens_r1.shared.files import atomic_directory, display_name, write_json

if TYPE_CHECKING:
    from reasonscore.inputs import Inputs
    from transformer_lens.model_bridge import TransformerBridge

SETTINGS = "run_settings.json"
"""Beside the batches, as SAEDashboard's own runner writes it."""


class _Vocabulary(dict[int, str]):
    """The text of a token, when it is asked for."""

    def __init__(self, decode: Callable[[int], str]) -> None:
        self.decode = decode

    def __missing__(self, token: int) -> str:
        return self.decode(int(token))


def settings(args: argparse.Namespace, inputs: Inputs) -> NeuronpediaRunnerConfig:
    """What Neuronpedia is told of a run of compute_dashboard.py; models and sets of SAEs have small letters there."""
    model, sae = display_name(args.model_path), display_name(args.sae_path)
    return NeuronpediaRunnerConfig(
        sae_set=Path(sae).name.lower(),
        sae_path=sae,
        outputs_dir="",  # a path of this machine
        model_id=Path(model).name.lower(),
        layer=hook_layer(inputs.source.hook_name),
        huggingface_dataset_path=display_name(args.dataset_path),
        n_prompts_total=len(inputs.tokens),
        n_tokens_in_prompt=inputs.tokens.shape[1],
        n_quantiles=args.n_quantiles,
        shuffle_tokens=not args.first_rows,
        model_dtype=args.dtype,
    )


def write_feature(
    folder: Path,
    data: FeatureData,
    feature: int,
    model: TransformerBridge,
    decode: Callable[[int], str],
    config: NeuronpediaRunnerConfig,
    *,
    tokens_around: int,
) -> None:
    """Write a batch of one feature, in Neuronpedia's format.

    Args:
        folder: of unfinished work.
        data: from `Panels.compute`.
        feature: its index in the SAE.
        model: what `load_model` gave.
        decode: what `token_text` gave.
        config: from `settings`.
        tokens_around: as in `Panels`.
    """
    groups = [
        replace(group, seq_data=[_as_shown(sequence, tokens_around) for sequence in group.seq_data])
        for group in data.sequence_data.seq_group_data
    ]
    shown = replace(data, sequence_data=replace(data.sequence_data, seq_group_data=groups))
    visible = SaeVisData(SaeVisConfig(hook_point="", features=[feature]), {feature: shown})
    batch = NeuronpediaConverter.convert_to_np_json(model, visible, config, _Vocabulary(decode))
    write_json(_file(folder, feature), json.loads(batch))


def _file(folder: Path, feature: int) -> Path:
    return folder / f"neuronpedia_{feature}.json"


def _as_shown(sequence: SequenceData, tokens_around: int) -> SequenceData:
    """Without what fills it beyond the ends of its row; the place of its peak is counted in what is left."""
    kept = [(token, value) for token, value in zip(sequence.token_ids, sequence.feat_acts, strict=True) if token >= 0]
    before = sum(token >= 0 for token in sequence.token_ids[:tokens_around])
    tokens, values = (list(column) for column in zip(*kept, strict=True))
    # The converter takes 1 off, for the bos that SAEDashboard's own rows begin with.
    return replace(sequence, token_ids=tokens, feat_acts=values, qualifying_token_index=before + 1)


def write_batch(folder: Path, work: Path, features: Sequence[int], config: NeuronpediaRunnerConfig) -> None:
    """Write what `write_feature` wrote into ``work`` as one batch, and the settings, whole or not at all."""
    batches = [json.loads(_file(work, feature).read_text(encoding="utf-8")) for feature in features]
    with atomic_directory(folder) as made:
        write_json(made / "batch-0.json", {**batches[0], "features": [one for of in batches for one in of["features"]]})
        write_json(made / SETTINGS, vars(config))
