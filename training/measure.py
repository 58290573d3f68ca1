"""What `tessera evaluate` says of the shipped model, into bench/results/movie_reviews_accuracy.json.

    python3 training/measure.py --tessera build/test/tools/tessera/tessera --dev dev.tsv && python3 scripts/figures.py
"""

import argparse
import json
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "movie-reviews"
REVIEWS = ROOT / "examples" / "data" / "reviews.tsv"
CLASSES = ("negative", "positive")


def confusion(tessera, path, text_column, label_column):
    """-> [true class][predicted class] as `tessera evaluate` counts them."""
    said = subprocess.run([tessera, "evaluate", "--model", MODEL, "--input", path, "--text-column", str(text_column),
                           "--label-column", str(label_column)], text=True, capture_output=True, check=True).stdout
    counts = []
    for name in CLASSES:
        line = re.search(rf"^\s*of {name}: .*$", said, re.MULTILINE)[0]
        counts.append([int(re.search(rf"(\d+) labelled {label}", line)[1]) for label in CLASSES])
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tessera", required=True, type=pathlib.Path)
    parser.add_argument("--dev", required=True, type=pathlib.Path, help="lines `sentence<TAB>label`")
    args = parser.parse_args()
    sets = {"development": confusion(args.tessera, args.dev, 1, 2), "everyday": confusion(args.tessera, REVIEWS, 2, 1)}
    result = {"what": "tessera evaluate --model models/movie-reviews, fp32, on the 872 SST-2 development sentences and on "
                      "examples/data/reviews.tsv"}
    for (name, counts), prefix in zip(sets.items(), ("", "demo_")):
        correct, total = counts[0][0] + counts[1][1], sum(map(sum, counts))
        result |= {f"{prefix}correct": correct, f"{prefix}sentences": total, f"{prefix}accuracy_percent": 100 * correct / total}
    result["confusion"] = {
        "columns": ["sentences", "truly", *(f"labelled {label}" for label in CLASSES)],
        "rows": [[name, label, *map(str, counts[i])] for name, counts in sets.items() for i, label in enumerate(CLASSES)],
    }
    path = ROOT / "bench" / "results" / "movie_reviews_accuracy.json"
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
