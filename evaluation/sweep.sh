#!/usr/bin/env bash
# The best features by ReasonScore at several strengths, in one batch on the paper's model, and their report. As it stands:
# the ten best distinct ones of extraction/scores (compute_score.sh) at strengths 1, 2 and 4 on MATH-500, and the baseline. It wants a
# GPU of 48 GB or more.
#
#     TASKS=aime2024_nofigures TOPK=3 bash evaluation/sweep.sh --plan
#
# Every value below can be set in the environment, and flags are passed on to evaluate.py (--help lists them; --plan shows
# what would run). Runs go to <OUTPUT_DIR>/<model>-<task>[-sae-<feature>-x<strength>]. Started again it continues.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/grid/settings.sh"

TASKS="${TASKS:-math-500}"
SCORES_DIR="${SCORES_DIR:-$root/extraction/scores}"
TOPK="${TOPK:-10}"
STRENGTHS="${STRENGTHS:-1,2,4}"            # times the maximal activation of each feature, which is in the scores
GRID="${GRID:-}"                           # YAML of features and strengths, in place of SAE and scores
OUTPUT_DIR="${OUTPUT_DIR:-$here/sweep-results}"

if [[ -n $GRID ]]; then
    steered=(--grid "$GRID" --model_args "$model")
else
    steered=(--scores_dir "$SCORES_DIR" --topk "$TOPK" --strengths "$STRENGTHS" --model_args "$model,$sae")
fi
evaluate --tasks "$TASKS" --output_dir "$OUTPUT_DIR" "${steered[@]}" "$@"
