#!/usr/bin/env python3
"""What `tessera explain moe` predicts beside what was measured on an H200: writes bench/results/explain_h200.json.

  explain_measured.py [TESSERA]        the built command, build/test's by default; needs no GPU

Measured are the rows of moe_h200.json, bursts, and for small batches the layer's cells of peers_h200.json (16-bit weights, random
routing, one cold layer in a graph). The rates that the model is given are the memory's of that file, and for the dense products
the median of moe_h200.json's bursts; the plan's time is what the command takes by default.
"""
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
sys.path.insert(0, str(ROOT / "bench" / "gpu"))
from moe_table import ROWS

SMALL = [(preset, tokens) for preset in ("qwen3-30b", "mixtral-8x7b", "gpt-oss-120b") for tokens in (1, 8, 32, 128, 512)]


def predicted(command, preset, tokens, routing, rates):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "plan.json"
        subprocess.run([command, "explain", "moe", "--preset", preset, "--tokens", str(tokens), "--routing", routing, "--json", path,
                        *rates], check=True, stdout=subprocess.DEVNULL)
        case, = json.loads(path.read_text())["cases"]
        return case["predicted_us"], case["kernel"]


def main():
    command = sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "test" / "tools" / "tessera" / "tessera"
    table = json.loads((RESULTS / "moe_h200.json").read_text())["burst"]
    peers = json.loads((RESULTS / "peers_h200.json").read_text())
    memory = peers["meta"]["hbm_bytes_per_second"] / 1e12
    dense = statistics.median(row["dense_tflops"] for row in table.values())
    rates = ["--hbm-tb-s", f"{memory:.2f}", "--dense-tflops", f"{dense:.0f}"]
    measured = [(*ROWS[name], row["layer_ms"] * 1e3) for name, row in table.items()]
    cells = {(cell["preset"], cell["tokens"]): cell for cell in peers["cells"] if cell["routing"] == "random"}
    for key in SMALL:
        measured.append((*key, "random", cells[key]["layers"]["tessera"]["times"]["graph_cold"]["us"]))
    rows, ratios = [], []
    for preset, tokens, routing, us in sorted(measured, key=lambda row: (row[0], row[2], row[1])):
        guess, kernel = predicted(command, preset, tokens, routing, rates)
        ratios.append(guess / us)
        rows.append([preset, f"{tokens:,}", routing, kernel, f"{guess:,.0f}", f"{us:,.0f}", f"{guess / us:.2f}"])
    result = {"what": "tessera explain moe (no GPU) against layers measured on one H200", "hbm_tb_s": round(memory, 2),
              "dense_tflops": round(dense), "median_ratio": statistics.median(ratios), "least_ratio": min(ratios),
              "largest_ratio": max(ratios), "rows": len(rows),
              "table": {"columns": ["shape", "tokens", "routing", "kernel", "predicted, us", "measured, us", "predicted / measured"],
                        "rows": rows}}
    (RESULTS / "explain_h200.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"explain_h200.json: {len(rows)} rows, predicted / measured {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
