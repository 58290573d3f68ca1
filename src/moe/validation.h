// What every back end refuses, in the same words: configuration, weights and the arguments of a run.
#pragma once

#include <cstddef>
#include <cstdint>

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

/// Null only where `optional`; `alignment` in bytes.
void require_pointer(const char* name, const void* pointer, const char* memory, size_t alignment,
                     bool optional = false);

/// Widths, number of experts and type.
void validate_sizes(const LayerConfig& config, bool has_f32);

void validate(const LayerConfig& config, const LayerWeights& weights, const BackEndTraits& traits);

/// Throws Error for a number of tokens that a layer of this configuration cannot take.
void validate_num_tokens(const LayerConfig& config, int32_t num_tokens, const char* name = "num_tokens");

/// For num_tokens > 0: the arrays of a run, and a workspace of at least `needed` bytes.
void validate(const LayerConfig& config, const LayerInputs& inputs, const void* workspace, size_t workspace_size,
              size_t needed, const BackEndTraits& traits);

}  // namespace tessera::moe
