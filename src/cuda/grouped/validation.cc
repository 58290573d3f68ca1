#include "cuda/grouped/validation.h"

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::grouped {
namespace {

// A row is whole vectors of 16 bytes.
void require_width(const char* name, int32_t value, int32_t element_bytes) {
  const int32_t multiple = 16 / element_bytes;
  if (value <= 0 || value % multiple != 0)
    throw Error(name, str_cat(value), str_cat("a positive multiple of ", multiple));
}

}  // namespace

void validate(const Problem& problem, Role role) {
  if (problem.dtype == DType::f32) throw Error("expert GEMM dtype", "f32", "bf16 or f16");
  TESSERA_CHECK(problem.operand_bytes == 1 || problem.operand_bytes == 2, problem.operand_bytes);
  require_width("expert GEMM hidden_size", problem.hidden_size, problem.operand_bytes);
  require_width("expert GEMM intermediate_size", problem.intermediate_size, problem.operand_bytes);
  const void* const rows = role == Role::down ? problem.intermediate : problem.tokens;
  for (const void* pointer : {rows, problem.weight(role), problem.bias(role), problem.shared_weight(role),
                              static_cast<const void*>(problem.out(role))}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0)
      throw Error("expert GEMM argument", "a misaligned pointer", "16-byte alignment");
  }
}

}  // namespace tessera::grouped
