// One MoE layer of a checkpoint, or one shard of its experts, from disk into memory of the device that runs it.
//
//   const checkpoint::Checkpoint model("Qwen3-30B-A3B");
//   const checkpoint::LoadedLayer loaded(model, {.layer = 3});                              // experts, ready to run
//   loaded.layer().run({x, topk_ids, false, topk_weights, out, num_tokens}, workspace, bytes);
//
// LoadedLayer owns the memory. Whoever has an allocator of his own takes LayerPlan: it says what a layer needs, array
// by array, and reads into what it is given. Everything that a header can tell is checked before the first weight is
// read; what fails afterwards throws and leaves no layer.
//
// Bytes go by pread straight to where they stay; for a GPU through two page-locked buffers of one matrix each. What is
// changed on the way is read by experts: beside the weights there is never more than one tensor in memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tessera/checkpoint/checkpoint.h"
#include "tessera/moe/layer.h"

namespace tessera::checkpoint {

struct LoadOptions {
  int32_t layer = 0;  ///< as the checkpoint counts
  /// Experts E * shard / num_shards and on, up to the next shard's; ids stay those of the whole model.
  int32_t shard = 0;
  int32_t num_shards = 1;
  moe::Placement placement{};  ///< CUDA: the current device
  /// The type of tokens and output, and of dense weights; none: as stored, bf16 where weights are 8 bits or less.
  /// Another type than the stored one is rounded to, to nearest even.
  std::optional<DType> dtype{};
  /// What MXFP4 becomes; none: fp8_block if that is exact, else dense. Other formats are what they are.
  std::optional<moe::WeightFormat> weight_format{};
  /// Whether the shared expert is loaded with the others; none: with shard 0, so that shards add up to the layer.
  std::optional<bool> shared_expert{};
};

/// The arrays of moe::LayerWeights that a checkpoint fills, in this order everywhere.
enum class LayerArray : uint8_t {
  gate_up,
  down,
  gate_up_bias,
  down_bias,
  shared_gate_up,
  shared_down,
  gate_up_scale,
  down_scale,
  shared_gate_up_scale,
  shared_down_scale,
};
inline constexpr size_t kNumLayerArrays = 10;

/// What was loaded, for people.
struct LoadReport {
  std::string stored;            ///< as LayerFacts::stored
  int64_t num_blocks = 0;        ///< of 128 x 128 that MXFP4 weights have; 0 for other formats
  int64_t num_exact_blocks = 0;  ///< of these, the ones that fp8_block holds to the bit
  uint64_t read_bytes = 0;       ///< from disk
};

/// Called with bytes read so far and in all, by the thread that reads, after every piece of at most 64 MiB.
using Progress = std::function<void(uint64_t done, uint64_t total)>;

struct PlanParts;  // src/checkpoint/plan_parts.h

class LayerPlan {
 public:
  /// Throws Error naming file and tensor for what is missing, extra, misnamed or of another shape or type, and for what
  /// no layer on that device can be. Of MXFP4 it reads the scales, to know whether they allow fp8_block.
  LayerPlan(const Checkpoint& checkpoint, const LoadOptions& options);
  ~LayerPlan();
  LayerPlan(LayerPlan&&) noexcept;
  LayerPlan& operator=(LayerPlan&&) noexcept;

  const moe::LayerConfig& config() const;
  /// Of each array, 0 for one that the layer does not have.
  const std::array<size_t, kNumLayerArrays>& bytes() const;
  const LoadReport& report() const;

  /// Fills the arrays, memory of the placement's device, aligned to moe::kAlignment. Throws Error naming file and
  /// tensor if one cannot be read; then they hold anything. CUDA: on the current device, done when it returns.
  void read(const std::array<void*, kNumLayerArrays>& arrays, const Progress& progress = {}) const;

 private:
  std::unique_ptr<const PlanParts> parts_;
};

class Target;  // src/checkpoint/target.h

class LoadedLayer {
 public:
  /// Throws as LayerPlan and moe::Layer do, std::bad_alloc where memory is too little.
  LoadedLayer(const Checkpoint& checkpoint, const LoadOptions& options, const Progress& progress = {});
  ~LoadedLayer();
  LoadedLayer(LoadedLayer&&) noexcept;
  LoadedLayer& operator=(LoadedLayer&&) noexcept;

  const moe::Layer& layer() const { return *layer_; }
  const moe::LayerWeights& weights() const { return weights_; }
  const LoadReport& report() const { return report_; }

 private:
  std::unique_ptr<Target> memory_;
  moe::LayerWeights weights_;
  LoadReport report_;
  std::unique_ptr<const moe::Layer> layer_;
};

}  // namespace tessera::checkpoint
