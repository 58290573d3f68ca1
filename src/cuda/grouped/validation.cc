#include "cuda/grouped/validation.h"

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::grouped {
namespace {

void require_width(const char* name, int32_t value) {
  if (value <= 0 || value % 8 != 0) throw Error(name, str_cat(value), "a positive multiple of 8");
}

}  // namespace

void validate(const Problem& problem, Role role) {
  if (problem.dtype == DType::f32) throw Error("expert GEMM dtype", "f32", "bf16 or f16");
  require_width("expert GEMM hidden_size", problem.hidden_size);
  require_width("expert GEMM intermediate_size", problem.intermediate_size);
  const void* const rows = role == Role::down ? problem.intermediate : problem.tokens;
  for (const void* pointer : {rows, problem.weight(role), problem.bias(role), problem.shared_weight(role),
                              static_cast<const void*>(problem.out(role))}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0)
      throw Error("expert GEMM argument", "a misaligned pointer", "16-byte alignment");
  }
}

}  // namespace tessera::grouped
