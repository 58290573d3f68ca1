"""The time of whole MoE layers at small batches over that of reading their weights, a panel a shape."""
import peers
from peers import cases


def over_floor(record, us):
    """How many times as long as the 16-bit weights in use take to be read."""
    return us / peers.floor(record, "bf16")


def fp8_floor(record):
    floor = peers.floor(record, "fp8-block")
    return None if floor is None else over_floor(record, floor)


def content():
    found = peers.results()
    records = peers.random_records(found, most=cases.DECODE_TOKENS)
    if not records:
        return None
    limits = {"16-bit weights from memory": lambda record: 1.0, "FP8 weights from memory": fp8_floor}
    return {**peers.panels(records, over_floor, limits), "machine": peers.machine_note(found)}


def draw(content, theme):
    return peers.draw_panels(
        content, theme, "Tessera's and other MoE layers at small batches: time over that of reading the 16-bit weights once",
        ["CUDA-graph replay with a cold L2 cache; as called where a library's layer cannot be captured. Dotted: layers of FP8 weights.",
         "1 is the time in which the 16-bit weights of the experts in use come from memory; FP8 layers have half the bytes to read."],
        "times the floor", logarithmic=True)
