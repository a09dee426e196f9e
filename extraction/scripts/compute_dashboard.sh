#!/usr/bin/env bash
# Feature interfaces for the 100 best features of the paper's SAE, from the scores that compute_score.sh wrote.
# Every value can be set in the environment (MODEL_PATH=… SAE_PATH=…), and further flags are passed on:
#   SCORES_DIR=runs/scores OUTPUT_DIR=runs/dashboards bash extraction/scripts/compute_dashboard.sh --features 46379
# AS_PUBLISHED=1 does as the paper's published code did (--as_published).
# NPROC=4 shares rows and pages out over four GPUs (torchrun). The same command again continues a run that was cut off.
# Model, SAE, text and seed, which all scripts here share, are in shared/settings.sh.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/shared/settings.sh"

# The model runs over the text once. Unfinished work lies in OUTPUT_DIR.partial, where it takes 4 bytes for each of the
# TOPK features and N_SAMPLES x context tokens: 4 GB here.
start compute_dashboard \
    --scores_dir "${SCORES_DIR:-$root/extraction/scores}" \
    --topk "${TOPK:-100}" \
    --n_samples "${N_SAMPLES:-10000}" \
    --output_dir "${OUTPUT_DIR:-$root/extraction/dashboards}" \
    "$@"
