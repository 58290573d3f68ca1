# Source it in a checkout:  . bench/engines/unpack.sh vllm.tar.xz libtessera.so [FOLDER]      (or libtessera.so.xz)
# Unpacks what pack.py made, puts this checkout's package and plug-in beside it, and sets PYTHONPATH and TESSERA_LIBRARY.
tessera_site=${3:-/tmp/tessera_engines}
if [ ! -e "$tessera_site/.done" ]; then
  mkdir -p "$tessera_site" && tar -C "$tessera_site" -xJf "$1" && cp "$2" "$tessera_site/$(basename "$2")" &&
    case $2 in *.xz) xz -d "$tessera_site/$(basename "$2")";; esac &&
    { python3 -m compileall -q -j 0 "$tessera_site" > /dev/null 2>&1; touch "$tessera_site/.done"; }
fi
rm -rf "$tessera_site"/tessera "$tessera_site"/tessera_vllm*
cp -r python/tessera integrations/vllm/src/tessera_vllm "$tessera_site"
mkdir "$tessera_site/tessera_vllm-0.1.0.dist-info"
printf 'Metadata-Version: 2.1\nName: tessera-vllm\nVersion: 0.1.0\n' > "$tessera_site/tessera_vllm-0.1.0.dist-info/METADATA"
printf '[vllm.general_plugins]\ntessera = tessera_vllm:register\n' > "$tessera_site/tessera_vllm-0.1.0.dist-info/entry_points.txt"
export PYTHONPATH=$tessera_site TESSERA_LIBRARY=$tessera_site/libtessera.so PYTHONUNBUFFERED=1
