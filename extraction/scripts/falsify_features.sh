#!/usr/bin/env bash
# Do the 100 best distinct features of the paper's SAE mean reasoning, or do a few tokens decide? From the scores that
# compute_score.sh wrote; beside them 100 matched features that are not in the top. Every value can be set in the
# environment (MODEL_PATH=… SAE_PATH=…), and further flags are passed on:
#   SCORES_DIR=runs/scores OUTPUT_DIR=runs/falsification bash extraction/scripts/falsify_features.sh --features 46379
# NPROC=8 shares the texts out over eight GPUs (torchrun).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$root/.venv/bin/python"
    [ -x "$PYTHON" ] || PYTHON=python
fi

# An SAE in a folder of its own needs no id (SAE_ID= leaves it out), and one that is not its hook point is refused.
SAE_ID="${SAE_ID-blocks.19.hook_resid_post}"
launch=()
[ "${NPROC:-1}" = 1 ] || launch=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
exec "$PYTHON" ${launch[@]+"${launch[@]}"} "$here/../falsify_features.py" \
    --model_path "${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Llama-8B}" \
    --sae_path "${SAE_PATH:-andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts}" \
    ${SAE_ID:+--sae_id "$SAE_ID"} \
    --dataset_path "${DATASET_PATH:-andreuka18/OpenThoughts-10k-DeepSeek-R1}" \
    --column_name "${COLUMN_NAME:-text}" \
    --ordinary_dataset_path "${ORDINARY_DATASET_PATH:-monology/pile-uncopyrighted}" \
    --ordinary_column_name "${ORDINARY_COLUMN_NAME:-text}" \
    --scores_dir "${SCORES_DIR:-$root/extraction/scores}" \
    --topk "${TOPK:-100}" \
    --n_matched "${N_MATCHED:-1}" \
    --n_samples "${N_SAMPLES:-1024}" \
    --n_texts "${N_TEXTS:-500}" \
    --minibatch_size_tokens "${MINIBATCH_SIZE_TOKENS:-16}" \
    --seed "${SEED:-42}" \
    --output_dir "${OUTPUT_DIR:-$root/extraction/falsification_results}" \
    "$@"
