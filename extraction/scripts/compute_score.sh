#!/usr/bin/env bash
# ReasonScore of every feature of the paper's SAE: one pass over 4,096 contexts of 1,024 tokens.
# Every value can be set in the environment (MODEL_PATH=… SAE_PATH=…), and further flags are passed on:
#   OUTPUT_DIR=runs/scores bash extraction/scripts/compute_score.sh --device cpu
# AS_PUBLISHED=1 does as the paper's published code did (--as_published).
# NPROC=4 shares the rows out over four GPUs (torchrun). The same command again continues a pass that was cut off.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$root/.venv/bin/python"
    [ -x "$PYTHON" ] || PYTHON=python
fi

# An SAE in a folder of its own needs no id (SAE_ID= leaves it out), and one that is not its hook point is refused.
SAE_ID="${SAE_ID-blocks.19.hook_resid_post}"
# The paper's ignored ids are its model's bos and eos; for another model, those that its SAE was trained without.
[ -n "${MODEL_PATH:-}" ] || IGNORE_TOKENS="${IGNORE_TOKENS-128000,128001}"
# MINIBATCH_SIZE_* bound memory only; results do not depend on them.
launch=()
[ "${NPROC:-1}" = 1 ] || launch=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
published=()
case ${AS_PUBLISHED:-0} in
    0) ;;
    1) published=(--as_published) ;;
    *) echo "error: AS_PUBLISHED is '$AS_PUBLISHED', expected 1 or 0" >&2 && exit 2 ;;
esac
exec "$PYTHON" ${launch[@]+"${launch[@]}"} "$here/../compute_score.py" \
    --model_path "${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Llama-8B}" \
    --sae_path "${SAE_PATH:-andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts}" \
    ${SAE_ID:+--sae_id "$SAE_ID"} \
    --dataset_path "${DATASET_PATH:-andreuka18/OpenThoughts-10k-DeepSeek-R1}" \
    --column_name "${COLUMN_NAME:-text}" \
    --tokens_str_path "${TOKENS_STR_PATH:-$here/../reason_tokens.json}" \
    --expand_range "${EXPAND_RANGE:-1,2}" \
    ${IGNORE_TOKENS+--ignore_tokens "$IGNORE_TOKENS"} \
    --n_samples "${N_SAMPLES:-4096}" \
    --alpha "${ALPHA:-0.7}" \
    --minibatch_size_features "${MINIBATCH_SIZE_FEATURES:-1024}" \
    --minibatch_size_tokens "${MINIBATCH_SIZE_TOKENS:-16}" \
    --topk "${TOPK:-100}" \
    --seed "${SEED:-42}" \
    --output_dir "${OUTPUT_DIR:-$root/extraction/scores}" \
    ${published[@]+"${published[@]}"} "$@"
