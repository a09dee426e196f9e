#!/usr/bin/env bash
# Installs what is needed and runs the tests:   bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup.sh
.venv/bin/python -m ruff check .
exec .venv/bin/python -m pytest "$@"
