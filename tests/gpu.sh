#!/usr/bin/env bash
# Shows on a machine with a CUDA GPU that results are right, and how fast the hot loops are:
#
#     bash tests/gpu.sh                      all parts
#     bash tests/gpu.sh scores training      some of them
#
#     scores     ReasonScore and the dashboards' pass      torch, transformers, sae-lens, transformer-lens
#     training   a step, a resumed run, memory, speed      the same
#     steering   steered log-likelihoods in vLLM           these and vllm, lm-eval
#     two_gpus   scoring, dashboards, training, steering   the same; left out with one GPU
#
# Each part takes less than 8 minutes, 24 GB of GPU memory, 40 GB of host memory and 25 GB of disk under TMPDIR. Models
# and SAEs get random weights on the spot, and nothing is fetched. Without a GPU all of it runs at toy size, in minutes.
# PYTHON is the interpreter (default: .venv/bin/python, else python3), OUT the folder of report.txt, report.json and a
# log of each part (default: gpu-report), LIMIT the seconds after which a part is ended (default: 480). Exit status 1: a
# check failed.
set -euo pipefail
caller="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
case "${OUT:=$PWD/gpu-report}" in
  /*) ;;
  *) OUT="$caller/$OUT" ;;
esac
# The two add-ons need not be installed, and the modules of both stages are found as their scripts find them.
for folder in tests/extraction training extraction evaluation/lm-evaluation-harness TransformerLens; do
  export PYTHONPATH="$PWD/$folder${PYTHONPATH:+:$PYTHONPATH}"
done
export HF_HUB_OFFLINE=1 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false
exec "$PYTHON" tests/gpu/report.py "$OUT" "$@"
