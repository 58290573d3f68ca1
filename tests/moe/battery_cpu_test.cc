// The battery on the CPU layer. The number of threads, on which no bit may depend, changes from case to case.
#include "moe/run_cpu.h"

namespace tessera::testing {
namespace {

// As much room for narrow rows as on a GPU: there are thousands of them, and what rounds the other way depends on the
// processor's products.
constexpr Sums kManyNarrowRows{moe::kCpuAccumulatorUnit, kWgmmaSums.narrow_rows};

TESSERA_MOE_BATTERY(MoeBatteryCpu, cpu_back_end(1 + GetParam().tokens % 3, kManyNarrowRows), takes_all);

}  // namespace
}  // namespace tessera::testing
