# What the scripts of this folder share: the Python, the paper's model, SAE and text, and how to start on several GPUs.
# shellcheck shell=bash disable=SC2034,SC2154

root="$(cd "$here/../.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$root/.venv/bin/python"
    [ -x "$PYTHON" ] || PYTHON=python
fi

# An SAE in a folder of its own needs no id (SAE_ID= leaves it out), and one that is not its hook point is refused.
SAE_ID="${SAE_ID-blocks.19.hook_resid_post}"
inputs=(
    --model_path "${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Llama-8B}"
    --sae_path "${SAE_PATH:-andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts}"
    ${SAE_ID:+--sae_id "$SAE_ID"}
    --dataset_path "${DATASET_PATH:-andreuka18/OpenThoughts-10k-DeepSeek-R1}"
    --column_name "${COLUMN_NAME:-text}"
    --minibatch_size_tokens "${MINIBATCH_SIZE_TOKENS:-16}" # bounds memory only
    --seed "${SEED:-42}"
)
case ${AS_PUBLISHED:-0} in
    0) ;;
    1) inputs+=(--as_published) ;;
    *) echo "error: AS_PUBLISHED is '$AS_PUBLISHED', expected 1 or 0" >&2 && exit 2 ;;
esac
launch=()
[ "${NPROC:-1}" = 1 ] || launch=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")

# start NAME FLAG …: a script of extraction/, with the inputs above, in NPROC processes.
start() {
    exec "$PYTHON" ${launch[@]+"${launch[@]}"} "$here/../$1.py" "${inputs[@]}" "${@:2}"
}
