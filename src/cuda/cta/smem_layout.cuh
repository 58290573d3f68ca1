// The one shared-memory layout of WGMMA operands used here: K-major rows of 128 bytes, 128-byte swizzle.
//
// A tile of R rows x 64 16-bit elements is R rows of 128 bytes; the 16-byte chunk c of row r lies at chunk c ^ (r % 8),
// which is what TMA writes with CU_TENSOR_MAP_SWIZZLE_128B and what the descriptor below tells WGMMA. Tiles start at
// multiples of 1024 bytes.
#pragma once

#include <cstdint>

namespace tessera::cta {

inline constexpr int kSwizzleRowBytes = 128;
inline constexpr int kSwizzleAtomBytes = 8 * kSwizzleRowBytes;
inline constexpr int kChunkBytes = 16;

__host__ __device__ constexpr uint32_t swizzled_offset(uint32_t row, uint32_t chunk) {
  return row * kSwizzleRowBytes + ((chunk ^ (row % 8)) * kChunkBytes);
}

// Bits 0-13 address / 16, 32-45 distance of 8-row atoms / 16, 62-63 swizzle mode 1 (128 bytes). The high word is the
// same for all operands.
__device__ inline uint32_t descriptor_low(uint32_t smem_address) { return (smem_address & 0x3FFFF) >> 4 | 1u << 16; }
__device__ inline uint64_t wgmma_descriptor_of(uint32_t low) {
  constexpr uint64_t kAtomStride = kSwizzleAtomBytes >> 4;
  return low | (kAtomStride << 32) | (uint64_t{1} << 62);
}
__device__ inline uint64_t wgmma_descriptor(uint32_t smem_address) {
  return wgmma_descriptor_of(descriptor_low(smem_address));
}

// One WGMMA consumes 32 bytes of K, 16 or 32 elements: that much further inside the swizzled row, 2 in
// descriptor units.
inline constexpr uint64_t kDescriptorKStep = 2;

__device__ inline uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace tessera::cta
