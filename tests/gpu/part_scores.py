"""Scores: ReasonScore's pass and the dashboards' pass on the device, against plain code on the CPU, and their speed."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from brute_force import sets_of_positions
from material import IGNORED, WORDS, Material, make_material
from measure import Rows, run_part
from reasonscore.chunks import PassState
from reasonscore.one_pass import sum_activations
from reasonscore.sae import find_sae, load_sae
from reasonscore.score import ActivationSums, rank_features, reason_scores
from reference import Expected, Reference, distance, expected_scores

from transformer_lens_r1 import load_model, residual_stream

if TYPE_CHECKING:
    from feature_pages.activations import StoredActivations
    from torch import Tensor

EXPAND, ALPHA = (1, 2), 0.7
ROWS_PER_BATCH, FEATURES_PER_BLOCK = 16, 1024  # the scripts' defaults
SHOWN = 100
"""Features that dashboards show."""


def load(material: Material, device: str, *, dtype: str, sae_dtype: str = "float32") -> tuple[Any, Any]:
    """Model up to the hook and SAE on the device, as the scripts load them."""
    model = load_model(material.checkpoint, device=device, dtype=dtype, n_layers=material.sizes.layer + 1)
    return model, load_sae(find_sae(str(material.sae)), device=device, dtype=sae_dtype)


def one_pass(model: Any, sae: Any, tokens: Tensor, material: Material, **options: Any) -> ActivationSums:
    """The scoring pass."""
    options = {"rows_per_batch": ROWS_PER_BATCH, "features_per_block": FEATURES_PER_BLOCK, **options}
    return sum_activations(
        model, sae, tokens, WORDS, hook_name=material.sizes.hook_name, expand_range=EXPAND, ignored_ids=IGNORED,
        progress=False, **options,
    )  # fmt: skip


def scores_of(sums: ActivationSums) -> Tensor:
    sums = sums.to("cpu")
    return reason_scores(sums.by_set, sums.n_positions, alpha=ALPHA).score


def check_scores(rows: Rows, material: Material, tokens: Tensor, expected: Expected) -> None:
    """Scores with a float32 model, a pass that is continued, and the ranking with a bfloat16 model."""
    model, sae = load(material, rows.machine.device, dtype="float32")
    parts = {"rows_per_batch": 3, "features_per_block": material.sizes.features // 3}  # the last of both is shorter
    sums = one_pass(model, sae, tokens, material, **parts)
    rows.at_most("scores, float32 model: distance to the CPU's", distance(scores_of(sums), expected.scores), 1e-6)
    rows.equal("positions of each word, of any, of none", sums.n_positions.tolist(), expected.n_positions.tolist())
    rows.at_most("largest activations: distance to the CPU's", distance(sums.maximum, expected.maximum), 1e-5)
    differing = (sums.n_active.cpu() - expected.n_active).abs().sum() / expected.n_active.sum()
    rows.at_most("counts of active positions: part that differs", differing.item(), 1e-4)

    with tempfile.TemporaryDirectory() as folder:
        state = PassState(Path(folder), "pass", {})
        state.save(one_pass(model, sae, tokens, material, rows=range(3), **parts), 3)
        continued = one_pass(model, sae, tokens, material, state=state, **parts)
    same = all(torch.equal(getattr(continued, name), value) for name, value in vars(sums).items())
    rows.equal("a pass continued from a saved state gives the same bits", same, True)

    moved = load(material, "cpu", dtype="float32")[0].to(rows.machine.device, print_details=False)
    ids, hook_name = tokens[:2].to(rows.machine.device), material.sizes.hook_name
    same = torch.equal(residual_stream(moved, ids, hook_name), residual_stream(model, ids, hook_name))
    rows.equal("a model that was moved to the device gives the bits of one that was loaded there", same, True)

    model, sae = load(material, rows.machine.device, dtype="bfloat16")
    score = scores_of(one_pass(model, sae, tokens, material))
    count = len(score) // 50
    best, best_expected = (set(rank_features(of)[:count].tolist()) for of in (score, expected.scores))
    overlap = len(best & best_expected) / count
    rows.check(f"scores, bfloat16 model: part of the best {count:,} in common", overlap, "≥ 0.95", overlap >= 0.95)


def keep_activations(
    material: Material, device: str, tokens: Tensor, features: list[int], *, dtype: str, rows_per_batch: int
) -> Callable[[], StoredActivations]:
    """The dashboards' pass, ready to be run; its file is gone when it has been."""
    from feature_pages.activations import store_activations

    model, sae = load(material, device, dtype=dtype)

    def run() -> StoredActivations:
        with tempfile.TemporaryDirectory() as folder:
            return store_activations(
                model, sae, tokens, features, Path(folder), hook_name=material.sizes.hook_name, ignored_ids=IGNORED,
                rows_per_batch=rows_per_batch,
            )  # fmt: skip

    return run


def check_dashboards(rows: Rows, material: Material, tokens: Tensor, residual: Tensor, activations: Tensor) -> None:
    """Kept activations and correlations of the dashboards' pass, with a float32 model."""
    active = ((activations > 0).sum(dim=(0, 1)) >= 10).nonzero()[:, 0]  # the others may have no correlation
    features = active[torch.linspace(0, len(active) - 1, SHOWN).long()].tolist()
    stored = keep_activations(material, rows.machine.device, tokens, features, dtype="float32", rows_per_batch=3)()
    kept = ~torch.isin(tokens, torch.tensor(IGNORED))
    shown = activations[..., features].permute(2, 0, 1) * kept  # [features, rows, pos]
    found = torch.stack([stored.of(index) for index in range(SHOWN)])
    rows.at_most("dashboards: distance of kept activations", distance(found, shown), 1e-5)
    expected = torch.corrcoef(torch.cat([shown[:, kept], residual[kept].T]).double())[:SHOWN, SHOWN:]
    found = stored.correlations.neurons.corrcoef()[0]
    rows.at_most("dashboards: distance of correlations", distance(found, expected), 1e-4)


def time_passes(rows: Rows, material: Material, *, dashboards: bool) -> None:
    """Speed, memory and synchronisations of both passes, with a bfloat16 model."""
    sizes, machine = material.sizes, rows.machine
    tokens = sizes.tokens(sizes.speed_rows)
    forward = len(tokens) * sizes.forward_flops(sizes.layer + 1)

    def measure(what: str, make: Callable[[], Callable[[], object]], sae_dtype: str, features: int) -> None:
        machine.forget_peak()
        run = make()
        seconds = machine.seconds(run)
        encode = 2 * tokens.numel() * sizes.width * features
        work = {"bfloat16": forward + encode} if sae_dtype == "bfloat16" else {"bfloat16": forward, sae_dtype: encode}
        rows.speed(what, tokens=tokens.numel(), seconds=seconds, work=work, peak=machine.peak_bytes())
        rows.synchronisations(f"{len(tokens) // ROWS_PER_BATCH} batches of the {what}", run)

    def scoring(sae_dtype: str) -> Callable[[], object]:
        model, sae = load(material, machine.device, dtype="bfloat16", sae_dtype=sae_dtype)
        return partial(one_pass, model, sae, tokens, material)

    for sae_dtype in ("float32", "bfloat16"):
        measure(f"scoring pass, {sae_dtype} SAE", partial(scoring, sae_dtype), sae_dtype, sizes.features)
    if dashboards:
        options = {"dtype": "bfloat16", "rows_per_batch": ROWS_PER_BATCH}
        keeping = partial(keep_activations, material, machine.device, tokens, list(range(SHOWN)), **options)
        measure(f"dashboards' pass, {SHOWN} features", keeping, "float32", SHOWN)


def part(rows: Rows, work: Path) -> None:
    material = make_material(work, rows.machine)
    tokens = material.sizes.tokens(material.sizes.check_rows)
    reference = Reference(material)
    residual = reference.residual(tokens)  # [rows, pos, d_in]
    activations = reference.features(residual)
    expected = expected_scores(activations, sets_of_positions(tokens.tolist(), WORDS, *EXPAND, IGNORED), alpha=ALPHA)
    del reference
    check_scores(rows, material, tokens, expected)
    dashboards = find_spec("sae_dashboard") is not None
    if dashboards:
        check_dashboards(rows, material, tokens, residual, activations)
    else:
        rows.note("dashboards' pass", "left out: sae-dashboard is not installed")
    del residual, activations
    gc.collect()
    time_passes(rows, material, dashboards=dashboards)


if __name__ == "__main__":
    run_part(part)
