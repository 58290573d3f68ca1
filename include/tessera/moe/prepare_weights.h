// Weights of checkpoints that hold them transposed, made into what the layer reads: once at load.
//
//   prepare_weights(config, {checkpoint.gate_up, checkpoint.down}, {gate_up, down}, Device::cuda, stream);
//   Layer layer(config, {gate_up, down}, {.device = Device::cuda});
#pragma once

#include "tessera/moe/layer.h"

namespace tessera::moe {

/// Row-major, 16-byte aligned, of config.dtype. Columns of gate_up stand in the order that the rows of the prepared
/// weight shall have: GateUpOrder means the same for both.
struct TransposedWeights {
  const void* gate_up = nullptr;  ///< gated [E, H, 2I], non-gated [E, H, I]
  const void* down = nullptr;     ///< [E, I, H]
};

/// As LayerWeights' members of the same names; written.
struct PreparedWeights {
  void* gate_up = nullptr;
  void* down = nullptr;
};

/// Dense weights only. Either matrix may be null on both sides. Nothing may overlap. On a GPU (the current device) the
/// work is enqueued on `stream`. Throws Error for arguments that cannot be right before any work.
void prepare_weights(const LayerConfig& config, const TransposedWeights& from, const PreparedWeights& to,
                     Device device = Device::cpu, CUstream_st* stream = nullptr);

}  // namespace tessera::moe
