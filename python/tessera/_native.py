"""libtessera through ctypes: its structures and prototypes, statuses as exceptions, objects that die with their owner.

What of it fails raises: ValueError (an argument that cannot be right), MemoryError, or TesseraError.
"""

import ctypes
import os
import pathlib
import struct
import sys
import threading
import weakref
from typing import NamedTuple

CPU = -1
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
ACTIVATIONS = ("identity", "silu", "gelu_tanh", "gelu_erf", "relu", "relu_squared", "clamped_swiglu")
GATE_UP_ORDERS = ("gate_first", "interleaved", "up_first")
WEIGHT_FORMATS = ("dense", "fp8-block", "fp8-channel")
SCALE_TYPES = ("float32", "bfloat16", "float8_e8m0fnu")
SCALE_GRIDS = ("per_projection", "concatenated", "interleaved")
CHANNEL_GRIDS = ("rows", "halves", "matrices")
ROUTER_KINDS = ("softmax_topk", "topk_softmax", "softmax_topk_renormalize", "sigmoid_grouped", "sigmoid_renormalize")
PRECISIONS = ("default", "fp32", "bf16", "fp16", "fp64")

_INVALID_ARGUMENT, _UNAVAILABLE, _OUT_OF_MEMORY = 1, 2, 3


class TesseraError(RuntimeError):
    """A failure of the library that no Python exception fits: a device that failed, no GPU, a fork after CUDA."""


class _Structure(ctypes.Structure):
    """A structure of the C interface; its first member is its size, which the library's *_init_sized writes."""


class MoELimitValues(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("width_multiple", ctypes.c_int32), ("max_experts", ctypes.c_int32),
                ("max_top_k", ctypes.c_int32), ("alignment", ctypes.c_int32), ("max_threads", ctypes.c_int32)]


class MoEConfig(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("hidden_size", ctypes.c_int32),
                ("intermediate_size", ctypes.c_int32), ("num_experts", ctypes.c_int32), ("top_k", ctypes.c_int32),
                ("dtype", ctypes.c_int32), ("gated", ctypes.c_int32), ("activation", ctypes.c_int32),
                ("alpha", ctypes.c_float), ("beta", ctypes.c_float), ("limit", ctypes.c_float),
                ("gate_up_order", ctypes.c_int32), ("first_expert", ctypes.c_int32),
                ("num_mapped_experts", ctypes.c_int32), ("shared_intermediate_size", ctypes.c_int32),
                ("device", ctypes.c_int32), ("num_threads", ctypes.c_int32),
                ("weight_format", ctypes.c_int32), ("gate_scale_offset", ctypes.c_int32),
                ("up_scale_offset", ctypes.c_int32), ("down_scale_offset", ctypes.c_int32),
                ("num_gate_up_input_scales", ctypes.c_int32), ("num_down_input_scales", ctypes.c_int32),
                ("round_like_engines", ctypes.c_int32)]


class MoEWeights(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("gate_up", ctypes.c_void_p), ("down", ctypes.c_void_p),
                ("gate_up_bias", ctypes.c_void_p), ("down_bias", ctypes.c_void_p),
                ("shared_gate_up", ctypes.c_void_p), ("shared_down", ctypes.c_void_p),
                ("expert_map", ctypes.c_void_p), ("gate_up_scale", ctypes.c_void_p),
                ("down_scale", ctypes.c_void_p), ("shared_gate_up_scale", ctypes.c_void_p),
                ("shared_down_scale", ctypes.c_void_p), ("gate_up_input_scale", ctypes.c_void_p),
                ("down_input_scale", ctypes.c_void_p)]


class MoEInputs(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("num_tokens", ctypes.c_int32),
                ("ids_are_64_bit", ctypes.c_int32), ("x", ctypes.c_void_p), ("topk_ids", ctypes.c_void_p),
                ("topk_weights", ctypes.c_void_p), ("out", ctypes.c_void_p), ("shared_weight", ctypes.c_void_p),
                ("topk_weights_dtype", ctypes.c_int32), ("x_scale", ctypes.c_void_p)]


class RouterConfig(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("kind", ctypes.c_int32), ("num_experts", ctypes.c_int32),
                ("top_k", ctypes.c_int32), ("num_groups", ctypes.c_int32), ("topk_groups", ctypes.c_int32),
                ("scale", ctypes.c_float), ("logits_dtype", ctypes.c_int32), ("device", ctypes.c_int32)]


class ClassifierOptions(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("device", ctypes.c_int32), ("precision", ctypes.c_int32),
                ("takes_embeddings", ctypes.c_int32), ("num_threads", ctypes.c_int32),
                ("micro_batch", ctypes.c_int64), ("form", ctypes.c_char_p), ("expert_threshold", ctypes.c_double)]


class ClassifierInfo(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("vocab_size", ctypes.c_int64),
                ("sequence_length", ctypes.c_int64), ("embedding_size", ctypes.c_int64),
                ("feature_size", ctypes.c_int64), ("num_experts", ctypes.c_int64), ("num_classes", ctypes.c_int64),
                ("preferred_batch", ctypes.c_int64), ("has_vocabulary", ctypes.c_int64),
                ("device_bytes", ctypes.c_size_t)]


class ClassifierOutputs(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("logits", ctypes.c_void_p), ("router_weights", ctypes.c_void_p),
                ("features", ctypes.c_void_p), ("status", ctypes.c_void_p)]


class LoadOptions(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("layer", ctypes.c_int32), ("shard", ctypes.c_int32),
                ("num_shards", ctypes.c_int32), ("device", ctypes.c_int32), ("dtype", ctypes.c_int32),
                ("weight_format", ctypes.c_int32), ("shared_expert", ctypes.c_int32)]


LAYER_ARRAYS = ("gate_up", "down", "gate_up_bias", "down_bias", "shared_gate_up", "shared_down", "gate_up_scale",
                 "down_scale", "shared_gate_up_scale", "shared_down_scale")


class LayerSizes(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), *((name, ctypes.c_size_t) for name in LAYER_ARRAYS),
                ("read_bytes", ctypes.c_uint64), ("num_blocks", ctypes.c_int64), ("num_exact_blocks", ctypes.c_int64)]


class LayerMemory(_Structure):
    _fields_ = [("struct_bytes", ctypes.c_size_t), *((name, ctypes.c_void_p) for name in LAYER_ARRAYS)]


PROGRESS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)

_POINTER, _SIZE, _INT, _LONG, _STRING = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32, ctypes.c_int64,
                                         ctypes.c_char_p)
_REFERENCE = ctypes.POINTER

# Name, type of the result (None: void), types of the arguments.
_PROTOTYPES = [
    ("tessera_version", _STRING, []),
    ("tessera_last_error", _STRING, []),
    ("tessera_set_stop", None, [_REFERENCE(_INT)]),
    ("tessera_num_devices", _INT, []),
    ("tessera_device_check", _INT, [_INT]),
    ("tessera_device_name", _INT, [_INT, _STRING, _SIZE]),
    ("tessera_allocate", _INT, [_INT, _SIZE, _REFERENCE(_POINTER)]),
    ("tessera_free", None, [_INT, _POINTER]),
    ("tessera_moe_limits", _REFERENCE(MoELimitValues), []),
    ("tessera_moe_config_init_sized", None, [_REFERENCE(MoEConfig), _SIZE]),
    ("tessera_moe_weights_init_sized", None, [_REFERENCE(MoEWeights), _SIZE]),
    ("tessera_moe_create", _INT, [_REFERENCE(MoEConfig), _REFERENCE(MoEWeights), _REFERENCE(_POINTER)]),
    ("tessera_moe_destroy", None, [_POINTER]),
    ("tessera_moe_workspace_bytes", _INT, [_POINTER, _INT, _REFERENCE(_SIZE)]),
    # The inputs arrive as packed bytes, see PACK_INPUTS: half the cost of a ctypes structure, and no thread shares them.
    ("tessera_moe_run", _INT, [_POINTER, _STRING, _POINTER, _SIZE, _POINTER]),
    ("tessera_quantize_rows", _INT, [_POINTER, _INT, _LONG, _LONG, _POINTER, _POINTER]),
    ("tessera_quantize_whole_rows", _INT, [_POINTER, _INT, _LONG, _LONG, _POINTER, _POINTER]),
    ("tessera_quantize_blocks", _INT, [_POINTER, _INT, _LONG, _LONG, _LONG, _INT, _INT, _POINTER, _POINTER]),
    ("tessera_convert_scales", _INT, [_POINTER, _INT, _INT, _LONG, _LONG, _LONG, _INT, _INT, _POINTER]),
    ("tessera_convert_channel_scales", _INT, [_POINTER, _INT, _INT, _LONG, _LONG, _INT, _INT, _POINTER]),
    ("tessera_moe_prepare_weights", _INT,
     [_REFERENCE(MoEConfig), _POINTER, _POINTER, _POINTER, _POINTER, _POINTER]),
    ("tessera_router_config_init_sized", None, [_REFERENCE(RouterConfig), _SIZE]),
    ("tessera_route", _INT, [_REFERENCE(RouterConfig), _INT, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER,
                             _POINTER]),
    ("tessera_checkpoint_open", _INT, [_STRING, _REFERENCE(_POINTER)]),
    ("tessera_checkpoint_close", None, [_POINTER]),
    ("tessera_checkpoint_description", _STRING, [_POINTER]),
    ("tessera_load_options_init_sized", None, [_REFERENCE(LoadOptions), _SIZE]),
    ("tessera_layer_sizes_init_sized", None, [_REFERENCE(LayerSizes), _SIZE]),
    ("tessera_layer_memory_init_sized", None, [_REFERENCE(LayerMemory), _SIZE]),
    ("tessera_layer_plan_create", _INT, [_POINTER, _REFERENCE(LoadOptions), _REFERENCE(_POINTER)]),
    ("tessera_layer_plan_destroy", None, [_POINTER]),
    ("tessera_layer_plan_get", _INT, [_POINTER, _REFERENCE(MoEConfig), _REFERENCE(LayerSizes)]),
    ("tessera_layer_plan_read", _INT, [_POINTER, _REFERENCE(LayerMemory), PROGRESS, _POINTER]),
    ("tessera_classifier_options_init_sized", None, [_REFERENCE(ClassifierOptions), _SIZE]),
    ("tessera_classifier_info_init_sized", None, [_REFERENCE(ClassifierInfo), _SIZE]),
    ("tessera_classifier_outputs_init_sized", None, [_REFERENCE(ClassifierOutputs), _SIZE]),
    ("tessera_classifier_load", _INT, [_STRING, _REFERENCE(ClassifierOptions), _REFERENCE(_POINTER)]),
    ("tessera_classifier_destroy", None, [_POINTER]),
    ("tessera_classifier_get_info", _INT, [_POINTER, _REFERENCE(ClassifierInfo)]),
    ("tessera_classifier_description", _STRING, [_POINTER]),
    ("tessera_classifier_class_name", _STRING, [_POINTER, _LONG]),
    ("tessera_classifier_tokenize", _INT, [_POINTER, _REFERENCE(_STRING), _REFERENCE(_SIZE), _LONG, _POINTER]),
    ("tessera_classifier_tokenize_counted", _INT,
     [_POINTER, _REFERENCE(_STRING), _REFERENCE(_SIZE), _LONG, _POINTER, _POINTER, _POINTER]),
    ("tessera_classifier_run", _INT, [_POINTER, _LONG, _POINTER, _POINTER, _REFERENCE(ClassifierOutputs)]),
]

_NAMES = {MoEConfig: "tessera_moe_config", MoEWeights: "tessera_moe_weights", RouterConfig: "tessera_router_config",
          LoadOptions: "tessera_load_options", LayerSizes: "tessera_layer_sizes", LayerMemory: "tessera_layer_memory",
          ClassifierOptions: "tessera_classifier_options", ClassifierInfo: "tessera_classifier_info",
          ClassifierOutputs: "tessera_classifier_outputs"}


_FILE_NAME = "libtessera.so"


def _find():
    """Where the shared library lies: beside this file, or where the installer put it. An editable install leaves this
    file in the checkout and the library in site-packages."""
    if os.environ.get("TESSERA_LIBRARY"):
        return pathlib.Path(os.environ["TESSERA_LIBRARY"])
    beside = pathlib.Path(__file__).with_name(_FILE_NAME)
    package = sys.modules.get(__package__)
    folders = [pathlib.Path(folder) for folder in getattr(package, "__path__", ())]
    for candidate in (beside, *(folder / _FILE_NAME for folder in folders), *_installed()):
        if candidate.is_file():
            return candidate
    return beside


def _installed():
    """The library's place as the installed distribution lists it."""
    import importlib.metadata  # seldom needed, and slow to import
    try:
        files = importlib.metadata.files("tessera") or ()
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == _FILE_NAME:
            yield pathlib.Path(file.locate())


def _load():
    path = _find()
    try:
        loaded = ctypes.CDLL(str(path))
        for name, result, arguments in _PROTOTYPES:
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ImportError(f"tessera: cannot load its shared library {path}: {error}; `pip install .` builds it, and "
                          "the environment variable TESSERA_LIBRARY names one that lies elsewhere") from error
    return path, loaded


PATH, lib = _load()
VERSION = lib.tessera_version().decode()


def packer(structure):
    """struct.Struct.pack of a ctypes structure of plain members, in the same layout."""
    layout = struct.Struct("@" + "".join(kind._type_ for _, kind in structure._fields_) + "0P")
    assert layout.size == ctypes.sizeof(structure), (layout.format, layout.size)
    return layout.pack


class MoELimits(NamedTuple):
    width_multiple: int  # H and I are multiples of it
    max_experts: int  # E that one layer's weights hold
    max_top_k: int  # slots a token
    alignment: int  # bytes: of weights, x, out, workspaces and router logits
    max_threads: int  # num_threads of a layer and of a classifier


def _limits():
    known = lib.tessera_moe_limits().contents
    return MoELimits(*(getattr(known, name) for name in MoELimits._fields))


LIMITS = _limits()
INPUTS_BYTES = ctypes.sizeof(MoEInputs)
PACK_INPUTS = packer(MoEInputs)


def wrong(where, got, expected):
    """The words of every refusal, the library's own as well."""
    return f"{where}: got {got}, expected {expected}"


def check(status):
    """Raises what a status other than TESSERA_OK stands for."""
    if status == 0:
        return
    message = lib.tessera_last_error().decode("utf-8", "replace")
    if status == _INVALID_ARGUMENT:
        raise ValueError(message)
    raise MemoryError(message) if status == _OUT_OF_MEMORY else TesseraError(message)


def new(structure, **members):
    """A structure with the library's defaults and these members."""
    made = structure()
    getattr(lib, f"{_NAMES[structure]}_init_sized")(ctypes.byref(made), ctypes.sizeof(made))
    for name, value in members.items():
        setattr(made, name, value)
    return made


class _Process:
    """What a fork changes: CUDA used by the parent is lost in the child, and so are the threads of CPU objects."""

    cuda_used = False
    cuda_lost = False
    owners: weakref.WeakSet = weakref.WeakSet()  # objects with a handle: their `lose()` is called in a forked child


def refuse_fork():
    raise TesseraError(wrong("fork", "a process forked after its parent used CUDA",
                             "a process started with multiprocessing's 'spawn' or 'forkserver'"))


def use_cuda():
    """To be called before the library touches a CUDA device. Raises TesseraError in a child forked after that."""
    if _Process.cuda_lost:
        refuse_fork()
    if not _Process.cuda_used:
        _Process.cuda_used = lib.tessera_num_devices() > 0


def num_devices():
    """CUDA devices that this process sees; 0 where there is no driver, which a fork does not harm."""
    use_cuda()
    return lib.tessera_num_devices()


def why_unusable(device):
    """Empty if the library runs on a device (CPU or a CUDA device's number), else the reason."""
    if device != CPU:
        use_cuda()
    status = lib.tessera_device_check(device)
    if status == _UNAVAILABLE:
        return lib.tessera_last_error().decode("utf-8", "replace")
    check(status)
    return ""


def _after_fork_in_child():
    _Process.cuda_lost = _Process.cuda_used
    for owner in list(_Process.owners):
        owner.lose()


os.register_at_fork(after_in_child=_after_fork_in_child)


def in_background(call):
    """What `call()` returns or raises. In the main thread, where Ctrl-C arrives, another thread makes the call: when
    an exception comes here meanwhile it is told to stop, so that nothing is written any more once that leaves."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    stop, outcome = ctypes.c_int32(0), []
    ended = threading.Event()  # Thread.join takes a thread for ended once it was interrupted (bpo-45274)

    def work():
        lib.tessera_set_stop(ctypes.byref(stop))
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            ended.set()

    thread = threading.Thread(target=work)
    try:
        try:
            thread.start()
        except RuntimeError:  # a limit on processes: without it
            return call()
        ended.wait()
    except BaseException:
        stop.value = 1
        if thread.ident is not None:
            ended.wait()
        raise
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


class Handle:
    """One native object: made by `make(reference)`, destroyed once, when the last owner lets go of it.

    `pointer` is 0 after a fork: the child must not destroy what the parent's threads and device belong to. `lock`
    serialises runs of objects that take one at a time.
    """

    def __init__(self, make, destroy, is_slow=False):
        self.pointer, self._destroy, self.lock = 0, destroy, threading.Lock()
        reference = ctypes.c_void_p()

        def make_now():
            check(make(ctypes.byref(reference)))

        try:
            in_background(make_now) if is_slow else make_now()
        finally:
            self.pointer = reference.value or 0  # also of one that was made while an exception was on its way
        _Process.owners.add(self)

    def lose(self):
        self.pointer = 0

    def __del__(self):
        if self.pointer:
            self._destroy(self.pointer)
            self.pointer = 0


def allocate(device, num_bytes):
    """(address, owner) of memory of a device that lives as long as the owner."""
    if device != CPU:
        use_cuda()
    handle = Handle(lambda reference: lib.tessera_allocate(device, max(num_bytes, 1), reference),
                    lambda pointer: lib.tessera_free(device, pointer))
    return handle.pointer, handle
