// Asynchronous copies into shared memory: TMA boxes and 16-byte cp.async.
#pragma once

#include <cuda.h>
#include <cuda/ptx>

#include <cstdint>

namespace tessera::ptx {

// Fetches a tensor map into the descriptor cache, so that the first load does not wait for it.
__device__ inline void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// One box of a 2-D tensor; completes its bytes on `barrier`. Coordinates are innermost first.
__device__ inline void tma_load_2d(void* smem, const CUtensorMap* map, int32_t c0, int32_t c1, uint64_t* barrier) {
  const int32_t coordinates[2] = {c0, c1};
  ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, smem, map, coordinates,
                                    barrier);
}

// One box of a 4-D tensor; completes its bytes on `barrier`.
__device__ inline void tma_load_4d(void* smem, const CUtensorMap* map, const int32_t (&coordinates)[4],
                                   uint64_t* barrier) {
  ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, smem, map, coordinates,
                                    barrier);
}

// One box of a 5-D tensor; completes its bytes on `barrier`.
__device__ inline void tma_load_5d(void* smem, const CUtensorMap* map, const int32_t (&coordinates)[5],
                                   uint64_t* barrier) {
  ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, smem, map, coordinates,
                                    barrier);
}

// A box of a 4-D tensor into every CTA of `cta_mask`, at the same shared-memory offset; completes on each CTA's own
// barrier.
__device__ inline void tma_load_4d_multicast(void* smem, const CUtensorMap* map, const int32_t (&coordinates)[4],
                                             uint64_t* barrier, uint16_t cta_mask) {
  ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, smem, map, coordinates,
                                    barrier, cta_mask);
}

// One box from shared memory to a 2-D tensor; elements outside the tensor are not written. Part of this thread's bulk
// group.
__device__ inline void tma_store_2d(const CUtensorMap* map, int32_t c0, int32_t c1, const void* smem) {
  const int32_t coordinates[2] = {c0, c1};
  ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_global, ::cuda::ptx::space_shared, map, coordinates, smem);
}

// Closes this thread's bulk group; waits until all its groups have read their shared memory.
__device__ inline void bulk_commit() { ::cuda::ptx::cp_async_bulk_commit_group(); }
__device__ inline void bulk_wait_read() { ::cuda::ptx::cp_async_bulk_wait_group_read(::cuda::ptx::n32_t<0>{}); }

// Copies 16 bytes past L1. Asks L2 to fetch the 256 bytes around them: the next K step of a gathered row.
__device__ inline void cp_async_16(uint32_t smem_address, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(smem_address), "l"(global) : "memory");
}

// The same if `exists`, else writes zeros and reads nothing (`global` must still be an address of global memory).
__device__ inline void cp_async_16_or_zero(uint32_t smem_address, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(smem_address), "l"(global),
               "r"(exists ? 16 : 0)
               : "memory");
}

// Copies `bytes` in one piece, a multiple of 16 from and to multiples of 16, which `barrier` counts.
__device__ inline void bulk_load(void* smem, const void* global, uint32_t bytes, uint64_t* barrier) {
  ::cuda::ptx::cp_async_bulk(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, smem, global, bytes, barrier);
}

// Copies 4 bytes.
__device__ inline void cp_async_4(uint32_t smem_address, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem_address), "l"(global) : "memory");
}

// Floats of shared memory by address; not moved across other instructions of this kind, barriers among them.
__device__ inline float load_shared_f32(uint32_t smem_address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(smem_address) : "memory");
  return value;
}
__device__ inline float2 load_shared_f32x2(uint32_t smem_address) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(smem_address) : "memory");
  return value;
}

// Orders this thread's view of generic-proxy writes to shared memory before its asynchronous-proxy reads (WGMMA, TMA).
__device__ inline void fence_proxy_async() { ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared); }

}  // namespace tessera::ptx
