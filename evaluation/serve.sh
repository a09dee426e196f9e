#!/usr/bin/env bash
# The paper's model to talk to: vLLM's OpenAI-compatible server on http://127.0.0.1:8000, where each request says which
# features of the paper's SAE steer it, and a page that asks the baseline and steered variants the same question.
# As it stands: a GPU of 48 GB or more, with the scores and dashboards that compute_score.sh and compute_dashboard.sh
# wrote. Every value can be set in the environment, and further flags are vLLM's:
#
#     MODEL=quickstart-run/model SAE_PATH=quickstart-run/sae SCORES_DIR=quickstart-run/scores \
#     DASHBOARDS=quickstart-run/dashboards bash evaluation/serve.sh
#     VLLM_API_KEY=… HOST=0.0.0.0 bash evaluation/serve.sh --max-model-len 16384      # for others too
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON="$root/.venv/bin/python"
    [[ -x "$PYTHON" ]] || PYTHON=python3
fi

if [[ -n "${SAE_PATH:-}" ]]; then
    sae=(--sae_path "$SAE_PATH")
else
    sae=(--sae_release "${SAE_RELEASE:-andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts}")
    sae+=(--sae_id "${SAE_ID:-blocks.19.hook_resid_post}")
fi
# Scores give each feature's maximal activation, dashboards what to choose from: SCORES_DIR= DASHBOARDS= go without.
SCORES_DIR="${SCORES_DIR-$root/extraction/scores}"
DASHBOARDS="${DASHBOARDS-$root/extraction/dashboards}"
exec "$PYTHON" "$here/serve.py" \
    --model_path "${MODEL:-deepseek-ai/DeepSeek-R1-Distill-Llama-8B}" \
    "${sae[@]}" \
    ${SCORES_DIR:+--scores_dir "$SCORES_DIR"} \
    ${DASHBOARDS:+--dashboards_dir "$DASHBOARDS"} \
    --host "${HOST:-127.0.0.1}" \
    --port "${PORT:-8000}" \
    "$@"
