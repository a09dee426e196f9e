#!/usr/bin/env bash
# Installs what is needed and runs the tests:   bash tests/run.sh [pytest arguments]
# The tests of the dashboards drive a real Chromium; as root on Debian or Ubuntu it is installed where it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

if ! has_chromium >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "tests: installing chromium"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
      >/dev/null || true
  fi
  has_chromium >/dev/null || {
    echo "error: the tests need Chromium: install it (Debian: apt-get install chromium) and run this again" >&2
    exit 2
  }
fi
bash setup.sh
.venv/bin/python -m ruff check .
# A process for each core, with one thread: many tests wait for scripts, which use one core while they start.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# A process that dies ends the run: pytest-xdist would start another, hand it the files that the first had finished,
# and wait for ever for their results.
exec .venv/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
