#include "cuda/core/operand_check.h"

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cta {
namespace {

constexpr int64_t kWordBytes = 16;      // of a vector load
constexpr int64_t kStrideElements = 8;  // of a row, see padded_stride

}  // namespace

void check_pointer(const char* argument, const void* pointer, int64_t alignment) {
  if (pointer == nullptr) throw Error(argument, "null", "device memory");
  if (reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(alignment) != 0)
    throw Error(argument, "a misaligned pointer", str_cat(alignment, "-byte alignment"));
}

void check_operand(const char* argument, const OperandView& view, int64_t columns) {
  check_pointer(argument, view.data, kWordBytes);
  if (view.stride < columns || view.stride % kStrideElements != 0)
    throw Error(argument, str_cat("stride ", view.stride), str_cat("a multiple of 8, at least ", columns));
  if (view.kind == Operand::split && view.plane_stride % kStrideElements != 0)
    throw Error(argument, str_cat("plane stride ", view.plane_stride), "a multiple of 8");
}

}  // namespace tessera::cta
