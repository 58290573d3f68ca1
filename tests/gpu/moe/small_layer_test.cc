// The smallest runs that still reach every instance of every kernel: what the sanitizers, which are slow, run.
#include "gpu/moe/gpu_fixture.h"

namespace tessera::testing {
namespace {

// Several column blocks and K steps, an expert whose rows fill more than one tile, and partial tiles.
LayerCase small(DType dtype, bool gated) {
  LayerCase c{264, 136, 3, 2, 150, "worst", dtype, gated};
  c.activation = {gated ? ActivationKind::silu : ActivationKind::gelu_tanh};
  return c;
}

TEST(MoeSmall, F16) { expect_right(small(DType::f16, true)); }

TEST(MoeSmall, NonGatedWithBias) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    LayerCase c = small(dtype, false);
    c.bias = true;
    expect_right(c);
  }
}

TEST(MoeSmall, ClusterOfOne) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const bool gated : {true, false}) expect_right(small(dtype, gated), {batching::TaskOrder::natural, 5, 1, 2});
  }
}

TEST(MoeSmall, PlanInTwoLaunches) { expect_right({64, 512, 40, 8, 200, "bad"}); }

TEST(MoeSmall, GatedBiasAndBackEnd) {
  LayerCase c = small(DType::bf16, true);
  c.bias = true;
  expect_right(c, {batching::TaskOrder::heavy_first, 8, 2, 2});
}

}  // namespace
}  // namespace tessera::testing
