"""The one pass over the text: every batch once through the first layers and the encoder, and into the sums."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from reasonscore.sae import encoder_blocks
from reasonscore.score import N_BLOCKS, ActivationSums, WordGroups, blocks_of_rows, find_membership
from transformer_lens_r1 import residual_stream
from transformer_lens_r1.shared.errors import UserError

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge

    from reasonscore.chunks import PassState
    from transformer_lens_r1.shared.ranks import Ranks


def sum_activations(
    model: TransformerBridge,
    sae: SAE,
    tokens: Tensor,
    groups: WordGroups,
    *,
    hook_name: str,
    expand_range: tuple[int, int],
    ignored_ids: Sequence[int],
    white_space_ids: Sequence[int] = (),
    published_windows: bool = False,
    rows_per_batch: int,
    features_per_block: int,
    features: slice | None = None,
    rows: range | None = None,
    state: PassState | None = None,
    save_every: float = 300,
    progress: bool = True,
) -> ActivationSums:
    """Sums of features' activations over each set of positions.

    On CUDA the host waits for the device only to save a state, after the first batch and at the end.

    Args:
        model: loaded at least up to the hook point.
        sae: with the decoder norm folded in, on the model's device.
        tokens: int64 [rows, context], on the CPU.
        groups: what `group_spellings` gave.
        hook_name: where the SAE reads.
        expand_range: positions before and after a matched token that belong to its word.
        ignored_ids: ids that count nowhere.
        white_space_ids: ids that decode to white space only.
        published_windows: see `find_membership`.
        rows_per_batch: rows in a forward pass.
        features_per_block: features encoded at once; another block is another encode, not another forward.
        features: only these. Blocks that they touch are computed whole, so that the sums are bit for bit those that
            all features together give.
        rows: the part of the text to pass over; all of it if None.
        state: where to continue from, and what to save for a later run to continue from.
        save_every: seconds from one saved state to the next.
        progress: show a progress bar, in rows.

    Raises:
        UserError: activations that are not finite.
    """
    device = sae.W_enc.device
    wanted = range(sae.cfg.d_sae)[features or slice(None)]
    encoders = [
        (block, encode)
        for block, encode in encoder_blocks(sae, features_per_block)
        if block.start < wanted.stop and block.stop > wanted.start
    ]
    offset = encoders[0][0].start
    rows = range(len(tokens)) if rows is None else rows
    left, right = expand_range
    saved = state.load() if state is not None else None
    if saved is None:
        n_features = encoders[-1][0].stop - offset
        sums = ActivationSums.zeros(len(groups), n_features, n_blocks=min(N_BLOCKS, len(tokens)), device=device)
        first = rows.start
    else:
        sums, first = saved[0].to(device), saved[1]
        if progress:
            print(f"continuing at row {first:,} of {rows.start:,} to {rows.stop:,}, from {state.path}")
    if device.type == "cuda":
        tokens = tokens.pin_memory()
    saved_at = time.monotonic()
    bar = tqdm(total=len(rows), initial=first - rows.start, desc="scoring", unit="row", disable=not progress)
    with torch.no_grad(), bar:
        for start in range(first, rows.stop, rows_per_batch):
            batch = tokens[start : min(start + rows_per_batch, rows.stop)]
            blocks = blocks_of_rows(start, len(batch), len(tokens))
            residual = residual_stream(model, batch.to(device, non_blocking=True), hook_name)  # [batch, pos, d_model]
            residual = residual.to(sae.W_enc.dtype)  # here, or every block would do it
            membership = find_membership(
                batch,
                groups,
                left=left,
                right=right,
                ignored_ids=ignored_ids,
                white_space_ids=white_space_ids,
                published_windows=published_windows,
            )
            sums.count(membership, blocks)
            membership = membership.to(device)
            for block, encode in encoders:
                sums.add(encode(residual), membership, blocks, slice(block.start - offset, block.stop - offset))
            bar.update(len(batch))
            done = start + len(batch)
            if start == rows.start:
                _check_finite(sums, model, sae)
            if state is not None and done < rows.stop and time.monotonic() - saved_at >= save_every:
                _check_finite(sums, model, sae)
                state.save(sums, done)
                saved_at = time.monotonic()
    _check_finite(sums, model, sae)
    return sums.of_features(slice(wanted.start - offset, wanted.stop - offset))


def _check_finite(sums: ActivationSums, model: TransformerBridge, sae: SAE) -> None:
    if not sums.by_block.isfinite().all():
        formats = " and ".join(str(dtype).removeprefix("torch.") for dtype in (model.cfg.dtype, sae.W_enc.dtype))
        raise UserError(
            f"some activations are NaN or infinite (model and SAE in {formats}): try --dtype float32 "
            "--sae_dtype float32; if that changes nothing, weights of the model or the SAE are damaged"
        )


def add_over_ranks(sums: ActivationSums, ranks: Ranks) -> None:
    """Add the sums of all ranks' rows into the first rank's."""
    for tensor in (sums.by_block, sums.positions_by_block, sums.n_matches, sums.n_active, sums.by_part):
        ranks.add(tensor)
    ranks.maximum(sums.maximum)
