#!/bin/bash
# build.sh [PACK] [options]: collects into PACK (default: .peers at the repository's root) what the peers of ../README.md need:
# wheels from PyPI, compiled for sm_90a. PACK/src, PACK/partA and PACK/partB are what a GPU machine gets, unpack.py lays them
# out there; PACK/build (1.8 GB: wheels, sources, objects) makes the next call short.
#   --python EXE   a Python 3.12 for compiling FlashInfer's CuTe-DSL kernels (found by itself where there is one)
#   --no-ahead     leave these kernels out: they are compiled on the GPU machine when first used, 1-2 s each
#   --jobs N       compilers at a time (default: the number of cores)
# Needs: nvcc 13 (CUDA_HOME or the one in PATH), a C++20 compiler, python3 with pip, xz, 3 GB of memory and of disk, PyPI; no
# blanks in PACK. What is compiled already is not compiled again; what was downloaded is of its own licences and stays in PACK.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit "$1"; }
pack=$here/../../../.peers python="" ahead=yes jobs=$(nproc)
while [ $# -gt 0 ]; do
  case $1 in
    --python) python=$2; shift;;
    --no-ahead) ahead=no;;
    --jobs) jobs=$2; shift;;
    -h|--help) usage 0;;
    -*) echo "build.sh: unknown option $1" >&2; usage 2;;
    *) pack=$1;;
  esac
  shift
done
mkdir -p "$pack"
pack=$(cd "$pack" && pwd)
case $pack in *[[:space:]]*) echo "build.sh: $pack: expected a path without blanks" >&2; exit 2;; esac
work=$pack/build site=$pack/build/site wheels=$pack/build/wheels objects=$pack/build/objects
compiled=$pack/build/compiled  # what is in it is not made again
mkdir -p "$wheels" "$objects" "$compiled/fi_aot" "$compiled/sgl_cuda" "$pack/partA" "$pack/partB"
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }

each() {  # FUNCTION WORD...: `jobs` at a time; the first failure ends it
  local function=$1 word running=0
  shift
  for word in "$@"; do
    if [ $running -ge "$jobs" ]; then wait -n; running=$((running - 1)); fi
    "$function" "$word" &
    running=$((running + 1))
  done
  while [ $running -gt 0 ]; do wait -n; running=$((running - 1)); done
}

# ---- the wheels, and what is laid out of them ---------------------------------------------------------------------------
platforms=""
for platform in manylinux_2_35 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux2014; do
  platforms="$platforms --platform ${platform}_x86_64"
done
say "wheels"
for version in $(grep -v '^#' "$here/wheels.txt"); do
  file=${version//-/_} file=${file/==/-}
  compgen -G "$wheels/$file-*.whl" > /dev/null && continue
  # shellcheck disable=SC2086
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 \
    --abi none $platforms -d "$wheels" "$version"
done
say "$(python3 "$here/lay.py" "$pack")"

# ---- SGLang's CUDA kernels, three files of about 20 s -------------------------------------------------------------------
export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")")}
nvcc=$CUDA_HOME/bin/nvcc tvm=$site/tvm_ffi

compile_sglang() {  # NAME: sgl_NAME.so, with the flags that SGLang's own JIT passes
  local jit=$work/sglang_jit fast="--use_fast_math" begun=$SECONDS target=$compiled/sgl_cuda/sgl_$1.so
  [ -e "$target" ] && return
  [ "$1" = align ] && fast=""
  # shellcheck disable=SC2086
  nice "$nvcc" -shared -Xcompiler -fPIC -std=c++20 -O3 --expt-relaxed-constexpr -DSGL_CUDA_ARCH=900 $fast \
    -gencode=arch=compute_90a,code=sm_90a -I"$jit/include" -I"$jit/csrc" -I"$tvm/include" -I"$tvm/3rdparty/dlpack/include" \
    -L"$tvm/lib" -ltvm_ffi -o "$target.new" "$here/cuda/sgl_$1.cu"
  strip --strip-unneeded "$target.new"
  mv "$target.new" "$target"
  say "  sgl_$1.so $((SECONDS - begun)) s"
}
say "nvcc, $jobs at a time: SGLang's kernels"
each compile_sglang align act quant

# ---- FlashInfer's moe_utils: 14 files, half an hour of one core ----------------------------------------------------------
compile_flashinfer() {  # SOURCE: with the flags that FlashInfer's own JIT passes
  local data=$work/flashinfer/data source=$1 name csrc inc sys def opt
  csrc=$data/csrc name=$(basename "$source")
  inc="-I$csrc -I$csrc/nv_internal -I$csrc/nv_internal/include -I$csrc/nv_internal/tensorrt_llm/cutlass_extensions/include
    -I$csrc/nv_internal/tensorrt_llm/kernels/cutlass_kernels/include -I$csrc/nv_internal/tensorrt_llm/kernels/cutlass_kernels
    -I$work/headers -I$data/cccl/cub -I$data/cccl/libcudacxx/include -I$data/cccl/thrust"
  sys="-isystem $CUDA_HOME/include -isystem $tvm/include -isystem $tvm/3rdparty/dlpack/include -isystem $data/include
    -isystem $csrc -isystem $data/cutlass/include -isystem $data/cutlass/tools/util/include -isystem $data/spdlog/include"
  def="-DPy_LIMITED_API=0x03090000 -D_GLIBCXX_USE_CXX11_ABI=1 -std=c++17 -DNDEBUG -O3"
  opt="-use_fast_math --threads=1 -Xfatbin=-compress-all --compress-mode=size -DFLASHINFER_ENABLE_F16 -DFLASHINFER_ENABLE_BF16
    -DFLASHINFER_ENABLE_FP8_E4M3 -DFLASHINFER_ENABLE_FP8_E5M2 --compiler-options=-fPIC --expt-relaxed-constexpr
    -static-global-template-stub=false -DTLLM_GEN_EXPORT_INTERFACE -DENABLE_BF16 -DENABLE_FP8 -DENABLE_FP4
    -gencode=arch=compute_90a,code=sm_90a -DFLASHINFER_ENABLE_FP8_E8M0 -DFLASHINFER_ENABLE_FP4_E2M1"
  local begun=$SECONDS target=$objects/${name%.*}.o
  [ -e "$target" ] && return
  # shellcheck disable=SC2086
  case $name in
    *.cu) nice "$nvcc" -c "$csrc/$source" $def $inc $sys $opt -o "$target.new";;
    *) nice c++ -c "$csrc/$source" $def $inc $sys -fPIC -Wno-switch-bool -o "$target.new";;
  esac
  mv "$target.new" "$target"
  say "  $name $((SECONDS - begun)) s"
}

cpp=nv_internal/cpp/common routing=fused_moe/trtllm_backend/trtllm_fused_moe_routing kernels=nv_internal/tensorrt_llm/kernels
sources="${routing}_custom_cluster_large.cu ${routing}_custom_cluster.cu ${routing}_custom_block.cu ${routing}_custom_entry.cu
  ${routing}_deepseek.cu ${routing}_common.cu moe_utils_binding.cu $kernels/cuteDslKernels/moeUtils.cu $cpp/memoryUtils.cu
  $cpp/envUtils.cpp $cpp/logger.cpp $cpp/stringUtils.cpp $cpp/tllmException.cpp"
library=$compiled/fi_aot/moe_utils.so
if [ ! -e "$library" ]; then
  say "FlashInfer's moe_utils"
  # shellcheck disable=SC2086
  each compile_flashinfer $sources
  list=""
  for source in $sources; do list="$list $objects/$(basename "${source%.*}").o"; done
  # shellcheck disable=SC2086
  c++ -shared $list -L"$CUDA_HOME/lib64" -lcudart -L"$tvm/lib" -ltvm_ffi -o "$library.new"
  strip --strip-unneeded "$library.new"
  mv "$library.new" "$library"
fi

# ---- FlashInfer's CuTe-DSL kernels: 44 for each top_k, 40 s of one core ---------------------------------------------------
compile_cute() {  # TOP_K
  PYTHONPATH="$here/stub:$site:$site/nvidia_cutlass_dsl/dsl_packages" PYTHONDONTWRITEBYTECODE=1 CUTE_DSL_ARCH=sm_90a \
    TVM_FFI_DISABLE_TORCH_C_DLPACK=1 FLASHINFER_DISABLE_VERSION_CHECK=1 FLASHINFER_CUDA_ARCH_LIST=9.0a \
    FLASHINFER_WORKSPACE_BASE="$work/flashinfer_workspace" \
    nice "$work/venv/bin/python" -W ignore "$here/compile_cute.py" "$compiled/fi_aot/kernels" "$1"
}
missing=""
for topk in 2 4 8 10; do [ -e "$compiled/fi_aot/kernels/index_$topk.json" ] || missing="$missing $topk"; done
if [ $ahead = yes ] && [ -n "$missing" ] && [ -z "$python" ]; then
  for candidate in python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do
    if "$candidate" -c "" 2> /dev/null; then python=$candidate; break; fi
  done
  [ -n "$python" ] || say "no Python 3.12 here (--python): the CuTe-DSL kernels will be compiled on the GPU machine, 1-2 s each"
fi
if [ $ahead = yes ] && [ -n "$missing" ] && [ -n "$python" ]; then
  say "CuTe-DSL kernels for top_k$missing"
  [ -x "$work/venv/bin/python" ] || "$python" -m venv "$work/venv"
  "$work/venv/bin/python" -m pip install -q cuda-bindings==13.0.3 numpy typing-extensions protobuf tqdm requests filelock \
    packaging nvidia-ml-py tabulate click einops
  # shellcheck disable=SC2086
  each compile_cute $missing
fi

# ---- packed: an .xz file each for the two large libraries, the rest together ----------------------------------------------
cp -r "$compiled/fi_aot" "$compiled/sgl_cuda" "$site"
find "$site" -name __pycache__ -type d -prune -exec rm -rf {} +
ir=nvidia_cutlass_dsl/dsl_packages/cutlass/_mlir/_mlir_libs/_cutlass_ir.cu13.cpython-312-x86_64-linux-gnu.so
runtime=nvidia_cutlass_dsl/cu13/lib/libcute_dsl_runtime.so
contents=$(cd "$site" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
if [ "$contents" != "$(cat "$pack/partB/contents" 2> /dev/null)" ]; then
  say "packing"
  tar -C "$work" --exclude="site/$ir" --exclude="site/$runtime" --sort=name --owner=0 --group=0 -cf - site \
    | nice xz -c --lzma2=preset=9e,dict=128MiB > "$pack/partB/site.new"
  mv "$pack/partB/site.new" "$pack/partB/site.tar.xz"
  for entry in "$runtime partB/cute_runtime.xz 64MiB" "$ir partA/cutlass_ir.xz 192MiB"; do
    read -r source target dictionary <<< "$entry"
    [ -s "$pack/$target" ] && [ ! "$wheels" -nt "$pack/$target" ] && continue
    nice xz -k -c --x86 --lzma2="preset=9e,dict=$dictionary" "$site/$source" > "$pack/$target.new"
    mv "$pack/$target.new" "$pack/$target"
  done
  echo "$contents" > "$pack/partB/contents"
fi
du -shL --apparent-size "$pack/src" "$pack/partA" "$pack/partB"
say "done: python3 bench/peers/pack/unpack.py on the GPU machine"
