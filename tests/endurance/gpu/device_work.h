// Kernels that disturb, compare and break.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace tessera::testing {

/// Holds `num_ctas` CTAs of the device for about so long.
void spin(int num_ctas, int64_t nanoseconds, cudaStream_t stream);
/// Adds to [1] the number of bytes that differ.
void count_differing(const void* one, const void* other, size_t bytes, unsigned long long* differing,
                     cudaStream_t stream);
/// Writes to an address that belongs to nobody.
void write_to_nowhere(cudaStream_t stream);

}  // namespace tessera::testing
