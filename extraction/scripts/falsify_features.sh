#!/usr/bin/env bash
# Do the 100 best distinct features of the paper's SAE mean reasoning, or do a few tokens decide? From the scores that
# compute_score.sh wrote; beside them 100 matched features that are not in the top. Every value can be set in the
# environment (MODEL_PATH=… SAE_PATH=…), and further flags are passed on:
#   SCORES_DIR=runs/scores OUTPUT_DIR=runs/falsification bash extraction/scripts/falsify_features.sh --features 46379
# AS_PUBLISHED=1 takes rows and rotary frequencies as the paper's published code did (--as_published).
# NPROC=8 shares the texts out over eight GPUs (torchrun).
# Model, SAE, text and seed, which all scripts here share, are in shared/settings.sh.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/shared/settings.sh"

start falsify_features \
    --ordinary_dataset_path "${ORDINARY_DATASET_PATH:-monology/pile-uncopyrighted}" \
    --ordinary_column_name "${ORDINARY_COLUMN_NAME:-text}" \
    --scores_dir "${SCORES_DIR:-$root/extraction/scores}" \
    --topk "${TOPK:-100}" \
    --n_matched "${N_MATCHED:-1}" \
    --n_samples "${N_SAMPLES:-1024}" \
    --n_texts "${N_TEXTS:-500}" \
    --output_dir "${OUTPUT_DIR:-$root/extraction/falsification_results}" \
    "$@"
