// Every case of the battery on one back end, one test a case.
//
//   BackEnd my_back_end();                                   // how it runs a case, how it adds up
//   TESSERA_MOE_BATTERY(MoeBatteryCpu, my_back_end(), takes) // MoeBatteryCpu.Case/tokens_127_bf16, ...
//
// A back end, or a new number format of one, is tested by being listed so. With TESSERA_CASES=spread in the environment
// it runs spread_of the cases (case.h).
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "moe/case.h"
#include "moe/judge.h"
#include "moe/layer_data.h"
#include "tessera/core/error.h"

namespace tessera::testing {

struct BackEnd {
  /// The bytes of out; fails the test itself where something beside out or the workspace is written.
  std::function<std::vector<std::byte>(const LayerData&)> run;
  Sums sums = kCpuSums;
};

inline void expect_right(const LayerData& data, const BackEnd& back_end) {
  const LayerCase& c = data.layer_case();
  EXPECT_EQ(judge(c, back_end.run(data), data.reference(unit_of(c, back_end.sums)), back_end.sums), "")
      << c << "\n  " << c.why;
}

/// The cases of the battery that `takes` says yes to; of them a spread where TESSERA_CASES is "spread".
inline std::vector<LayerCase> battery_of(bool (*takes)(const LayerCase&)) {
  std::vector<LayerCase> taken;
  for (const LayerCase& c : battery()) {
    if (takes(c)) taken.push_back(c);
  }
  const char* wanted = std::getenv("TESSERA_CASES");
  if (wanted == nullptr || std::string(wanted) == "all") return taken;
  if (std::string(wanted) != "spread") throw Error("TESSERA_CASES", wanted, "all or spread");
  return spread_of(taken);
}

inline bool takes_all(const LayerCase&) { return true; }

inline std::string case_name(const ::testing::TestParamInfo<LayerCase>& info) { return info.param.name; }

}  // namespace tessera::testing

#define TESSERA_MOE_BATTERY(suite, back_end, takes)                                             \
  class suite : public ::testing::TestWithParam<::tessera::testing::LayerCase> {};              \
  TEST_P(suite, Case) { expect_right(::tessera::testing::LayerData(GetParam()), back_end); }    \
  INSTANTIATE_TEST_SUITE_P(, suite, ::testing::ValuesIn(::tessera::testing::battery_of(takes)), \
                           ::tessera::testing::case_name)
