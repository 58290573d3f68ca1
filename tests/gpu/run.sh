#!/usr/bin/env bash
# Runs prebuilt GPU tests and records the result: run.sh BUILD_DIR SUITE [SUITE...]. Needs a GPU, compute-sanitizer and
# python3, neither git nor a compiler; the suite python also PyTorch, Transformers and CuPy. RECORD=FILE writes the record
# elsewhere than tests/gpu/RECORD.json.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n '2,4p' "$0"; exit 2; }
exec python3 "$here/record.py" run "$@" --record "${RECORD:-$here/RECORD.json}"
