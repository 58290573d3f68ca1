// What GPUs allow a classifier, as workers of measured blocks: copies from pinned memory, memory reads, dense products.
// Each worker owns what it needs on its device.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "classify_blocks.h"
#include "cuda_device.h"
#include "tessera/core/dtype.h"

namespace tessera::cli {

/// Bytes from `pinned` to all devices at once, two streams a device. `pinned` must outlive the workers.
std::vector<Worker> copy_limit(const std::vector<int>& devices, const PinnedMemory& pinned);

/// Bytes read and written by copies within the memory of each device.
std::vector<Worker> memory_limit(const std::vector<int>& devices);

/// FLOP of large square products of 16-bit random normal numbers by cuBLASLt; no worker, and the reason in
/// `description`, where the library is missing.
std::vector<Worker> dense_limit(const std::vector<int>& devices, DType dtype, std::string& description);

}  // namespace tessera::cli
