// The battery through the C interface: the bits of the C++ layer, which tests/moe/battery_cpu_test.cc judges.
#include <gtest/gtest.h>

#include "moe/battery.h"
#include "moe/run_cpu.h"
#include "unit/api/c_layer.h"

namespace tessera::testing {
namespace {

std::vector<std::byte> run_c_api(const LayerData& data) {
  CLayer c_layer(data);
  EXPECT_EQ(c_layer.create(), TESSERA_OK) << tessera_last_error();
  size_t bytes = 0;
  EXPECT_EQ(tessera_moe_workspace_bytes(c_layer.layer, data.layer_case().tokens, &bytes), TESSERA_OK);
  GuardedBytes workspace(bytes), out(data.out_bytes());
  c_layer.inputs.out = out.data();
  EXPECT_EQ(tessera_moe_run(c_layer.layer, &c_layer.inputs, workspace.data(), bytes, nullptr), TESSERA_OK)
      << tessera_last_error();
  EXPECT_TRUE(out.guards_intact() && workspace.guards_intact());
  return {out.data(), out.data() + out.size()};
}

class MoeBatteryCApi : public ::testing::TestWithParam<LayerCase> {};

TEST_P(MoeBatteryCApi, Case) {
  const LayerData data(GetParam());
  EXPECT_TRUE(run_c_api(data) == data.run()) << GetParam();
}

INSTANTIATE_TEST_SUITE_P(, MoeBatteryCApi, ::testing::ValuesIn(battery_of(takes_all)), case_name);

TEST(MoeBatteryCApiItself, SeesAnotherLayer) {
  const LayerData data(find_case("shard_with_everything_f16"));
  const LayerData other(data.layer_case(), 2);
  EXPECT_FALSE(run_c_api(data) == other.run());
}

}  // namespace
}  // namespace tessera::testing
