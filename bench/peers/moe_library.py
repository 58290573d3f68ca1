"""Tessera's MoE layer from Python, through libtessera_moe_shim.so (bench/peers/moe_shim.cc) and torch tensors."""
import ctypes

POINTER, INT, SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t


class MoeLibrary:
    def __init__(self, path):
        self.functions = ctypes.CDLL(str(path))
        for name, result, arguments in (
                ("tessera_moe_create", POINTER, [INT] * 5 + [POINTER] * 2), ("tessera_moe_destroy", None, [POINTER]),
                ("tessera_moe_workspace_bytes", SIZE, [POINTER, INT]),
                ("tessera_moe_run", INT, [POINTER] * 3 + [INT] + [POINTER] * 2 + [INT, POINTER, SIZE, POINTER]),
                ("tessera_moe_last_error", ctypes.c_char_p, [])):
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, arguments

    def error(self):
        return RuntimeError("tessera: " + self.functions.tessera_moe_last_error().decode(errors="replace"))


class MoeLayer:
    """SwiGLU experts over bf16 weights: gate_up [E, 2I, H] (gate rows first), down [E, H, I]; contiguous CUDA tensors."""

    def __init__(self, library, gate_up, down, top_k):
        experts, hidden, intermediate = down.shape
        if tuple(gate_up.shape) != (experts, 2 * intermediate, hidden):
            raise ValueError(f"gate_up: got shape {tuple(gate_up.shape)}, expected {(experts, 2 * intermediate, hidden)}")
        if not (gate_up.is_contiguous() and down.is_contiguous() and gate_up.is_cuda and down.is_cuda):
            raise ValueError("weights: got strided or host tensors, expected contiguous CUDA tensors")
        self.library, self.weights = library, (gate_up, down)  # the tensors must outlive the layer
        self.handle = library.functions.tessera_moe_create(hidden, intermediate, experts, top_k, 0, gate_up.data_ptr(),
                                                           down.data_ptr())
        if not self.handle:
            raise library.error()

    def workspace_bytes(self, tokens):
        size = self.library.functions.tessera_moe_workspace_bytes(self.handle, tokens)
        if not size:
            raise self.library.error()
        return size

    def run(self, x, ids, weights, out, workspace, stream):
        """x, out [T, H] bf16; ids [T, k] int64; weights [T, k] float32; workspace bytes; stream a cudaStream_t."""
        failed = self.library.functions.tessera_moe_run(self.handle, x.data_ptr(), ids.data_ptr(), 1, weights.data_ptr(),
                                                        out.data_ptr(), x.shape[0], workspace.data_ptr(),
                                                        workspace.numel(), stream)
        if failed:
            raise self.library.error()

    def close(self):
        if self.handle:
            self.library.functions.tessera_moe_destroy(self.handle)
            self.handle = None
