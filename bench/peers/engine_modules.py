"""What the files of SGLang and vLLM import beside each other: the engines themselves are not there.

Of an engine the pack holds the few files that make up its Triton fused MoE, unmodified, and its tuned files. The rest of what
these import is put into sys.modules here: an engine in its plain state (one GPU, no deterministic mode, nothing overridden),
and the kernels of engine_kernels.py where the engine would call its binary extension. Needs neither torch nor triton itself.
"""
import contextlib
import logging
import sys
import types


def off(*_, **__):
    return False


def nothing(*_, **__):
    return None


def module(name, folder, **members):
    """Puts a module into sys.modules, with its parents; where `folder`/name is a folder, its files can be imported too."""
    parent, _, short = name.rpartition(".")
    if parent and parent not in sys.modules:
        module(parent, folder)
    made = types.ModuleType(name, "Stands for an engine's own module: what its fused MoE imports.")
    made.__path__ = [str(folder / name.replace(".", "/"))]
    made.__dict__.update(members)
    sys.modules[name] = made
    if parent:
        setattr(sys.modules[parent], short, made)
    return made


class Logger(logging.LoggerAdapter):
    """vLLM's loggers say some things once; here all goes to the level below."""

    def info_once(self, text, *arguments, **_):
        self.debug(text, *arguments)

    warning_once = info_once


class Environment:
    """SGLang's switches, all off."""

    def __getattr__(self, name):
        return types.SimpleNamespace(get=off)


def wrapped(function=None, **_):
    """In place of a decorator with or without arguments: the function as it is."""
    return function if function is not None else lambda given: given


def sglang(folder, kernels):
    """Makes `import sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe` work. folder: holds sglang/; kernels: the module
    engine_kernels, or what has its names."""
    execution = types.SimpleNamespace(deterministic=types.SimpleNamespace(enable_deterministic_inference=False),
                                      moe=types.SimpleNamespace(enable_fused_moe_sum_all_reduce=False))
    quantised = kernels.per_token_group_quant_fp8
    here = {
        "sgl_kernel": {"moe_sum_reduce": kernels.moe_sum_reduce},
        "sglang.kernels.jit.utils": {"is_arch_support_pdl": lambda: kernels.SM90},
        "sglang.kernels.ops.activation.activation": {
            "silu_and_mul": kernels.silu_and_mul, "gelu_and_mul": None, "gelu_tanh_and_mul": None,
            "silu_and_mul_with_activation_rounding": None},
        "sglang.kernels.ops.moe": {"moe_align_block_size": kernels.moe_align_block_size},
        "sglang.kernels.ops.quantization.fp8_kernel": {
            "sglang_per_token_group_quant_fp8": quantised, "per_token_group_quant_fp8": None, "scaled_fp8_quant": None},
        "sglang.kernels.ops.quantization.int8_kernel": {
            "per_token_group_quant_int8": None, "per_token_quant_int8": None, "sglang_per_token_group_quant_int8": None},
        "sglang.kernels.ops.quantization.per_token_group_quant": {"per_token_group_quant": kernels.per_token_group_quant},
        "sglang.srt.batch_invariant_ops": {"is_batch_invariant_mode_enabled": off},
        "sglang.srt.distributed.device_communicators.pynccl_allocator": {
            "use_symmetric_memory": lambda *_, **__: contextlib.nullcontext()},
        "sglang.srt.environ": {"envs": Environment()},
        "sglang.srt.layers.dp_attention": {"is_allocation_symmetric": off},
        "sglang.srt.layers.moe.moe_runner": {"MoeRunnerConfig": type("MoeRunnerConfig", (), {})},
        "sglang.srt.layers.moe.utils": {"get_moe_padding_size": lambda *_: 0, "get_moe_runner_backend": nothing},
        "sglang.srt.runtime_context": {"get_exec": lambda: execution,
                                       "get_parallel": lambda: types.SimpleNamespace(tp_group=None)},
        "sglang.srt.utils": {
            "is_cuda": lambda: True, "is_sm90_supported": lambda: kernels.SM90, "get_device_name": lambda: kernels.DEVICE_NAME,
            "get_bool_env_var": off, **dict.fromkeys(("cpu_has_amx_support", "is_cpu", "is_hip", "is_musa", "is_xpu"), off)},
        "sglang.srt.utils.custom_op": {"register_custom_op": wrapped}}
    for name, members in here.items():
        module(name, folder, **members)


def vllm(folder, kernels, triton, float8):
    """As sglang, for `import vllm.model_executor.layers.fused_moe.fused_moe`. triton: the module; float8: torch's e4m3."""
    moe = "vllm.model_executor.layers.fused_moe"

    def quantised_input(A, A_scale, quant_dtype, per_act_token_quant, block_shape=None, **_):  # the engine calls it by these names
        if quant_dtype is None:
            return A, None
        if A_scale is not None or per_act_token_quant or list(block_shape) != [128, 128]:
            raise ValueError(f"block shape {block_shape}, given scale {A_scale is not None}: expected [128, 128] and none")
        return kernels.per_token_group_quant_fp8(A, 128)

    def activation(name, output, given):
        if name != "silu":
            raise ValueError(f"activation {name}: expected silu")
        kernels.silu_and_mul(given, output)
    platform = types.SimpleNamespace(is_rocm=off, is_xpu=off, is_cuda=lambda: True, fp8_dtype=lambda: float8)
    here = {
        "vllm._custom_ops": {"moe_sum": kernels.moe_sum, "moe_align_block_size": kernels.vllm_moe_align_block_size},
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False, "VLLM_TUNED_CONFIG_FOLDER": None, "VLLM_TRITON_USE_TD": False},
        "vllm.logger": {"init_logger": lambda name: Logger(logging.getLogger(name), {})},
        "vllm.platforms": {"current_platform": platform},
        "vllm.triton_utils": {"triton": triton, "tl": triton.language},
        "vllm.triton_utils.allocation": {"set_triton_allocator": nothing},
        "vllm.utils.math_utils": {"next_power_of_2": triton.next_power_of_2,
                                  "round_up": lambda value, multiple: -(-value // multiple) * multiple},
        "vllm.utils.platform_utils": {"get_device_name_as_file_name": lambda: kernels.DEVICE_NAME.replace(" ", "_")},
        "vllm.utils.torch_utils": {"direct_register_custom_op": nothing},
        moe: {"get_config": nothing},  # no configuration in place of the tuned one
        moe + ".activation": {"MoEActivation": types.SimpleNamespace(SILU="silu", from_str=lambda name: name),
                              "apply_moe_activation": activation},
        moe + ".config": {"FUSED_MOE_UNQUANTIZED_CONFIG": None, "FusedMoEQuantConfig": type("FusedMoEQuantConfig", (), {}),
                          "_get_config_dtype_str": lambda dtype, use_fp8_w8a8=False, **_: "fp8_w8a8" if use_fp8_w8a8 else None},
        moe + ".modular_kernel": {"FusedMoEExpertsModular": types.SimpleNamespace(
            adjust_N_for_activation=lambda width, _: width // 2)},
        moe + ".utils": {
            "enable_swap_ab": lambda BLOCK_SIZE_M, BLOCK_SIZE_N: kernels.SM90 and BLOCK_SIZE_M < 64 <= BLOCK_SIZE_N,
            "moe_kernel_quantize_input": quantised_input, "resolve_moe_use_td": off, "warn_if_moe_use_td_ineffective": nothing}}
    for name, members in here.items():
        module(name, folder, **members)
