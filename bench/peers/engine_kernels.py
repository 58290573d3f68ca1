"""What lies between the engines' Triton GEMMs: aligning the slots, SiLU * up, FP8 quantisation by groups of 128, the sum over k.

SGLang's own CUDA kernels where the pack has them (sgl_align.so, sgl_act.so, sgl_quant.so, compiled ahead), called as SGLang
calls them. Otherwise, where they do not load or with PEER_GLUE=own, the Triton kernels below, which are ours; `text()` says
which. All of it can be captured in a CUDA graph.
"""
import os

import torch
import triton
import triton.language as tl

import peer_site

GPU = torch.cuda.is_available()
SM90 = GPU and torch.cuda.get_device_capability() >= (9, 0)
DEVICE_NAME = torch.cuda.get_device_name() if GPU else "none"  # whose tuned files the engines take
_MODULES = {}
_PROBLEM = "" if os.environ.get("PEER_GLUE", "sglang") != "own" else "PEER_GLUE=own"


def text():
    return f"our Triton kernels: {_PROBLEM}" if _PROBLEM else "SGLang's CUDA kernels"


def sglang_module(name):
    """A module of SGLang's CUDA kernels, or None."""
    global _PROBLEM
    if name not in _MODULES and not _PROBLEM:
        try:
            import tvm_ffi
            _MODULES[name] = tvm_ffi.load_module(str(peer_site.ENGINE_KERNELS / f"sgl_{name}.so"))
        except Exception as error:  # any reason is one to go on without them, and is shown
            _PROBLEM = f"{type(error).__name__}: {error}"[:200]
    return None if _PROBLEM else _MODULES[name]


def by_sglang(name, function, *arguments):
    """Calls SGLang's CUDA kernel; False, for all of them and from now on, where that does not work."""
    global _PROBLEM
    module = sglang_module(name)
    if module is None:
        return False
    try:
        getattr(module, function)(*arguments)
        return True
    except Exception as error:
        if torch.cuda.is_current_stream_capturing():  # too late to choose: the kernels before are in the graph
            raise
        _PROBLEM = f"{function}: {type(error).__name__}: {error}"[:200]
        return False


@triton.jit
def _align_count_kernel(ids, counts, sorted_ids, numel, capacity, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(sorted_ids + offset, tl.zeros((BLOCK,), tl.int32) + numel, mask=offset < capacity)
    valid = offset < numel
    expert = tl.load(ids + offset, mask=valid, other=0)
    tl.atomic_add(counts + expert, 1, mask=valid)


@triton.jit
def _align_starts_kernel(counts, cursors, expert_ids, total, block_size, num_experts, EXPERTS: tl.constexpr,
                         STEP: tl.constexpr):
    expert = tl.arange(0, EXPERTS)
    count = tl.load(counts + expert, mask=expert < num_experts, other=0)
    padded = (count + block_size - 1) // block_size * block_size
    starts = tl.cumsum(padded, 0) - padded
    tl.store(cursors + expert, starts, mask=expert < num_experts)
    tl.store(total, tl.sum(padded, 0))
    tiles, most = padded // block_size, tl.max(padded, 0) // block_size
    for begin in range(0, most, STEP):
        tile = begin + tl.arange(0, STEP)
        place = starts[:, None] // block_size + tile[None, :]
        tl.store(expert_ids + place, tl.broadcast_to(expert[:, None], (EXPERTS, STEP)),
                 mask=(tile[None, :] < tiles[:, None]) & (expert[:, None] < num_experts))


@triton.jit
def _align_place_kernel(ids, cursors, sorted_ids, numel, BLOCK: tl.constexpr):
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = slot < numel
    expert = tl.load(ids + slot, mask=valid, other=0)
    place = tl.atomic_add(cursors + expert, 1, mask=valid)
    tl.store(sorted_ids + place, slot, mask=valid)


@triton.jit
def _silu_and_mul_kernel(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + row * 2 * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=column < WIDTH)


@triton.jit
def _group_quant_kernel(x, q, scales, WIDTH: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """fp8.py has the rule."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column = group[:, None] * 128 + tl.arange(0, 128)[None, :]
    valid = (group[:, None] < GROUPS) & (column < WIDTH)
    values = tl.load(x + row * WIDTH + column, mask=valid, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), 1), 1e-10) / 448.0
    tl.store(q + row * WIDTH + column, (values / scale[:, None]).to(q.dtype.element_ty), mask=valid)
    tl.store(scales + row * GROUPS + group, scale, mask=group < GROUPS)


@triton.jit
def _sum_kernel(rows, out, WIDTH: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        total += tl.load(rows + (token * TOP_K + k) * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + column, total.to(out.dtype.element_ty), mask=column < WIDTH)


def _own_align(topk_ids, num_experts, block_size, sorted_ids, expert_ids, total):
    counts = torch.zeros(num_experts, dtype=torch.int32, device=topk_ids.device)
    cursors = torch.empty_like(counts)
    numel, capacity = topk_ids.numel(), sorted_ids.numel()
    _align_count_kernel[(triton.cdiv(max(numel, capacity), 1024),)](topk_ids, counts, sorted_ids, numel, capacity, BLOCK=1024)
    experts = triton.next_power_of_2(num_experts)
    _align_starts_kernel[(1,)](counts, cursors, expert_ids, total, block_size, num_experts, EXPERTS=experts,
                               STEP=max(4096 // experts, 1))
    _align_place_kernel[(triton.cdiv(numel, 256),)](topk_ids, cursors, sorted_ids, numel, BLOCK=256)


# What the engines call, by the engines' names and with their arguments.

def moe_align_block_size(topk_ids, num_buckets, block_size, sorted_ids, expert_ids, total, cumsum, pad_sorted_ids=False,
                         ignore_invalid_expert=False):
    """SGLang's: `num_buckets` is the number of experts + 1. ids int32 [T, k]; sorted_ids: slots by expert, each expert's share
    padded to a multiple of block_size with the number of slots; expert_ids: of each block; total: rows in use."""
    del ignore_invalid_expert  # every id is an expert here
    if not by_sglang("align", "moe_align_block_size", topk_ids, num_buckets, block_size, sorted_ids, expert_ids, total, cumsum,
                     pad_sorted_ids):
        _own_align(topk_ids, num_buckets - 1, block_size, sorted_ids, expert_ids, total)


def vllm_moe_align_block_size(topk_ids, num_experts, block_size, sorted_ids, expert_ids, total, expert_map, scatter_idx):
    if expert_map is not None or scatter_idx is not None:
        raise ValueError("expert map or scatter index: expected none, all experts are on this GPU")
    cumsum = torch.empty(num_experts + 2, dtype=torch.int32, device=topk_ids.device)
    moe_align_block_size(topk_ids, num_experts + 1, block_size, sorted_ids, expert_ids, total, cumsum, True)


def silu_and_mul(gate_up, out, expert_ids=None, expert_step=1, sorted_token_ids=None, num_tokens_post_padded=None,
                 num_valid_tokens=0):
    """out [R, I] = silu(gate) * up of gate_up [R, 2 I], gate first."""
    if sorted_token_ids is not None:
        done = by_sglang("act", "run_activation_sorted_filtered", gate_up, out, expert_ids, expert_step, sorted_token_ids,
                         num_tokens_post_padded, num_valid_tokens, "silu")
    else:
        done = by_sglang("act", "run_activation", gate_up, out, "silu")
    if not done:
        width = out.shape[-1]
        block = min(triton.next_power_of_2(width), 1024)
        _silu_and_mul_kernel[(out.shape[0], triton.cdiv(width, block))](gate_up, out, width, BLOCK=block)


def per_token_group_quant(x, group_size=128, sorted_token_ids=None, num_tokens_post_padded=None, num_valid_tokens=0):
    """(e4m3 rows, fp32 scales [rows, groups]) of x [R, W] bf16."""
    rows, width = x.shape
    if group_size != 128 or width % 128 or not x.is_contiguous():
        raise ValueError(f"rows of {width}, groups of {group_size}: expected contiguous rows of a multiple of 128, groups of 128")
    q = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((rows, width // 128), dtype=torch.float32, device=x.device)
    if sorted_token_ids is not None:
        done = by_sglang("quant", "per_token_group_quant_sorted", x, q, scales, sorted_token_ids, num_tokens_post_padded,
                         num_valid_tokens)
    else:
        done = by_sglang("quant", "per_token_group_quant", x, q, scales)
    if not done:
        block = min(triton.next_power_of_2(width // 128), 16)
        _group_quant_kernel[(rows, triton.cdiv(width // 128, block))](x, q, scales, width, width // 128, BLOCK=block)
    return q, scales


def per_token_group_quant_fp8(x, group_size, **_):
    return per_token_group_quant(x, group_size)


def moe_sum_reduce(rows, out, factor):
    """SGLang takes a CUDA kernel of its binary wheel here for more than 32 tokens; this is its Triton kernel."""
    from sglang.kernels.ops.moe.fused_moe_triton_kernels import moe_sum_reduce_triton
    moe_sum_reduce_triton(rows, out, factor)


def moe_sum(rows, out):
    """vLLM takes a CUDA kernel of its binary wheel here; this kernel is ours. out [T, H] = the sum of rows [T, k, H]."""
    width = out.shape[1]
    block = min(triton.next_power_of_2(width), 2048)
    _sum_kernel[(out.shape[0], triton.cdiv(width, block))](rows, out, width, TOP_K=rows.shape[1], BLOCK=block)
