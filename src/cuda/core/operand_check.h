// Host-side checks of the OperandViews that kernels are given.
#pragma once

#include <cstdint>

#include "cuda/core/operand.h"

namespace tessera::cta {

// Throws Error naming `argument` unless the view has 16-byte aligned memory, a stride that is a multiple of 8 and holds
// `columns`, and, for a split, a plane stride that is a multiple of 8.
void check_operand(const char* argument, const OperandView& view, int64_t columns);

// Throws Error naming `argument` unless the pointer is there and a multiple of `alignment` bytes.
void check_pointer(const char* argument, const void* pointer, int64_t alignment);

}  // namespace tessera::cta
