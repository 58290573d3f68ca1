#!/usr/bin/env bash
# Everything about the peers on a machine with one Hopper GPU, torch and Python 3.12: builds the library and the pack of peers,
# measures the grid and the chains, makes the page and the pictures. Called again after an interruption it goes on.
#   measure.sh [FILE [OPTIONS OF run.py]]      FILE: default bench/results/peers_<gpu>.json
set -euo pipefail
cd "$(dirname "$0")/../.."
pack=bench/peers/pack
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | grep -oE '[A-Z]+[0-9]+[0-9A-Z]*' | head -1 | tr '[:upper:]' '[:lower:]' || true)
[ -n "$gpu" ] || { echo "measure.sh: nvidia-smi names no GPU" >&2; exit 2; }
file=${1:-bench/results/peers_$gpu.json}
shift $(($# > 0))

cmake --preset cuda --log-level=WARNING
cmake --build build/cuda --target tessera_c
export TESSERA_LIBRARY=$PWD/build/cuda/libtessera.so PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH}
"$pack/build.sh"
python3 "$pack/unpack.py"

code=0
python3 bench/peers/run.py --out "$file" "$@" || code=$?
[ $code -le 1 ] || exit $code
python3 bench/peers/run.py --out "$file" --chain "$@" || code=$?
python3 bench/peers/report.py "$file"
python3 scripts/figures.py
exit $code  # 1: a result was wrong; the page says which
