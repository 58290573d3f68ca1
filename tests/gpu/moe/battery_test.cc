// The battery on the GPU: every case by the oracle's bound, every case bit for bit by the exact judge, every case with
// equal bits whatever the policy; and the oracle's twin on the device, whose bits must be the host's.
#include <algorithm>

#include "gpu/moe/device_activation.h"
#include "gpu/moe/gpu_fixture.h"
#include "moe/battery.h"
#include "moe/judge/exact_layer.h"
#include "tessera/core/thread_pool.h"
#include "unit/moe/exact_case.h"

namespace tessera::testing {
namespace {

class MoeBatteryCuda : public ::testing::TestWithParam<LayerCase> {};

TEST_P(MoeBatteryCuda, Case) {
  LayerRun run((LayerData(GetParam())));
  expect_right(run, GetParam());
}

INSTANTIATE_TEST_SUITE_P(, MoeBatteryCuda, ::testing::ValuesIn(battery_of(runs_on_gpu)), case_name);

// No element may differ. Integers would hide an error of rounding: such cases hold normal numbers here.
class MoeBatteryExact : public ::testing::TestWithParam<LayerCase> {};

TEST_P(MoeBatteryExact, Case) {
  static ThreadPool threads(available_processors());
  static DeviceActivation activation;
  LayerCase c = GetParam();
  c.integers = false;
  const LayerData data(c);
  const moe::ExactLayer layer(data.config(), data.weights(), data.inputs(), &threads);
  const auto expected = layer.out(is_exact_on_host(c) ? moe::exact_activation : activation.function());
  EXPECT_EQ(difference_of("out", LayerRun(data).run(), expected, c.hidden), "") << c;
}

INSTANTIATE_TEST_SUITE_P(, MoeBatteryExact, ::testing::ValuesIn(battery_of(runs_on_gpu)), case_name);

TEST(MoeBatteryPolicies, SameBitsForEveryPolicy) {
  const std::vector<LayerCase> cases = battery_of(runs_on_gpu);
  const moe::LaunchPolicy policies[] = {{batching::TaskOrder::natural, 7, 1, 0},
                                        {batching::TaskOrder::interleaved, 66, 2, 2}};
  for (const moe::LaunchPolicy& policy : policies) {
    for (const std::string& line : differing_cases(cases, {}, policy)) ADD_FAILURE() << line;
  }
}

TEST(MoeBatteryPolicies, WhatCannotRunDiffers) {
  moe::LaunchPolicy unknown;
  unknown.kernel = "no such kernel";
  const std::vector<LayerCase> cases = {find_case("small_one_row_bf16"), find_case("tokens_31_f16")};
  EXPECT_EQ(differing_cases(cases, {}, unknown).size(), cases.size());
}

// Multiplications of a reference; the host does about 10^8 in a second.
double work_of(const LayerCase& c) {
  return 3.0 * c.tokens * c.hidden * (double{1} * c.top_k * c.intermediate + c.shared_intermediate);
}

TEST(MoeOracleTwin, HasTheBitsOfTheHosts) {
  int compared = 0;
  for (const LayerCase& c : battery_of(runs_on_gpu)) {
    if (work_of(c) > 2e6 || c.format != moe::WeightFormat::dense) continue;  // others: the host's is the only one
    const LayerData data(c);
    const moe::OracleResult host = data.reference(kWgmmaSums.accumulator_unit);
    const moe::OracleResult device = LayerRun(data).reference();
    EXPECT_TRUE(host.out == device.out) << c;
    EXPECT_TRUE(host.bound == device.bound) << c;
    ++compared;
  }
  EXPECT_GT(compared, 150);
}

TEST(MoeOracleTwin, SomeTokensAreThoseOfAll) {
  const LayerCase& c = find_case("shared_order_up_first_264_bf16");
  const LayerData data(c);
  const LayerRun run(data);
  const std::vector<int32_t> tokens = {19, 0, 7};
  const auto device = reference_layer(run.config(), run.weights(), run.inputs(), tokens);
  const auto host = moe::oracle(data.config(), data.weights(), data.inputs(), tokens, moe::kWgmmaAccumulatorUnit);
  EXPECT_TRUE(host.out == device.out && host.bound == device.bound);
}

}  // namespace
}  // namespace tessera::testing
