#include "cuda/core/tensor_map.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>

#include "cuda/core/cuda_check.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cuda {
namespace {

constexpr uint64_t kAlignment = 16;
constexpr size_t kMaxRank = 5;

using EncodeFunction = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                    const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                    CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The encoder lives in the driver; asking the runtime for it avoids linking libcuda.
EncodeFunction encoder() {
  static const EncodeFunction function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    TESSERA_CUDA_CHECK(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess)
      throw Error("CUDA driver", "no cuTensorMapEncodeTiled", "a driver for CUDA 12 or later");
    return reinterpret_cast<EncodeFunction>(entry);
  }();
  return function;
}

// All that a map depends on. Unused dimensions are 0.
struct Key {
  const void* data = nullptr;
  int32_t element_bytes = 0;
  uint32_t rank = 0;
  std::array<uint64_t, kMaxRank> extents{};
  std::array<uint64_t, kMaxRank - 1> stride_bytes{};
  std::array<uint32_t, kMaxRank> box{};
  L2Fetch fetch = L2Fetch::bytes_256;

  bool operator==(const Key&) const = default;
};

CUtensorMap encode(const char* argument, const Key& key) {
  const std::array<uint32_t, kMaxRank> unit_steps = {1, 1, 1, 1, 1};
  CUtensorMap map{};
  // Boxes are copied as they are and filled up with zeros: what the elements mean does not matter.
  const auto type = key.element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  const CUresult result =
      encoder()(&map, type, key.rank, const_cast<void*>(key.data), key.extents.data(), key.stride_bytes.data(),
                key.box.data(), unit_steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                key.fetch == L2Fetch::bytes_256 ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_NONE,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error(argument, str_cat("tensor map refused (CUresult ", static_cast<int>(result), "), row of ",
                                  key.extents[0], " elements, ", key.extents[1], " rows"));
  }
  return map;
}

// A map is a function of its key alone, and a layer asks for the same few at every launch: each thread keeps the last
// ones it made, by a hash of the address.
const CUtensorMap& find_or_encode(const char* argument, const Key& key) {
  struct Entry {
    Key key{};
    CUtensorMap map{};
  };
  constexpr size_t kEntries = 64;
  thread_local std::array<Entry, kEntries> entries{};
  const uint64_t boxes = key.box[1] + (uint64_t{key.box[3]} << 8);  // maps of one tensor differ in them
  const uint64_t mixed =
      (reinterpret_cast<uintptr_t>(key.data) / kAlignment + key.extents[0] + (boxes << 40)) * 0x9E3779B97F4A7C15u;
  Entry& entry = entries[mixed >> 58];
  static_assert(kEntries == 1u << (64 - 58));
  if (entry.key != key) {
    entry.map = encode(argument, key);
    entry.key = key;
  }
  return entry.map;
}

}  // namespace

CUtensorMap make_tensor_map(const char* argument, int32_t element_bytes, const void* data,
                            std::span<const uint64_t> extents, std::span<const uint32_t> box,
                            std::span<const uint64_t> strides, L2Fetch fetch) {
  TESSERA_CHECK(extents.size() >= 2 && extents.size() <= kMaxRank && extents.size() == box.size(), extents.size(),
                box.size());
  TESSERA_CHECK(element_bytes == 1 || element_bytes == 2, argument, element_bytes);
  if (reinterpret_cast<uintptr_t>(data) % kAlignment != 0)
    throw Error(argument, "a pointer not aligned to 16 bytes", "16-byte alignment");
  Key key{data, element_bytes, static_cast<uint32_t>(extents.size())};
  key.fetch = fetch;
  std::copy(extents.begin(), extents.end(), key.extents.begin());
  std::copy(box.begin(), box.end(), key.box.begin());
  const auto bytes = static_cast<uint64_t>(element_bytes);
  uint64_t packed = bytes;
  for (size_t i = 0; i + 1 < extents.size(); ++i) {
    packed *= extents[i];
    key.stride_bytes[i] = strides.empty() ? packed : strides[i] * bytes;
    if (key.stride_bytes[i] % kAlignment != 0) {
      throw Error(argument, str_cat("rows ", key.stride_bytes[i] / bytes, " elements apart"),
                  str_cat("a multiple of ", kAlignment / bytes, " elements"));
    }
  }
  return find_or_encode(argument, key);
}

}  // namespace tessera::cuda
