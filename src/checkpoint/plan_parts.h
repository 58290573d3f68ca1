// What a LayerPlan has found out: the layer's configuration, its arrays, and where each piece of them comes from.
#pragma once

#include <memory>
#include <vector>

#include "checkpoint/layer_tensors.h"
#include "checkpoint/pieces.h"
#include "tessera/checkpoint/load_layer.h"

namespace tessera::checkpoint {

struct PlanParts {
  Checkpoint checkpoint;  ///< keeps the files open
  LoadOptions options;
  moe::LayerConfig config;
  std::array<size_t, kNumLayerArrays> bytes{};
  LoadReport report;
  std::vector<Piece> pieces;
};

/// The layer that `options` ask for, from headers alone: MXFP4 is taken to allow fp8_block. Throws as LayerPlan does.
moe::LayerConfig layer_config(const CheckpointParts& parts, const LayerTensors& tensors, const LoadOptions& options);

/// Bytes of each array of such a layer.
std::array<size_t, kNumLayerArrays> array_bytes(const moe::LayerConfig& config, bool has_biases);

/// Throws Error where no layer of this configuration runs on the device.
void require_runs(const moe::LayerConfig& config, moe::Device device);

}  // namespace tessera::checkpoint
