#!/usr/bin/env bash
# ReasonScore of every feature of the paper's SAE: one pass over 4,096 contexts of 1,024 tokens.
# Every value can be set in the environment (MODEL_PATH=… SAE_PATH=…), and further flags are passed on:
#   OUTPUT_DIR=runs/scores bash extraction/scripts/compute_score.sh --device cpu
# AS_PUBLISHED=1 does as the paper's published code did (--as_published).
# NPROC=4 shares the rows out over four GPUs (torchrun). The same command again continues a pass that was cut off.
# Model, SAE, text and seed, which all scripts here share, are in shared/settings.sh.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/shared/settings.sh"

# The paper's ignored ids are its model's bos and eos; for another model, those that its SAE was trained without.
[ -n "${MODEL_PATH:-}" ] || IGNORE_TOKENS="${IGNORE_TOKENS-128000,128001}"
start compute_score \
    --tokens_str_path "${TOKENS_STR_PATH:-$here/../reason_tokens.json}" \
    --expand_range "${EXPAND_RANGE:-1,2}" \
    ${IGNORE_TOKENS+--ignore_tokens "$IGNORE_TOKENS"} \
    --n_samples "${N_SAMPLES:-4096}" \
    --alpha "${ALPHA:-0.7}" \
    --minibatch_size_features "${MINIBATCH_SIZE_FEATURES:-1024}" \
    --topk "${TOPK:-100}" \
    --output_dir "${OUTPUT_DIR:-$root/extraction/scores}" \
    "$@"
