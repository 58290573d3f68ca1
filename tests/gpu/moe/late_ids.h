// A kernel that lets the next one begin at once and writes its own results late: what a layer finds if it does not
// wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tessera::testing {

/// Copies [count] words, after so many nanoseconds, having released the kernel that follows on the stream.
void copy_late(const void* from, void* to, int32_t count, int64_t nanoseconds, cudaStream_t stream);

}  // namespace tessera::testing
