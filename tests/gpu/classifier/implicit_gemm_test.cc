// The implicit GEMM against plain loops in fp64: shapes that bend every path, exact integers, tails, bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "cuda/kernels/implicit_gemm/tiling.h"
#include "gpu/classifier/product_buffers.h"
#include "tessera/core/error.h"

namespace tessera::testing {
namespace {

namespace implicit_gemm = kernels::implicit_gemm;
using implicit_gemm::ImplicitGemm;
using implicit_gemm::Task;

using Shape = ProductShape;

enum class Values { integers, normal };

// One task with its buffers, and what its output must be.
class Convolution {
 public:
  Convolution(const Shape& shape, Operand kind, Operand out_kind, Values values, bool relu, uint64_t seed,
              int64_t capacity = 0)
      : shape_(shape), kind_(kind), relu_(relu), buffers_(shape, kind, out_kind, 0, capacity) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> small(-4, 4), weights(-2, 2);
    const auto draw = [&](bool is_weight) {
      if (values == Values::normal) return normal(random);
      return static_cast<float>(is_weight ? weights(random) : small(random));
    };
    x_values_.resize(static_cast<size_t>(buffers_.capacity * shape.positions * buffers_.channels));
    for (int64_t i = 0; i < buffers_.capacity * shape.positions; ++i) {
      for (int64_t c = 0; c < shape.channels; ++c)
        x_values_[static_cast<size_t>(i * buffers_.channels + c)] = draw(false);
    }
    weight_values_.resize(static_cast<size_t>(shape.features * buffers_.columns));
    for (int64_t f = 0; f < shape.features; ++f) {
      for (int64_t c = 0; c < shape.channels; ++c) {
        for (int64_t l = 0; l < shape.taps; ++l) weight_values_[weight_index(f, c, l)] = draw(true);
      }
    }
    for (int64_t f = 0; f < shape.features; ++f) bias_.push_back(draw(true));
    buffers_.x.upload(x_values_, true);
    buffers_.weight.upload(weight_values_, true);
    buffers_.bias.upload(bias_);
  }

  Task task(float scale = 1.0f) const { return buffers_.task(scale, relu_); }
  OperandBuffer& out() { return buffers_.out; }

  // Errors of the output as a fraction of what the contract allows; every element must be written and be right.
  void expect_right(int64_t num_records) {
    buffers_.out.fetch();
    double worst = 0;
    for (int64_t n = 0; n < num_records; ++n) {
      for (int64_t f = 0; f < shape_.features; ++f) worst = std::max(worst, error_over_bound(n, f));
    }
    EXPECT_LE(worst, 1.0) << shape_ << ", " << operand_name(kind_) << " to " << operand_name(buffers_.out.kind());
    expect_untouched(num_records);
  }

  // |out - ref| / (2 u |ref| + 4 u_acc (|A||B|)): not a number is infinitely wrong.
  double error_over_bound(int64_t n, int64_t f) const {
    double best = -INFINITY, magnitude = 0;
    for (int64_t j = 0; j <= shape_.positions - shape_.taps; ++j) {
      double sum = 0, sum_of_magnitudes = 0;
      for (int64_t l = 0; l < shape_.taps; ++l) {
        for (int64_t c = 0; c < shape_.channels; ++c) {
          const double x =
              seen(x_values_[static_cast<size_t>(((n * shape_.positions) + j + l) * buffers_.channels + c)]);
          const double w = seen(weight_values_[weight_index(f, c, l)]);
          sum += x * w;
          sum_of_magnitudes += std::abs(x * w);
        }
      }
      best = std::max(best, sum);
      magnitude = std::max(magnitude, sum_of_magnitudes);
    }
    double reference = best + static_cast<double>(bias_[static_cast<size_t>(f)]);
    if (relu_) reference = std::max(reference, 0.0);
    const double accumulation = 4 * 0x1p-21 * magnitude;
    const double bound = 2 * operand_rounding(buffers_.out.kind(), std::abs(reference)) + accumulation + 1e-30;
    const double error = std::abs(out_value(n, f) - reference);
    return std::isfinite(error) ? error / bound : INFINITY;
  }

  double out_value(int64_t n, int64_t f) const {
    double value = static_cast<double>(bits_to_float(buffers_.out.kind(), buffers_.out.bits(0, n, f)));
    if (buffers_.out.kind() == Operand::split)
      value += static_cast<double>(bits_to_float(buffers_.out.kind(), buffers_.out.bits(1, n, f)));
    return value;
  }

 private:
  size_t weight_index(int64_t f, int64_t c, int64_t l) const {
    return static_cast<size_t>(f * buffers_.columns +
                               (shape_.taps == 1 ? c : implicit_gemm::weight_column(c, l, shape_.taps)));
  }
  // What the products see of a value. A split's own rounding is far below its bound.
  double seen(float value) const {
    return static_cast<double>(kind_ == Operand::split ? value : bits_to_float(kind_, operand_bits(kind_, 0, value)));
  }
  // Rows beyond the records, columns beyond the features: as poisoned.
  void expect_untouched(int64_t num_records) const {
    const uint32_t poison = buffers_.out.kind() == Operand::f32 ? 0xFFFFFFFFu : 0xFFFFu;
    for (int64_t n = 0; n < buffers_.capacity; ++n) {
      const int64_t first = n < num_records ? shape_.features : 0;
      for (int64_t f = first; f < buffers_.out.stride(); ++f)
        ASSERT_EQ(buffers_.out.bits(0, n, f), poison) << n << ", " << f;
    }
  }

  Shape shape_;
  Operand kind_;
  bool relu_;
  ProductBuffers buffers_;
  std::vector<float> x_values_, weight_values_, bias_;
};

void check(const Shape& shape, Operand kind, Operand out_kind, Values values = Values::normal, int num_ctas = 0) {
  Convolution convolution(shape, kind, out_kind, values, true, 7);
  const Task task = convolution.task();
  const ImplicitGemm gemm(std::span(&task, 1), shape.records);
  gemm.launch(shape.records, nullptr, nullptr, num_ctas);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  convolution.expect_right(shape.records);
}

const Shape kShapes[] = {
    {1, 1, 1, 1, 1},        // smallest
    {3, 5, 7, 3, 5},        // nothing a multiple of anything
    {40, 64, 16, 3, 130},   // 14 windows: 224 columns, features beyond a CTA
    {41, 72, 16, 5, 257},   // 12 windows: 240 columns, a second cluster with one feature
    {49, 136, 16, 7, 64},   // 10 windows
    {65, 64, 16, 9, 128},   // 8 windows: 256 columns
    {300, 64, 16, 16, 40},  // one window of all positions: stored as a plain product
    {33, 24, 5, 4, 20},     // 2 windows: as many records as can be staged
    {5, 16, 128, 1, 9},     // 128 windows: one record a half
    {5, 16, 131, 3, 9},     // 129 windows: a record spans both halves
    {3, 16, 200, 1, 17},    // 200 windows
    {3, 8, 300, 44, 17},    // 257 windows: two passes, the second with one window
    {2, 8, 512, 1, 12},     // 512 windows: two full passes
    {2, 8, 512, 512, 12},   // one window of 512 taps
};

TEST(ImplicitGemm, EveryShapeInEveryKind) {
  for (const Shape& shape : kShapes) {
    for (const Operand kind : {Operand::f16, Operand::bf16, Operand::split}) {
      for (const Operand out : {kind, Operand::f32}) check(shape, kind, out);
    }
  }
}

TEST(ImplicitGemm, PlainProducts) {
  for (const Shape& shape : {Shape{1, 8, 1, 1, 8}, Shape{255, 64, 1, 1, 256}, Shape{257, 200, 1, 1, 264},
                             Shape{1000, 128, 1, 1, 1000}, Shape{70, 64, 1, 1, 13}}) {
    for (const Operand kind : {Operand::f16, Operand::bf16, Operand::split}) {
      for (const Operand out : {kind, Operand::f32}) check(shape, kind, out);
    }
  }
}

TEST(ImplicitGemm, IntegersAreExact) {
  for (const Shape& shape : {Shape{50, 64, 16, 5, 70}, Shape{300, 512, 1, 1, 136}, Shape{3, 16, 200, 3, 20}}) {
    for (const Operand kind : {Operand::f16, Operand::bf16, Operand::split}) {
      Convolution convolution(shape, kind, Operand::f32, Values::integers, true, 11);
      const Task task = convolution.task();
      ImplicitGemm(std::span(&task, 1), shape.records).launch(shape.records, nullptr);
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      convolution.out().fetch();
      for (int64_t n = 0; n < shape.records; ++n) {
        for (int64_t f = 0; f < shape.features; ++f) {
          const double value = convolution.out_value(n, f);
          ASSERT_EQ(value, std::round(value));
          ASSERT_LE(convolution.error_over_bound(n, f) * 4 * 0x1p-21, 1e-9);  // equal, as far as doubles tell
        }
      }
    }
  }
}

TEST(ImplicitGemm, AnyNumberOfCtasComputesEverything) {
  for (const int num_ctas : {2, 4, 14, 66, 78, 132}) {
    check({65, 64, 16, 9, 700}, Operand::f16, Operand::f16, Values::normal, num_ctas);
  }
}

TEST(ImplicitGemm, ScaleIsUndone) {
  Convolution convolution({20, 64, 16, 3, 33}, Operand::f16, Operand::f32, Values::normal, false, 3);
  const Task plain = convolution.task();
  const Task halved = convolution.task(0.5f);
  ImplicitGemm(std::span(&plain, 1), 20).launch(20, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  convolution.expect_right(20);
  const double before = convolution.out_value(3, 3);
  ImplicitGemm(std::span(&halved, 1), 20).launch(20, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  convolution.out().fetch();
  EXPECT_NE(convolution.out_value(3, 3), before);
}

TEST(ImplicitGemm, TasksOfOneLaunchDoNotDisturbEachOther) {
  std::vector<std::unique_ptr<Convolution>> convolutions;
  std::vector<Task> tasks;
  for (const Shape& shape : {Shape{77, 64, 16, 3, 96}, Shape{77, 64, 16, 9, 40}, Shape{77, 200, 1, 1, 300},
                             Shape{77, 16, 150, 4, 10}, Shape{77, 64, 16, 16, 8}}) {
    convolutions.push_back(std::make_unique<Convolution>(shape, Operand::f16, Operand::f16, Values::normal, true, 5));
    tasks.push_back(convolutions.back()->task());
  }
  ImplicitGemm(tasks, 77).launch(77, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  for (const auto& convolution : convolutions) convolution->expect_right(77);
}

TEST(ImplicitGemm, FewerRecordsThanTheBuffersHoldAndACountOnTheDevice) {
  for (const bool on_device : {false, true}) {
    Convolution convolution({100, 64, 1, 1, 300}, Operand::f16, Operand::f16, Values::normal, true, 5, 3000);
    const Task task = convolution.task();
    const ImplicitGemm gemm(std::span(&task, 1), 3000);
    GuardedBuffer count(sizeof(int32_t));
    count.upload(std::vector<int32_t>{100});
    if (on_device) {
      gemm.launch(3000, nullptr, static_cast<const int32_t*>(count.data()));
    } else {
      gemm.launch(100, nullptr);
    }
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    convolution.expect_right(100);
  }
}

TEST(ImplicitGemm, ARecordsBitsDependOnItAlone) {
  for (const Operand kind : {Operand::f16, Operand::split}) {
    for (const int32_t taps : {3, 5, 7, 9, 16}) {
      Convolution convolution({100, 136, 16, taps, 70}, kind, Operand::f32, Values::normal, true, 9);
      Task task = convolution.task();
      const ImplicitGemm all(std::span(&task, 1), 100);
      all.launch(100, nullptr);
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      convolution.out().fetch();
      std::vector<uint32_t> first;
      for (int64_t n = 37; n < 100; ++n) first.push_back(convolution.out().bits(0, n, 41));
      // The same records from another place on: other tiles, other columns.
      task.x.data = static_cast<std::byte*>(task.x.data) + 37 * 16 * task.x.stride * 2;
      ImplicitGemm(std::span(&task, 1), 63).launch(63, nullptr, nullptr, 6);
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      convolution.out().fetch();
      for (int64_t n = 0; n < 63; ++n) ASSERT_EQ(convolution.out().bits(0, n, 41), first[static_cast<size_t>(n)]);
    }
  }
}

TEST(ImplicitGemm, TheBoundRejectsAWrongValue) {
  Convolution convolution({20, 64, 16, 3, 33}, Operand::f16, Operand::f16, Values::normal, false, 3);
  const Task task = convolution.task();
  ImplicitGemm(std::span(&task, 1), 20).launch(20, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  convolution.out().fetch();
  ASSERT_LE(convolution.error_over_bound(4, 5), 1.0);
  const uint32_t other = convolution.out().bits(0, 5, 5);
  ASSERT_NE(other, convolution.out().bits(0, 4, 5));
  convolution.out().set_bits(0, 4, 5, other);  // a row of another record
  EXPECT_GT(convolution.error_over_bound(4, 5), 1.0);
  convolution.out().set_bits(0, 4, 5, 0x7E00);  // NaN
  EXPECT_GT(convolution.error_over_bound(4, 5), 1.0);
}

TEST(ImplicitGemm, NoRecordsLaunchNothing) {
  Convolution convolution({5, 8, 4, 2, 8}, Operand::f16, Operand::f16, Values::normal, false, 3);
  const Task task = convolution.task();
  ImplicitGemm(std::span(&task, 1), 5).launch(0, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  convolution.expect_right(0);
}

TEST(ImplicitGemm, RefusesWhatItCannotDo) {
  Convolution convolution({5, 8, 4, 2, 8}, Operand::f16, Operand::f16, Values::normal, false, 3);
  const auto refuses = [&](auto change) {
    Task task = convolution.task();
    change(task);
    EXPECT_THROW(ImplicitGemm(std::span(&task, 1), 5), Error);
  };
  refuses([](Task& task) { task.channels = 7; });
  refuses([](Task& task) { task.taps = 5; });
  refuses([](Task& task) { task.positions = 513; });
  refuses([](Task& task) { task.out_features = 0; });
  refuses([](Task& task) { task.x.kind = Operand::bf16; });
  refuses([](Task& task) { task.x.stride = 12; });
  refuses([](Task& task) { task.weight.stride = 64; });
  refuses([](Task& task) { task.x.data = static_cast<std::byte*>(task.x.data) + 2; });
}

TEST(ClassifierSmall, ImplicitGemm) {
  for (const Operand kind : {Operand::f16, Operand::split}) {
    check({5, 24, 16, 3, 9}, kind, kind);
    check({2, 8, 140, 4, 9}, kind, Operand::f32);
    check({9, 72, 1, 1, 16}, kind, kind);
  }
  check({9, 72, 1, 1, 16}, Operand::bf16, Operand::bf16);
}

}  // namespace
}  // namespace tessera::testing
