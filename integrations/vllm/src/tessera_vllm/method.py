"""vLLM's method for unquantized experts, with one more choice of experts."""
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEActivationFormat
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from tessera_vllm.experts import TesseraExperts

logger = init_logger(__name__)


class TesseraFusedMoEMethod(UnquantizedFusedMoEMethod):
    """Weights stay as the Triton back end keeps them, [E, 2I, H] and [E, H, I]: that is what the library reads."""

    def __init__(self, moe):
        super().__init__(moe)
        if self.unquantized_backend is not UnquantizedMoeBackend.TRITON or moe.moe_backend != "auto":
            return  # another layout of the weights, or a choice of the user's
        supported, reason = TesseraExperts.is_supported_config(TesseraExperts, moe, None, None,
                                                               FusedMoEActivationFormat.Standard)
        if supported:
            self.experts_cls = TesseraExperts
        else:
            logger.info("tessera_vllm: %s stays: %s", self.experts_cls.__name__, reason)


def enroll():
    """From now on vLLM makes this method where it asks for UnquantizedFusedMoEMethod."""
    UnquantizedFusedMoEMethod.register_oot(TesseraFusedMoEMethod)
    TesseraFusedMoEMethod.name = UnquantizedFusedMoEMethod.name  # that of vLLM's switches of custom operators
