#!/usr/bin/env bash
# The main job on real sentences, on a GPU where the build and the machine have one: demo.sh BUILD_DIR
set -euo pipefail
cd "$(dirname "$0")/.."
tessera=$1/tools/tessera/tessera
reviews=examples/data/reviews.tsv

"$tessera" doctor
echo
echo "Labelling $(wc -l <"$reviews") review sentences with the shipped mixture-of-experts model:"
"$tessera" evaluate --model models/movie-reviews --input "$reviews" --label-column 1 --text-column 2 --show 10
echo
echo "Now your own:"
for sentence in "I wanted to love it, but I kept checking my watch." "Tender, funny and beautifully acted."; do
  "$tessera" classify --quiet --model models/movie-reviews --text "$sentence"
done
