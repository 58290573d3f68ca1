"""TFLOP/s of whole MoE layers at prefill, a panel a shape, with the dense cuBLAS line."""
import peers
from peers import cases


def content():
    found = peers.results()
    records = peers.random_records(found, least=cases.LARGE_TOKENS)
    if not records:
        return None
    limits = {"dense cuBLAS, bf16": lambda record: record["flop"] / record["dense"]["us"] / 1e6}
    return {**peers.panels(records, lambda record, us: record["flop"] / us / 1e6, limits), "machine": peers.machine_note(found)}


def draw(content, theme):
    return peers.draw_panels(
        content, theme, "Tessera's and other MoE layers at large batches: TFLOP/s against tokens",
        ["CUDA-graph replay with a cold L2 cache; as called where a library's layer cannot be captured.",
         "Dashed: two dense cuBLAS products of the same FLOPs in bf16. Dotted: layers of FP8 weights."],
        "TFLOP/s", logarithmic=False)
