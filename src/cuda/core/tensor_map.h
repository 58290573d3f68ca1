// Tensor maps: the descriptors with which TMA reads boxes of a row-major tensor of elements of one or two bytes.
//
// Built on the host, immutable, passed to kernels as __grid_constant__ parameters.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <span>

namespace tessera::cuda {

// What L2 reads from memory for a box: the 256 bytes around each missing piece, or only what is asked for.
enum class L2Fetch : uint8_t { bytes_256, exact };

// `extents` and `box` innermost first, rank 2 to 5. `strides` are the distances in elements of all dimensions but the
// first; empty: packed.
// 128-byte swizzle: box[0] must be 128 bytes of elements. Elements outside the tensor read as zero. Throws Error naming
// `argument` for a pointer or stride that is not a multiple of 16 bytes.
CUtensorMap make_tensor_map(const char* argument, int32_t element_bytes, const void* data,
                            std::span<const uint64_t> extents, std::span<const uint32_t> box,
                            std::span<const uint64_t> strides = {}, L2Fetch fetch = L2Fetch::bytes_256);

}  // namespace tessera::cuda
