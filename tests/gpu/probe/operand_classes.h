// Operands that bend every rule of the tensor core model, by name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe/judge/tensor_core.h"

namespace tessera::testing {

/// Two matrices [rows][depth] and, in some classes, what the sums start from.
struct ProbeOperands {
  std::vector<uint16_t> a, b;  // patterns; e4m3 in the low byte
  std::vector<float> start;    // [rows][rows] or empty
};

struct OperandClass {
  std::string name;
  std::string why;          // what it would show
  std::vector<int> depths;  // in instructions of K
  ProbeOperands (*make)(moe::TensorCoreType type, int rows, int64_t depth, uint32_t seed);
};

const std::vector<OperandClass>& operand_classes();

}  // namespace tessera::testing
