#!/usr/bin/env bash
# Words and phrases that mark the reasoning of OpenThoughts-114k against its solutions, and how the published ten rank.
# Every value can be set in the environment (DATASET_PATH=…), and further flags are passed on:
#   DATASET_PATH=text/mine DATASET_CONFIG= OUTPUT_DIR=words bash extraction/scripts/find_reasoning_words.sh --column_name text
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/shared/settings.sh"

# A data set with one configuration needs no name of it (DATASET_CONFIG= leaves it out).
DATASET_CONFIG="${DATASET_CONFIG-metadata}"
# LANGUAGE itself is the variable in which a terminal says its own.
exec "$PYTHON" "$here/../find_reasoning_words.py" \
    --dataset_path "${DATASET_PATH:-open-thoughts/OpenThoughts-114k}" \
    ${DATASET_CONFIG:+--dataset_config "$DATASET_CONFIG"} \
    --reasoning_column "${REASONING_COLUMN:-deepseek_reasoning}" \
    --solution_column "${SOLUTION_COLUMN:-deepseek_solution}" \
    --min_count "${MIN_COUNT:-1000}" \
    --top "${TOP:-40}" \
    --language "${LANGUAGE_CODE:-en}" \
    --output_dir "${OUTPUT_DIR:-$root/extraction/reasoning_words}" \
    "$@"
