#include "tessera/moe/prepare_weights.h"

#include <string>

#include "cpu/transpose.h"
#include "moe/cuda/entry.h"
#include "moe/validation.h"
#include "tessera/core/error.h"
#include "tessera/cuda/device.h"
#include "tessera/moe/limits.h"

namespace tessera::moe {
namespace {

// One of the two weights: null on both sides or on none.
struct Matrices {
  const char* name;
  const char* prepared_name;
  const void* from;
  void* to;
  int32_t rows;
  int32_t columns;
};

void transpose(const LayerConfig& config, const Matrices& m, Device device, CUstream_st* stream) {
  if (m.from == nullptr && m.to == nullptr) return;
  const char* memory = device == Device::cpu ? "host memory" : "device memory";
  require_pointer(m.name, m.from, memory, kAlignment);
  require_pointer(m.prepared_name, m.to, memory, kAlignment);
  if (device == Device::cpu) {
    return cpu::transpose(m.from, m.to, config.num_experts, m.rows, m.columns, dtype_size(config.dtype));
  }
  transpose_on_device(m.from, m.to, config.num_experts, m.rows, m.columns, stream);
}

}  // namespace

void prepare_weights(const LayerConfig& config, const TransposedWeights& from, const PreparedWeights& to, Device device,
                     CUstream_st* stream) {
  if (config.weight_format != WeightFormat::dense) {
    throw Error("weight_format", std::string(weight_format_name(config.weight_format)),
                "dense: only such weights are transposed");
  }
  validate_sizes(config, device == Device::cpu);
  if (device == Device::cpu && stream != nullptr) throw Error("stream", "a stream", "none: the weights are on the CPU");
  if (device == Device::cuda) {
    const std::string why = cuda::why_current_unusable();
    if (!why.empty()) throw Error("device cuda", why, "a Hopper GPU and a build with CUDA, or device cpu");
  }
  const int32_t wide = config.intermediate_size * (config.gated ? 2 : 1);
  const uint64_t down_bytes = static_cast<uint64_t>(config.num_experts) * static_cast<uint64_t>(config.hidden_size) *
                              static_cast<uint64_t>(config.intermediate_size) * dtype_size(config.dtype);
  const uint64_t gate_up_bytes = down_bytes * (config.gated ? 2 : 1);
  const MemoryRange read[] = {{"gate_up weight", from.gate_up, gate_up_bytes}, {"down weight", from.down, down_bytes}};
  const MemoryRange written[] = {{"prepared gate_up", to.gate_up, gate_up_bytes},
                                 {"prepared down", to.down, down_bytes}};
  require_apart(written, read);
  transpose(config, {"gate_up weight", "prepared gate_up", from.gate_up, to.gate_up, config.hidden_size, wide}, device,
            stream);
  transpose(config, {"down weight", "prepared down", from.down, to.down, config.intermediate_size, config.hidden_size},
            device, stream);
}

}  // namespace tessera::moe
