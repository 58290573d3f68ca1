// 256 x 256 products by one WGMMA shape: what the probe compares with the host model.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "moe/judge/tensor_core.h"

namespace tessera::testing {

inline constexpr int kProbeRows = 256;      // of either operand
inline constexpr int kProbeRowBytes = 128;  // rows are multiples of it: one swizzled row of shared memory
inline constexpr int kProbeColumns[] = {
#define TESSERA_WGMMA_SHAPE(N, ...) N,
#include "cuda/ptx/wgmma_shapes.def"
#undef TESSERA_WGMMA_SHAPE
};

/// Where the instruction takes its first operand, of 64 rows, from.
enum class FirstOperand : uint8_t { shared_memory, registers };

struct ProbeShape {
  int columns;   // N of the instruction
  bool swapped;  // the second matrix's rows are the instruction's first operand
  FirstOperand first;
};

/// Two matrices [256][row_bytes] in device memory.
class DeviceProducts {
 public:
  DeviceProducts(moe::TensorCoreType type, const std::vector<uint8_t>& a, const std::vector<uint8_t>& b);
  ~DeviceProducts();
  DeviceProducts(const DeviceProducts&) = delete;

  /// out[256 i + j] = row i of a times row j of b, `num_steps` instructions (32 bytes of K each) one after the other,
  /// from `start` [256][256] or, if that is empty, from nothing (the first one overwrites).
  std::vector<float> run(ProbeShape shape, int num_steps, const std::vector<float>& start);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera::testing
