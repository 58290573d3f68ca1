"""Stand-ins for what the plug-in touches of vLLM, for machines without it: same names, same signatures, the least
behaviour. `install` puts them where vLLM's modules would be; test_signatures.py compares them with vLLM's source."""
import abc
import dataclasses
import enum
import importlib.machinery
import logging
import sys
import types

import torch


def init_logger(name):
    return logging.getLogger(name)


class Platform:
    """A CUDA device, unless a test says otherwise."""

    cuda = True

    def is_cuda(self):
        return self.cuda


current_platform = Platform()
op_registry_oot = {}


class CustomOp(torch.nn.Module):
    def __new__(cls, *args, **kwargs):
        return super().__new__(op_registry_oot.get(cls.__name__, cls))

    def __init__(self, *, enforce_enable=False, compile_native=False):
        super().__init__()

    @classmethod
    def register_oot(cls, _decorated_op_cls=None, name=None):
        registered = name if name is not None else cls.__name__
        assert registered not in op_registry_oot
        _decorated_op_cls.name = registered
        op_registry_oot[registered] = _decorated_op_cls
        return _decorated_op_cls


class MoEActivation(enum.Enum):
    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU2 = "relu2"
    SWIGLUOAI = "swigluoai"
    SITU = "situ"
    SWIGLUOAI_UNINTERLEAVE = "swigluoai_uninterleave"
    SWIGLUSTEP = "swiglustep"
    SILU_NO_MUL = "silu_no_mul"
    GELU_NO_MUL = "gelu_no_mul"
    GELU_TANH_NO_MUL = "gelu_tanh_no_mul"
    RELU2_NO_MUL = "relu2_no_mul"

    @property
    def is_gated(self):
        return not self.value.endswith("_no_mul")


@dataclasses.dataclass(frozen=True)
class ApplyMoEActivationConfig:
    clamp_limit: float | None = None
    alpha: float = 1.0
    beta: float = 0.0


@dataclasses.dataclass
class FusedMoEParallelConfig:
    use_all2all_kernels: bool = False  # properties of vLLM's, as the next
    use_passthrough_all2all: bool = False


@dataclasses.dataclass
class FusedMoEQuantConfig:
    gemm1_alpha: float | None = None
    gemm1_beta: float | None = None
    gemm1_clamp_limit: float | None = None
    w1_bias: torch.Tensor | None = None  # properties of vLLM's, as the next
    w2_bias: torch.Tensor | None = None
    w1_scale: torch.Tensor | None = None
    w2_scale: torch.Tensor | None = None


@dataclasses.dataclass
class FusedMoEConfig:
    num_experts: int
    experts_per_token: int
    hidden_dim: int
    intermediate_size: int
    num_local_experts: int
    activation: MoEActivation
    moe_parallel_config: FusedMoEParallelConfig
    in_dtype: torch.dtype
    moe_backend: str = "auto"
    is_lora_enabled: bool = False
    swiglu_limit: float | None = None
    swiglu_alpha: float | None = None
    swiglu_beta: float | None = None
    intermediate_size_per_partition: int = -1

    def __post_init__(self):
        self.intermediate_size_per_partition = self.intermediate_size

    @property
    def is_act_and_mul(self):
        return self.activation.is_gated


class FusedMoEActivationFormat(enum.Enum):
    Standard = ("standard",)
    BatchedExperts = ("batched_experts",)


class TopKWeightAndReduce(abc.ABC):
    pass


class TopKWeightAndReduceNoOP(TopKWeightAndReduce):
    def __eq__(self, other):
        return isinstance(other, TopKWeightAndReduceNoOP)


class FusedMoEExperts(abc.ABC):
    post_gemm2_hook = None

    def __init__(self, moe_config, quant_config, max_num_tokens=None, num_dispatchers=None):
        self.moe_config, self.quant_config = moe_config, quant_config
        limit = quant_config.gemm1_clamp_limit
        self.activation_config = ApplyMoEActivationConfig(
            moe_config.swiglu_limit if limit is None else limit,
            1.0 if moe_config.swiglu_alpha is None else moe_config.swiglu_alpha,
            0.0 if moe_config.swiglu_beta is None else moe_config.swiglu_beta)

    def _uses_post_gemm2_hook(self, num_tokens):
        return self.post_gemm2_hook is not None and num_tokens > 0

    @staticmethod
    def is_supported_config(cls, moe_config, weight_key, activation_key, activation_format):
        for supported, what in ((cls._supports_current_device(), "device"),
                                (moe_config.is_act_and_mul or cls._supports_no_act_and_mul(), "no act_and_mul"),
                                (cls._supports_activation(moe_config.activation), "activation"),
                                (cls._supports_quant_scheme(weight_key, activation_key), "quantization scheme"),
                                (cls._supports_parallel_config(moe_config.moe_parallel_config), "parallel config"),
                                (activation_format == cls.activation_format(), "activation format"),
                                (cls.supports_lora() or not moe_config.is_lora_enabled, "LoRA")):
            if not supported:
                return False, f"kernel does not support {what}"
        return True, None

    @staticmethod
    @abc.abstractmethod
    def activation_format():
        """The format of inputs and outputs."""

    @staticmethod
    @abc.abstractmethod
    def _supports_current_device():
        """Whether it runs on this device."""

    @staticmethod
    @abc.abstractmethod
    def _supports_no_act_and_mul():
        """Whether experts without a gate run."""

    @staticmethod
    @abc.abstractmethod
    def _supports_quant_scheme(weight_key, activation_key):
        """Whether these types run."""

    @staticmethod
    @abc.abstractmethod
    def _supports_activation(activation):
        """Whether this function runs."""

    @staticmethod
    @abc.abstractmethod
    def _supports_parallel_config(moe_parallel_config):
        """Whether it runs over these ranks."""

    @staticmethod
    def _supports_batch_invariance():
        return False

    @staticmethod
    def supports_lora():
        return False

    @property
    def expects_unquantized_inputs(self):
        return False

    @property
    def w1_scale(self):
        return self.quant_config.w1_scale

    @property
    def w2_scale(self):
        return self.quant_config.w2_scale

    @property
    def w1_bias(self):
        return self.quant_config.w1_bias

    @property
    def w2_bias(self):
        return self.quant_config.w2_bias


class FusedMoEExpertsModular(FusedMoEExperts):
    @abc.abstractmethod
    def workspace_shapes(self, M, N, K, topk, global_num_experts, local_num_experts, expert_tokens_meta, activation):
        """Shapes of workspace13, workspace2 and the output."""

    @abc.abstractmethod
    def finalize_weight_and_reduce_impl(self):
        """Who weights and sums the experts' rows."""

    @abc.abstractmethod
    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, expert_map,
              a1q_scale, a2_scale, workspace13, workspace2, expert_tokens_meta, apply_router_weight_on_input):
        """Writes output."""


class UnquantizedMoeBackend(enum.Enum):
    FLASHINFER_TRTLLM = "FlashInfer TRTLLM"
    TRITON = "TRITON"
    BATCHED_TRITON = "BATCHED_TRITON"


class TritonExperts:
    """The experts that the plug-in takes the place of, or leaves."""


def select_unquantized_moe_backend(moe_config):
    backend = UnquantizedMoeBackend.TRITON
    if moe_config.moe_backend == "flashinfer_trtllm":
        backend = UnquantizedMoeBackend.FLASHINFER_TRTLLM
    return backend, TritonExperts


class UnquantizedFusedMoEMethod(CustomOp):
    def __init__(self, moe):
        super().__init__()
        self.moe = moe
        self.unquantized_backend, self.experts_cls = select_unquantized_moe_backend(moe_config=self.moe)


UnquantizedFusedMoEMethod.name = "unquantized_fused_moe"  # by vLLM's decorator CustomOp.register

kFp8Static128BlockSym = "fp8, static blocks"  # QuantKeys of vLLM's, as the next
kFp8Dynamic128Sym = "fp8, dynamic groups of 128"
kFp8StaticChannelSym = "fp8, static rows"
kFp8DynamicTokenSym = "fp8, dynamic rows"


class Fp8MoeBackend(enum.Enum):
    TRITON = "TRITON"
    DEEPGEMM = "DEEPGEMM"


def backend_to_kernel_cls(backend):
    return [TritonExperts]


_LAYERS = "vllm.model_executor.layers.fused_moe"
MODULES = {
    "vllm.logger": ("init_logger",),
    "vllm.platforms": ("current_platform",),
    "vllm.platforms.interface": ("Platform",),
    "vllm.model_executor.custom_op": ("CustomOp", "op_registry_oot"),
    f"{_LAYERS}.activation": ("MoEActivation", "ApplyMoEActivationConfig"),
    f"{_LAYERS}.config": ("FusedMoEConfig", "FusedMoEParallelConfig", "FusedMoEQuantConfig"),
    f"{_LAYERS}.modular_kernel": ("FusedMoEActivationFormat", "FusedMoEExperts", "FusedMoEExpertsModular",
                                  "TopKWeightAndReduce"),
    f"{_LAYERS}.topk_weight_and_reduce": ("TopKWeightAndReduceNoOP",),
    f"{_LAYERS}.oracle.unquantized": ("UnquantizedMoeBackend", "select_unquantized_moe_backend"),
    f"{_LAYERS}.oracle.fp8": ("Fp8MoeBackend", "backend_to_kernel_cls"),
    "vllm.model_executor.layers.quantization.utils.quant_utils": (
        "kFp8Static128BlockSym", "kFp8Dynamic128Sym", "kFp8StaticChannelSym", "kFp8DynamicTokenSym"),
    f"{_LAYERS}.unquantized_fused_moe_method": ("UnquantizedFusedMoEMethod",),
}


def install():
    """Puts a package `vllm` of these names into sys.modules."""
    for path, names in MODULES.items():
        parts = path.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[:count])
            if name not in sys.modules:
                sys.modules[name] = types.ModuleType(name)
                sys.modules[name].__path__ = []
                sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
                if count > 1:
                    setattr(sys.modules[".".join(parts[:count - 1])], parts[count - 1], sys.modules[name])
        for name in names:
            setattr(sys.modules[path], name, globals()[name])
