"""Tessera's mixture-of-experts layer in vLLM: installing the package is all there is to do.

vLLM calls ``register`` in each of its processes, through the entry point group ``vllm.general_plugins``. From then on
an unquantized layer, or one of FP8 weights, for which vLLM would take its Triton kernels takes Tessera's where they can
compute it, and Triton's where not. ``VLLM_PLUGINS`` names the plug-ins to load, so that ``VLLM_PLUGINS=""`` leaves this one out.
"""

METHOD = "UnquantizedFusedMoEMethod"


def register() -> None:
    """Takes the place of vLLM's method for unquantized experts. Calling it again does nothing.

    RuntimeError if another plug-in took that place before."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return
    from vllm.model_executor.custom_op import op_registry_oot

    if METHOD in op_registry_oot:
        taken = op_registry_oot[METHOD]
        if taken.__module__.split(".")[0] != __name__:
            raise RuntimeError(f"tessera_vllm.register: got {METHOD} taken by {taken.__module__}.{taken.__name__}, expected "
                               "no other plug-in for unquantized experts; VLLM_PLUGINS chooses between them")
        return
    from tessera_vllm import fp8, method

    method.enroll()
    fp8.enroll()
