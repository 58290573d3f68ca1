// Checks of operand arguments on the host: what a kernel's vector accesses rely on, reported by the argument's name.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/core/operand.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cuda {

/// Throws Error unless `pointer` is non-null and aligned to `alignment` bytes. `where` names the argument.
inline void check_pointer(const std::string& where, const void* pointer, uintptr_t alignment) {
  if (pointer == nullptr) throw Error(where, "a null pointer", "device memory");
  if (reinterpret_cast<uintptr_t>(pointer) % alignment != 0)
    throw Error(where, "a misaligned pointer", str_cat(alignment, "-byte alignment"));
}

/// Throws Error unless `view` can hold `rows` rows of `columns` values and all its rows and planes are 16-byte aligned.
inline void check_operand(const std::string& where, const cta::OperandView& view, int64_t rows, int64_t columns) {
  check_pointer(where + ".data", view.data, 16);
  if (view.stride < columns || view.stride % 8 != 0)
    throw Error(where + ".stride", str_cat(view.stride), str_cat("a multiple of 8, at least ", columns));
  if (cta::num_planes(view.kind) == 1) return;
  if (view.plane_stride % 8 != 0 || view.plane_stride / view.stride < rows) {
    throw Error(where + ".plane_stride", str_cat(view.plane_stride),
                str_cat("a multiple of 8, at least ", rows, " rows of ", view.stride));
  }
}

}  // namespace tessera::cuda

namespace tessera::cuda {
using namespace cuda;  // as the kernels' launches say it
}
