#!/usr/bin/env bash
# Installs the Debian packages that are missing: install.sh demo | test | figures. Says nothing when there is nothing to do. Where a
# person sits at a terminal it lists them and asks first.
set -euo pipefail

demo=(g++ cmake ninja-build libcli11-dev nlohmann-json3-dev libdnnl-dev libxxhash-dev
      zlib1g-dev libzstd-dev liblzma-dev ocl-icd-libopencl1 python3)
test=("${demo[@]}" libgtest-dev clang libclang-rt-dev libomp-dev clang-format clang-tidy ccache openmpi-bin xxhash
      pkg-config python3-venv python3-numpy zstd file dpkg-dev)
figures=(python3 python3-matplotlib)  # only to draw the documents' pictures anew; nothing that runs or tests needs it

case "${1:-}" in
  demo) wanted=("${demo[@]}") ;;
  test) wanted=("${test[@]}") ;;
  figures) wanted=("${figures[@]}") ;;
  *) echo "usage: install.sh demo|test|figures" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
  echo "install.sh: not a Debian system; install these packages by hand: ${wanted[*]}" >&2
  exit 0
fi
missing=()
for package in "${wanted[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "install.sh: needs root (or sudo) to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
if [ -t 0 ] && [ -t 1 ]; then
  echo "These Debian packages are missing, and apt-get would install them${as_root:+ through sudo}:"
  printf '  %s\n' "${missing[@]}"
  read -r -p "Install them? [Y/n] " answer || answer=n
  case "$answer" in
    '' | [yY] | [yY][eE][sS]) ;;
    *) echo "install.sh: nothing was installed; without them nothing can be built" >&2; exit 1 ;;
  esac
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
  >"$log" 2>&1 </dev/null; then
  cat "$log" >&2
  echo "install.sh: could not install: ${missing[*]}" >&2
  exit 1
fi
