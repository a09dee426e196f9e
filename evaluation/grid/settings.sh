# What evaluate.sh and sweep.sh share: the paper's model and SAE, how answers are generated, and the one call.
# shellcheck shell=bash

MODEL="${MODEL:-deepseek-ai/DeepSeek-R1-Distill-Llama-8B}"  # Hub id or folder
DTYPE="${DTYPE:-bfloat16}"                                  # of the model
SAE_PATH="${SAE_PATH:-}"                                    # folder of the SAE, or
SAE_RELEASE="${SAE_RELEASE:-andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts}"  # its Hub repository
SAE_ID="${SAE_ID:-blocks.19.hook_resid_post}"               # and the folder in it
SAE_MODE="${SAE_MODE:-}"                                    # set (default), clamp, add, published or published_clamp
BACKEND="${BACKEND:-vllm}"                                  # vllm, or hf (transformers)
TENSOR_PARALLEL_SIZE="${TENSOR_PARALLEL_SIZE:-1}"           # GPUs that share a model
DATA_PARALLEL_SIZE="${DATA_PARALLEL_SIZE:-1}"               # models side by side
MODEL_ARGS="${MODEL_ARGS:-}"                                # more model arguments, such as max_model_len=4096
GEN_KWARGS="${GEN_KWARGS:-max_gen_toks=32768,cutoff_token=128014}"
AS_PUBLISHED="${AS_PUBLISHED:-0}"

root="$(dirname "$here")"
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON="$root/.venv/bin/python"
    [[ -x "$PYTHON" ]] || PYTHON=python3
fi

model="pretrained=$MODEL,dtype=$DTYPE"
batch=8
if [[ $BACKEND == vllm ]]; then
    batch=auto
    model+=",tensor_parallel_size=$TENSOR_PARALLEL_SIZE,data_parallel_size=$DATA_PARALLEL_SIZE"
    # The share of the GPU's memory that vLLM takes, which must be free; on a CPU it would be of all memory.
    if nvidia-smi >/dev/null 2>&1; then model+=",gpu_memory_utilization=${GPU_MEMORY_UTILIZATION:-0.85}"; fi
fi
model+="${MODEL_ARGS:+,$MODEL_ARGS}"
sae="sae_release=$SAE_RELEASE,sae_id=$SAE_ID"
if [[ -n $SAE_PATH ]]; then sae="sae_path=$SAE_PATH"; fi
sae+="${SAE_MODE:+,sae_mode=$SAE_MODE}"

flags=(--model "$BACKEND" --batch_size "${BATCH_SIZE:-$batch}" --gen_kwargs "$GEN_KWARGS" --apply_chat_template)
case $AS_PUBLISHED in
    0) ;;
    1) flags+=(--as_published) ;;
    *) echo "error: AS_PUBLISHED is '$AS_PUBLISHED', expected 1 or 0" >&2 && exit 2 ;;
esac
evaluate() { exec "$PYTHON" "$here/evaluate.py" "${flags[@]}" "$@"; }
