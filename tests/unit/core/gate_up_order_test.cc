#include "tessera/core/gate_up_order.h"

#include <gtest/gtest.h>

#include <vector>

namespace tessera {
namespace {

TEST(GateUpOrder, EveryRowOnceAndWhereTheOrderSays) {
  constexpr int64_t kWidth = 5;
  const std::vector<int64_t> expected_gate[] = {{0, 1, 2, 3, 4}, {0, 2, 4, 6, 8}, {5, 6, 7, 8, 9}};
  const std::vector<int64_t> expected_up[] = {{5, 6, 7, 8, 9}, {1, 3, 5, 7, 9}, {0, 1, 2, 3, 4}};
  for (const auto order : {GateUpOrder::gate_first, GateUpOrder::interleaved, GateUpOrder::up_first}) {
    std::vector<int64_t> gate, up;
    for (int64_t i = 0; i < kWidth; ++i) {
      gate.push_back(gate_row(order, i, kWidth));
      up.push_back(up_row(order, i, kWidth));
    }
    EXPECT_EQ(gate, expected_gate[static_cast<int>(order)]);
    EXPECT_EQ(up, expected_up[static_cast<int>(order)]);
  }
}

}  // namespace
}  // namespace tessera
