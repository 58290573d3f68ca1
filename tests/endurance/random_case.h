// Random cases of an MoE layer, by number: small, every field drawn.
//
//   const LayerCase c = random_case(seed, moe::WeightFormat::dense, DType::bf16);
#pragma once

#include <cstdint>

#include "moe/case.h"

namespace tessera::testing {

/// The same on every machine; one that `is_for_gpu` where the type has 16 bits. At most about 10^6 multiplications.
LayerCase random_case(uint64_t seed, moe::WeightFormat format, DType dtype);

}  // namespace tessera::testing
