#!/usr/bin/env bash
# Feature interfaces for the 100 best features of the paper's SAE, from the scores that compute_score.sh wrote.
# Every value can be set in the environment (MODEL_PATH=… SAE_PATH=…), and further flags are passed on:
#   SCORES_DIR=runs/scores OUTPUT_DIR=runs/dashboards bash extraction/scripts/compute_dashboard.sh --features 46379
# AS_PUBLISHED=1 does as the paper's published code did (--as_published).
# NPROC=4 shares rows and pages out over four GPUs (torchrun). The same command again continues a run that was cut off.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$root/.venv/bin/python"
    [ -x "$PYTHON" ] || PYTHON=python
fi

# An SAE in a folder of its own needs no id (SAE_ID= leaves it out), and one that is not its hook point is refused.
SAE_ID="${SAE_ID-blocks.19.hook_resid_post}"
# MINIBATCH_SIZE_TOKENS bounds memory only; the model runs over the text once. Unfinished work lies in OUTPUT_DIR.partial, where
# it takes 4 bytes for each of the TOPK features and N_SAMPLES x context tokens: 4 GB here.
launch=()
[ "${NPROC:-1}" = 1 ] || launch=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
published=()
case ${AS_PUBLISHED:-0} in
    0) ;;
    1) published=(--as_published) ;;
    *) echo "error: AS_PUBLISHED is '$AS_PUBLISHED', expected 1 or 0" >&2 && exit 2 ;;
esac
exec "$PYTHON" ${launch[@]+"${launch[@]}"} "$here/../compute_dashboard.py" \
    --model_path "${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Llama-8B}" \
    --sae_path "${SAE_PATH:-andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts}" \
    ${SAE_ID:+--sae_id "$SAE_ID"} \
    --dataset_path "${DATASET_PATH:-andreuka18/OpenThoughts-10k-DeepSeek-R1}" \
    --column_name "${COLUMN_NAME:-text}" \
    --scores_dir "${SCORES_DIR:-$root/extraction/scores}" \
    --topk "${TOPK:-100}" \
    --n_samples "${N_SAMPLES:-10000}" \
    --minibatch_size_tokens "${MINIBATCH_SIZE_TOKENS:-16}" \
    --seed "${SEED:-42}" \
    --output_dir "${OUTPUT_DIR:-$root/extraction/dashboards}" \
    ${published[@]+"${published[@]}"} "$@"
