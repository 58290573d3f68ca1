// Cases on the CPU layer.
//
//   expect_right({.hidden = 72, .tokens = 65}, 3);           // on three threads
//   EXPECT_EQ(verdict_of(data, data.run()), "");
#pragma once

#include <string>
#include <vector>

#include "moe/battery.h"
#include "tessera/moe/cpu_layer.h"

namespace tessera::testing {

inline BackEnd cpu_back_end(int num_threads = 1, const Sums& sums = kCpuSums) {
  return {[num_threads](const LayerData& data) { return data.run(num_threads); }, sums};
}

/// Builds, runs and judges one case.
inline void expect_right(const LayerCase& c, int num_threads = 1, uint64_t seed = 1) {
  expect_right(LayerData(c, seed), cpu_back_end(num_threads));
}

inline std::string verdict_of(const LayerData& data, const std::vector<std::byte>& out) {
  return judge(data.layer_case(), out, data.reference(kCpuSums.accumulator_unit), kCpuSums);
}

}  // namespace tessera::testing
