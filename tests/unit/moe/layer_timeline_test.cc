// What marks say, worked out by hand; what contradicts itself is refused.
#include "moe/model/layer_timeline.h"

#include <gtest/gtest.h>

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

constexpr uint64_t kStart = 1'700'000'000'000'000'000;  // nanoseconds since 1970: no double holds it exactly

cuda::KernelMarks marks(uint64_t begin, uint64_t work, uint64_t end) {
  return {
      {kStart + begin, kStart + begin + 100}, {kStart + work, kStart + work + 100}, {kStart + end, kStart + end + 700}};
}

/// A layer of 40.7 us: the plan ends at 5.7, GEMM 1 begins at 2 and works from 6.5.
cuda::LayerMarks timeline_layer() {
  cuda::LayerMarks run;
  run.place = marks(0, 400, 5000);
  run.gate_up = marks(2000, 6500, 24'000);
  run.down = marks(7000, 25'500, 37'000);
  run.combine = marks(37'900, 38'500, 40'000);
  return run;
}

void shift(cuda::LayerMarks& run, uint64_t nanoseconds) {
  for (cuda::KernelMarks* kernel : {&run.place, &run.gate_up, &run.down, &run.combine}) {
    for (cuda::MarkRange* range : {&kernel->begin, &kernel->work, &kernel->end}) {
      range->first += nanoseconds;
      range->last += nanoseconds;
    }
  }
}

TEST(LayerTimeline, GapsAndWorkAddUpToTheLayer) {
  const cuda::LayerMarks runs[] = {timeline_layer()};
  const LayerTimeline timeline = timeline_of(runs);
  ASSERT_EQ(timeline.kernels.size(), 4u);
  const char* const names[] = {"plan_place", "gemm1", "gemm2", "combine"};
  const double gaps[] = {0.4, 0.8, 0.8, 0.8}, work[] = {5.3, 18.2, 12.2, 2.2}, early[] = {0.0, 3.7, 17.7, 0.0};
  double sum = 0.0;
  for (size_t i = 0; i < 4; ++i) {
    const KernelTimeline& kernel = timeline.kernels[i];
    EXPECT_EQ(kernel.name, names[i]);
    EXPECT_NEAR(kernel.gap_seconds * 1e6, gaps[i], 1e-6) << names[i];
    EXPECT_NEAR(kernel.work_seconds * 1e6, work[i], 1e-6) << names[i];
    EXPECT_NEAR(kernel.early_seconds * 1e6, early[i], 1e-6) << names[i];
    sum += kernel.gap_seconds + kernel.work_seconds;
  }
  EXPECT_NEAR(timeline.seconds() * 1e6, 40.7, 1e-6);
  EXPECT_NEAR(sum, timeline.seconds(), 1e-12);
  EXPECT_NEAR(timeline.kernels[1].begin.last * 1e6, 2.1, 1e-6);
  EXPECT_NEAR(timeline.kernels[1].end.first * 1e6, 24.0, 1e-6);
}

TEST(LayerTimeline, MediansAreOfTimesSinceTheRunsOwnBegin) {
  std::vector<cuda::LayerMarks> runs(3, timeline_layer());
  shift(runs[1], 5'000'000'000);
  shift(runs[2], 9'000'000'000);
  runs[2].combine.end.last += 90'000;  // an outlier
  const LayerTimeline timeline = timeline_of(runs);
  EXPECT_NEAR(timeline.seconds() * 1e6, 40.7, 1e-6);
  runs.erase(runs.begin());
  EXPECT_NEAR(timeline_of(runs).seconds() * 1e6, 40.7 + 45.0, 1e-6);  // of two: the mean
}

TEST(LayerTimeline, TheCountingKernelIsThereWhereItRan) {
  cuda::LayerMarks run = timeline_layer();
  run.count = marks(0, 300, 900);
  run.place = marks(500, 2000, 5000);
  const LayerTimeline timeline = timeline_of(std::span(&run, 1));
  ASSERT_EQ(timeline.kernels.size(), 5u);
  EXPECT_EQ(timeline.kernels[0].name, "plan_count");
  EXPECT_NEAR(timeline.kernels[1].gap_seconds * 1e6, 0.4, 1e-6);
  EXPECT_NEAR(timeline.kernels[1].early_seconds * 1e6, 1.1, 1e-6);
}

template <class Change>
void expect_refused(const Change& change, const std::string& part) {
  std::vector<cuda::LayerMarks> runs(2, timeline_layer());
  change(runs[1]);
  try {
    timeline_of(runs);
    ADD_FAILURE() << "not refused: " << part;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(LayerTimeline, RefusesMarksThatCannotBe) {
  expect_refused([](cuda::LayerMarks& run) { run.down = {}; }, "marks of gemm2, run 1: got none, expected some");
  expect_refused([](cuda::LayerMarks& run) { run.count = marks(0, 1, 2); }, "marks of plan_count, run 1: got some");
  expect_refused([](cuda::LayerMarks& run) { run.combine.end = {}; }, "marks of combine, run 1: got end first");
  expect_refused([](cuda::LayerMarks& run) { run.gate_up.work.first = kStart + 1999; },
                 "marks of gemm1, run 1: got work");
  expect_refused(
      [](cuda::LayerMarks& run) {
        run.place.end = {kStart, kStart};
      },
      "marks of plan_place, run 1: got end");
}

TEST(ActiveWeightBytes, OfTheExpertsWithRows) {
  LayerConfig config;
  config.hidden_size = 2048;
  config.intermediate_size = 768;
  config.num_experts = 128;
  config.gated = true;
  EXPECT_EQ(active_weight_bytes(config, 8), 8.0 * 3 * 2048 * 768 * 2);
  EXPECT_EQ(active_weight_bytes(config, 0), 0.0);
  config.gated = false;
  EXPECT_EQ(active_weight_bytes(config, 128), 128.0 * 2 * 2048 * 768 * 2);
  config.weight_format = WeightFormat::fp8_block;
  EXPECT_EQ(active_weight_bytes(config, 3), 3.0 * 2 * (2048 * 768 + 4 * 16 * 6));
  config.gated = true;
  config.intermediate_size = 80;  // gate and up have a row of scales each
  EXPECT_EQ(active_weight_bytes(config, 1), 3.0 * (2048 * 80 + 4 * 16));
}

}  // namespace
}  // namespace tessera::moe
