#!/usr/bin/env bash
# Stage-wise diffing: trains the SAEs of training/configs/diffing in order, S, S→D, S→M, D→F and M→F, into sae_runs/diffing.
#   PLAN=1 bash training/diffing.sh                # says what each of them takes, and starts nothing
#   WANDB_API_KEY=… bash training/diffing.sh       # the same command again continues; what is finished is left alone
# NPROC=4 trains on four GPUs (torchrun; with PLAN=1, plans for four). Further flags go to every run: --set sae.d_sae=32768.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$here/../.venv/bin/python"
    [ -x "$PYTHON" ] || PYTHON=python
fi

launch=()
[ "${NPROC:-1}" = 1 ] || launch=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
how=(--resume)
case ${PLAN:-0} in
    0) ;;
    1) launch=() how=(--plan --gpus "${NPROC:-1}") ;;
    *) echo "error: PLAN is '$PLAN', expected 1 or 0" >&2 && exit 2 ;;
esac
for run in S S-D S-M D-F M-F; do
    echo "== $run"
    "$PYTHON" ${launch[@]+"${launch[@]}"} "$here/train_sae.py" "$here/configs/diffing/$run.yaml" "${how[@]}" "$@"
done
