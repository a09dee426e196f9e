#!/usr/bin/env bash
# Baseline and steered evaluation of the paper's model: AIME-2024, MATH-500 and GPQA-Diamond, without and with feature
# 46379 at 2 × 5.84, and their report. It wants a GPU of 48 GB or more; a trial takes minutes:
#
#     GEN_KWARGS=max_gen_toks=512 TASKS=math-500 bash evaluation/evaluate.sh --limit 4
#
# Every value below can be set in the environment, and flags are passed on to evaluate.py (--help lists them; --plan shows
# what would run; --only baseline). Runs go to <OUTPUT_DIR>/<model>-<task>[-sae-<feature>]. Started again it continues.
#
# AS_PUBLISHED=1 steers and grades as the published code does (docs/differences.md). PROCESSOR names a language model that
# judges answers. The same question many times, for coverage and majority:
# TASKS=aime2024_nofigures_self_consistency,math-500_self_consistency,openai_gpqa_diamond_self_consistency
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/grid/settings.sh"

TASKS="${TASKS:-aime2024_nofigures,math-500,openai_gpqa_diamond}"
FEATURE="${FEATURE:-46379}"
STRENGTH="${STRENGTH:-2.0}"                # times the maximal activation
MAX_ACTIVATION="${MAX_ACTIVATION:-5.84}"   # a number, or auto with SAE_STATS=<scores folder>
SAE_STATS="${SAE_STATS:-}"
INTERVENTION="${INTERVENTION:-}"           # a file of several features, in place of the four above
OUTPUT_DIR="${OUTPUT_DIR:-$here/results}"

if [[ -n $INTERVENTION ]]; then
    steering="sae_intervention_path=$INTERVENTION"
    # The published form of such a file does not name its SAE.
    if [[ $INTERVENTION == *.pt ]]; then steering+=",$sae"; fi
else
    steering="$sae,sae_feature_idx=$FEATURE,sae_strength=$STRENGTH,sae_max_activation=$MAX_ACTIVATION"
    steering+="${SAE_STATS:+,sae_stats=$SAE_STATS}"
fi
evaluate --tasks "$TASKS" --output_dir "$OUTPUT_DIR" --model_args "$model,$steering" "$@"
