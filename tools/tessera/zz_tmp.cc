#include "moe_check.h"
namespace tessera::cli {
std::unique_ptr<MoeBench> make_cpu_moe_bench(const moe::Preset&, const MoeBenchOptions&) { return nullptr; }
std::vector<int32_t> sampled_tokens(int32_t) { return {}; }
double error_of_bound(const moe::LayerConfig&, const moe::LayerWeights&, const moe::LayerInputs&, int32_t,
                      const CopyToHost&) {
  return 0;
}
}  // namespace tessera::cli
