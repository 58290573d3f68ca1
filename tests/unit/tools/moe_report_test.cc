// The floor of `tessera bench moe`, as text and as JSON.
#include "moe_report.h"

#include <gtest/gtest.h>

#include <sstream>

namespace tessera::cli {
namespace {

MoeResult measured() {
  MoeResult result;
  result.burst.layer_seconds = {50e-6, 49e-6, 52e-6};
  FloorResult floor;
  floor.read_bytes_per_second = 4e12;
  floor.weight_bytes = 80e6;
  floor.read_seconds = 22.5e-6;
  floor.graph_seconds = 45e-6;
  floor.marked_graph_seconds = 46e-6;
  floor.timer_step_seconds = 32e-9;
  floor.num_replays = 101;
  moe::KernelTimeline kernel;
  kernel.name = "plan_place";
  kernel.begin = {0.0, 0.2e-6};
  kernel.work = {0.5e-6, 0.6e-6};
  kernel.end = {4e-6, 5.7e-6};
  kernel.gap_seconds = 0.5e-6;
  kernel.work_seconds = 5.2e-6;
  floor.timeline.kernels = {kernel};
  result.floor = floor;
  return result;
}

TEST(MoeReport, TheFloorIsBytesOverRate) {
  const auto json = moe_result_json(MoeCase{}, measured())["floor"];
  EXPECT_DOUBLE_EQ(json["floor_us"], 20.0);
  EXPECT_DOUBLE_EQ(json["one_read_us"], 22.5);
  EXPECT_DOUBLE_EQ(json["graph_over_floor"], 2.25);
  EXPECT_DOUBLE_EQ(json["burst_over_floor"], 2.5);
  EXPECT_DOUBLE_EQ(json["timer_step_ns"], 32.0);
  EXPECT_DOUBLE_EQ(json["marked_layer_us"], 5.7);
  EXPECT_DOUBLE_EQ(json["marks"]["plan_place"]["work_us"]["first"], 0.5);
  EXPECT_DOUBLE_EQ(json["marks"]["plan_place"]["works_us"], 5.2);
}

TEST(MoeReport, TheFloorInWordsFitsATerminal) {
  MoeResult result = measured();
  const std::string text = moe_result_text(MoeCase{}, result, true);
  EXPECT_NE(text.find("80.0 MB of weights at 4000 GB/s, read in this run: 20.0 us; one launch takes 22.5 us"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("45.0 us = 2.25 of the floor; with marks 46.0 us"), std::string::npos) << text;
  EXPECT_EQ(text.find("coarse"), std::string::npos) << text;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
  result.floor->timer_step_seconds = 1e-6;
  EXPECT_NE(moe_result_text(MoeCase{}, result, true).find("step is 1000 ns (coarse)"), std::string::npos);
}

TEST(MoeReport, EachLoadSaysWhatRan) {
  MoeResult result = measured();
  EXPECT_FALSE(moe_result_json(MoeCase{}, result).contains("launch")) << "on a CPU nothing is launched";
  result.launch = {{"GEMM 1", "some_kernel: 4 stages"}, {"order", "natural over 7 CTAs"}};
  EXPECT_EQ(moe_result_json(MoeCase{}, result)["launch"]["GEMM 1"], "some_kernel: 4 stages");
  const std::string text = moe_result_text(MoeCase{}, result, true);
  EXPECT_NE(text.find("some_kernel: 4 stages\n"), std::string::npos) << text;
  EXPECT_NE(text.find("natural over 7 CTAs\n"), std::string::npos) << text;
}

TEST(MoeReport, WithoutAFloorNothingIsSaidOfIt) {
  MoeResult result = measured();
  result.floor.reset();
  EXPECT_FALSE(moe_result_json(MoeCase{}, result).contains("floor"));
  EXPECT_EQ(moe_result_text(MoeCase{}, result, true).find("floor"), std::string::npos);
}

TEST(MoeReport, WithoutRowsThereIsNoRatio) {
  MoeResult result = measured();
  result.floor->weight_bytes = 0.0;
  const auto json = moe_result_json(MoeCase{}, result)["floor"];
  EXPECT_FALSE(json.contains("graph_over_floor"));
  EXPECT_FALSE(json.contains("burst_over_floor"));
}

}  // namespace
}  // namespace tessera::cli
