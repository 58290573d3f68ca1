#!/usr/bin/env bash
# Prints the CMake preset that suits this machine: `demo` (with CUDA kernels) where there is a GPU and an nvcc that can
# build for it, else `cpu`. Says on standard error why a GPU is left out.
set -euo pipefail

oldest=12.8  # as cmake/cuda.cmake asks for
if ! compgen -G '/dev/nvidia[0-9]*' >/dev/null && ! nvidia-smi -L >/dev/null 2>&1; then
  echo cpu
  exit 0
fi
nvcc=${CUDACXX:-$(command -v nvcc || true)}
if [ -z "$nvcc" ]; then
  echo "There is a GPU, but nvcc (of the CUDA toolkit, $oldest or newer) is missing: the CPU is used." >&2
  echo cpu
  exit 0
fi
version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
if [ "$(printf '%s\n' "$oldest" "$version" | sort -V | head -n 1)" != "$oldest" ]; then
  echo "There is a GPU, but nvcc is release $version, older than $oldest: the CPU is used." >&2
  echo cpu
  exit 0
fi
echo demo
