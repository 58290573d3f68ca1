"""SGLang's and vLLM's Triton fused MoE, as these engines run it: their own Python files, unmodified, from the pack.

Theirs and ours: theirs.py. Each takes the configuration that it chooses itself: of its tuned file for this GPU and shape, at
the nearest number of tokens; of its default where it has no such file. A call's note names the file, or that there is none.
"""
import functools
import importlib
import json
import pathlib

import torch
import triton

import engine_kernels
import engine_modules
import fp8
import peer_site
import theirs
from adapters import Call, Library, Skip

FP8 = {"use_fp8_w8a8": True, "block_shape": [fp8.BLOCK, fp8.BLOCK]}


@functools.cache
def sglang_files():
    """(module of fused_experts_impl, module that chooses configurations)."""
    peer_site.need_engine("sglang")
    engine_modules.sglang(peer_site.ENGINES, engine_kernels)
    package = "sglang.srt.layers.moe.moe_runner.triton_utils."
    compile_function = torch.compile
    torch.compile = lambda function, *_, **__: function  # it decorates functions that no call here reaches: saves the compiler
    try:
        module = importlib.import_module(package + "fused_moe")
    finally:
        torch.compile = compile_function
    chooser = importlib.import_module(package + "fused_moe_triton_config")
    for logger in (module.logger, chooser.logger):
        if not hasattr(logger, "warning_once"):  # the engine adds this method to all loggers when it starts
            logger.__class__.warning_once = lambda self, text, *arguments: self.debug(text, *arguments)
    return module, chooser


@functools.cache
def vllm_files():
    peer_site.need_engine("vllm")
    engine_modules.vllm(peer_site.ENGINES, engine_kernels, triton, torch.float8_e4m3fn)
    return importlib.import_module("vllm.model_executor.layers.fused_moe.fused_moe")


class Engine(Library):
    """`name`: the engine's; layers "NAME triton" and "NAME triton fp8"."""

    name = ""
    distributions = ("torch", "triton")

    def versions(self):
        return {self.name: peer_site.engine_version(self.name), **super().versions()}

    def load(self, gate_up, down, top_k):
        super().load(gate_up, down, top_k)
        self.quantised = None

    def unload(self):
        self.quantised = None
        super().unload()

    def layers(self):
        layer = f"{self.name} triton"
        return {layer: self.plain, f"{layer} fp8": self.fp8}

    def plain(self, *inputs):
        return self.call(f"{self.name} triton", self.gate_up, self.down, {}, *inputs)

    def fp8(self, *inputs):
        layer, (_, hidden, intermediate) = f"{self.name} triton fp8", self.down.shape
        reason = theirs.does_not_take(layer, hidden, intermediate)
        if reason:
            raise Skip(reason)
        if self.quantised is None:
            self.quantised = [fp8.quantised_weights(torch, weights) for weights in (self.gate_up, self.down)]
        (first, first_scales), (second, second_scales) = self.quantised
        return self.call(layer, first, second, {**FP8, "w1_scale": first_scales, "w2_scale": second_scales}, *inputs)

    def call(self, layer, first, second, options, x, ids, weights):
        ids32 = ids.to(torch.int32)

        def run():
            return self.experts(x, first, second, weights, ids32, **options)
        run()  # what the note says of the kernels between the GEMMs is known after a run
        dtype, block = ("fp8_w8a8", FP8["block_shape"]) if options else (None, None)
        return Call(run, note=theirs.note(layer, between_gemms=engine_kernels.text(),
                                          **self.chosen(first.shape, second.shape, ids.shape, dtype, block)))

    def experts(self, x, first, second, weights, ids32, **options):
        raise NotImplementedError

    def chosen(self, first, second, ids, dtype, block):
        """{"tuned_file", "configuration"} for weights of shapes [E, 2I, H], [E, H, I] and ids [T, k]."""
        raise NotImplementedError


def configuration_text(chosen):
    return json.dumps(chosen).replace("BLOCK_SIZE_", "").replace('"', "")


class Sglang(Engine):
    name = "sglang"

    def __init__(self):
        self.module, self.chooser = sglang_files()

    def experts(self, x, first, second, weights, ids32, **options):
        return self.module.fused_experts_impl(x, first, second, weights, ids32, filter_expert=False, **options)

    def chosen(self, first, second, ids, dtype, block):
        up, (down, _) = self.chooser.try_get_optimal_moe_config(first, second, ids[1], dtype, ids[0], block_shape=block,
                                                                return_down_config=True)
        name = self.chooser.get_config_file_name(second[0], second[2], dtype, block)
        found = peer_site.tuned_file(pathlib.Path(self.chooser.__file__).parent / "configs", name, triton.__version__)
        return {"tuned_file": peer_site.tuning_text(found, name),
                "configuration": configuration_text({"both": up} if down is None else {"up": up, "down": down})}


class Vllm(Engine):
    name = "vllm"

    def __init__(self):
        self.module = vllm_files()

    def experts(self, x, first, second, weights, ids32, **options):
        return self.module.fused_experts_impl(x, first, second, weights, ids32, **options)

    def chosen(self, first, second, ids, dtype, block):
        config = self.module.try_get_optimal_moe_config(first, second, ids[1], dtype, ids[0], block_shape=block)
        name = self.module.get_config_file_name(second[0], second[2], dtype, block)
        found = peer_site.tuned_file(pathlib.Path(self.module.__file__).parent / "configs", name)
        return {"tuned_file": peer_site.tuning_text(found, name), "configuration": configuration_text({"both": config})}
