// What every back end refuses, in the same words: configuration, weights and the arguments of a run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tessera/moe/layer_config.h"

namespace tessera::moe {

/// What a back end can do, for the checks that differ between back ends.
struct BackEndTraits {
  const char* memory;  ///< what pointers should be, for messages: "host memory" or "device memory"
  bool has_f32;
};

/// Throws Error(name, value, "low..high") when value lies outside [low, high].
void require_range(const char* name, int64_t value, int64_t low, int64_t high);

/// Throws Error unless `dtype` is one of DType's values: it may have come through an interface of integers.
void require_dtype(const char* name, DType dtype);

/// What a layer on a GPU makes of a number of threads: Error unless it is 0.
void require_no_threads(int64_t num_threads);

/// Null only where `optional`; `alignment` in bytes.
void require_pointer(const char* name, const void* pointer, const char* memory, size_t alignment,
                     bool optional = false);

/// Widths, number of experts, type and offsets of scales.
void validate_sizes(const LayerConfig& config, bool has_f32);

void validate(const LayerConfig& config, const LayerWeights& weights, const BackEndTraits& traits);

/// Static scales: of formats that have them, as many as were announced.
void validate_input_scales(const LayerConfig& config, const LayerWeights& weights, const char* memory);

/// Throws Error for a number of tokens that a layer of this configuration cannot take.
void validate_num_tokens(const LayerConfig& config, int32_t num_tokens, const char* name = "num_tokens");

/// What a call reads or writes, for require_apart. Null or empty: absent.
struct MemoryRange {
  const char* name;
  const void* begin;
  uint64_t num_bytes;
};

/// Throws Error naming both if one of `written` overlaps another of them or one of `read`. Compares addresses only.
void require_apart(std::span<const MemoryRange> written, std::span<const MemoryRange> read);

/// The workspace of a run: what the caller gave, and how much of it the run's arrays take.
struct GivenWorkspace {
  const void* begin;
  size_t num_bytes;
  size_t needed_bytes;
};

/// All that is checked of a run, once, after validate_num_tokens: its arrays, a workspace that is large enough, and
/// that neither `out` nor the workspace overlaps the other, an array of the run or one of the layer's own.
void validate(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
              const GivenWorkspace& workspace, const BackEndTraits& traits);

}  // namespace tessera::moe
