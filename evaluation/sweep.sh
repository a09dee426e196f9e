#!/usr/bin/env bash
# The best features by ReasonScore at several strengths, on one start of the paper's model in vLLM, and their report.
# As it stands: the ten best of extraction/scores (compute_score.sh) at strengths 1, 2 and 4 on MATH-500, and the plain
# run; a GPU of 48 GB or more. Every value can be set in the environment, and further flags are passed on to sweep.py:
#
#     TASKS=aime2024_nofigures TOPK=3 bash evaluation/sweep.sh --limit 4
#
#     MODEL        Hub id or folder            SAE_PATH          folder of the SAE, or
#     MODEL_ARGS   more model arguments        SAE_RELEASE, SAE_ID  Hub repository and folder in it
#     BACKEND      vllm or hf                  SCORES_DIR, TOPK  which features; each has its own maximal activation
#     GEN_KWARGS   of generation               STRENGTHS         times that
#     TASKS        separated by ,              GRID              YAML of features and strengths, in place of SAE and scores
#     BATCH_SIZE   sequences at once           OUTPUT_DIR        where runs and report go
#     SAE_MODE     set, clamp, add, published  AS_PUBLISHED      1: SAE_MODE and, with PROCESSOR, JUDGE are published
#     GPU_MEMORY_UTILIZATION                   share of the GPU's memory for vLLM, which must be free (0.85)
#
# Started again it continues with the runs that are missing. --plan lists them and loads nothing; --help says more.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON="$root/.venv/bin/python"
    [[ -x "$PYTHON" ]] || PYTHON=python3
fi

BACKEND="${BACKEND:-vllm}"
model_args="pretrained=${MODEL:-deepseek-ai/DeepSeek-R1-Distill-Llama-8B},dtype=bfloat16"
if [[ -n "${GRID:-}" ]]; then
    grid=(--grid "$GRID")
else
    grid=(--scores_dir "${SCORES_DIR:-$root/extraction/scores}" --topk "${TOPK:-10}" --strengths "${STRENGTHS:-1,2,4}")
    if [[ -n "${SAE_PATH:-}" ]]; then
        model_args+=",sae_path=$SAE_PATH"
    else
        model_args+=",sae_release=${SAE_RELEASE:-andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts}"
        model_args+=",sae_id=${SAE_ID:-blocks.19.hook_resid_post}"
    fi
fi
if [[ "${AS_PUBLISHED:-0}" != [01] ]]; then
    echo "error: AS_PUBLISHED is '$AS_PUBLISHED', expected 1 or 0" >&2
    exit 2
elif [[ ${AS_PUBLISHED:-0} == 1 && -n "${GRID:-}" ]]; then
    echo "error: with GRID the way of steering stands in the file: write sae_mode: published there, unset AS_PUBLISHED" >&2
    exit 2
elif [[ ${AS_PUBLISHED:-0} == 1 ]]; then
    SAE_MODE="${SAE_MODE:-published}"
    if [[ -n "${PROCESSOR:-}" ]]; then export JUDGE="${JUDGE:-published}"; fi
fi
model_args+="${SAE_MODE:+,sae_mode=$SAE_MODE}"
if [[ $BACKEND == vllm ]]; then batch=auto; else batch=8; fi
if [[ $BACKEND == vllm ]] && nvidia-smi >/dev/null 2>&1; then # on a CPU it would be a share of all memory
    model_args+=",gpu_memory_utilization=${GPU_MEMORY_UTILIZATION:-0.85}"
fi
exec "$PYTHON" "$here/sweep.py" "${grid[@]}" \
    --output_dir "${OUTPUT_DIR:-$here/sweep-results}" \
    --tasks "${TASKS:-math-500}" \
    --model "$BACKEND" \
    --model_args "$model_args${MODEL_ARGS:+,$MODEL_ARGS}" \
    --gen_kwargs "${GEN_KWARGS:-max_gen_toks=32768,cutoff_token=128014}" \
    --batch_size "${BATCH_SIZE:-$batch}" \
    --apply_chat_template \
    "$@"
