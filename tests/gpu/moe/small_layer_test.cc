// Small runs with policies of their own: with the battery's smallest cases what the sanitizers, which are slow, run,
// and every instance of every kernel in them.
#include "gpu/moe/gpu_fixture.h"

namespace tessera::testing {
namespace {

void expect_right(const std::string& name, const moe::LaunchPolicy& policy) {
  const LayerCase& c = find_case(name);
  LayerRun run((LayerData(c)));
  testing::expect_right(run, c, policy);
}

TEST(MoeSmall, ClusterOfOne) {
  for (const char* type : {"_bf16", "_f16"}) {
    for (const char* name : {"small_all_tails", "small_all_tails_plain"})
      expect_right(std::string(name) + type, {batching::TaskOrder::natural, 5, 1, 2});
  }
}

TEST(MoeSmall, BackEnd) { expect_right("small_all_tails_bf16", {batching::TaskOrder::heavy_first, 8, 2, 2}); }

}  // namespace
}  // namespace tessera::testing
