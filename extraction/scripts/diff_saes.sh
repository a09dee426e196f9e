#!/usr/bin/env bash
# In which stages are the final stage's 100 best distinct features there already? For the SAEs that training/diffing.sh
# wrote; FINAL=D-F (base → reasoning data → reasoning model) or M-F (the model first). Scores lie in a folder for each run,
# SCORES_DIR/D-F and so on (docs/diffing.md): those of FINAL are needed, those of stages and pages are used where they
# are there. Every value can be set in the environment, and further flags are passed on:
#   FINAL=M-F OUTPUT_DIR=runs/diffing bash extraction/scripts/diff_saes.sh --n_matched 20
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/shared/settings.sh"

FINAL="${FINAL:-D-F}"
SAE_DIR="${SAE_DIR:-sae_runs/diffing}"
SCORES_DIR="${SCORES_DIR:-$root/extraction/scores-diffing}"
DASHBOARDS_DIR="${DASHBOARDS_DIR:-$root/extraction/dashboards-diffing}"
stages=()
for stage in S=S D=S-D M=S-M; do
    run="${stage#*=}"
    stages+=(--stage "${stage%=*}=$SAE_DIR/$run")
    [ ! -d "$SCORES_DIR/$run" ] || stages+=(--stage_scores "${stage%=*}=$SCORES_DIR/$run")
    [ ! -d "$DASHBOARDS_DIR/$run" ] || stages+=(--stage_dashboards "${stage%=*}=$DASHBOARDS_DIR/$run")
done
[ ! -d "$DASHBOARDS_DIR/$FINAL" ] || stages+=(--dashboards_dir "$DASHBOARDS_DIR/$FINAL")
exec "$PYTHON" "$here/../diff_saes.py" \
    --sae_path "$SAE_DIR/$FINAL" \
    --scores_dir "$SCORES_DIR/$FINAL" \
    "${stages[@]}" \
    --topk "${TOPK:-100}" \
    --n_matched "${N_MATCHED:-10}" \
    --seed "${SEED:-42}" \
    --output_dir "${OUTPUT_DIR:-$root/extraction/diffing/$FINAL}" \
    "$@"
