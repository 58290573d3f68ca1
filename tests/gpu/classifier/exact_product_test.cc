// The implicit GEMM against the host model of the tensor cores, bit for bit: convolutions, plain products, split ones,
// and the bins of frequency space, which are plain products of one launch. What lies beside the operands is NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <random>

#include "gpu/classifier/product_buffers.h"
#include "gpu/classifier/spectrum_run.h"
#include "moe/judge/tensor_core.h"
#include "tessera/core/thread_pool.h"

namespace tessera::testing {
namespace {

namespace implicit_gemm = kernels::implicit_gemm;

using Shape = ProductShape;

// As max.NaN of the device for numbers: +0 is larger than -0.
float larger(float x, float y) {
  if (x == y) return std::signbit(x) ? y : x;
  return x > y ? x : y;
}

class ExactProduct {
 public:
  ExactProduct(const Shape& shape, Operand kind, Operand out_kind, bool relu, float scale, uint32_t seed)
      : shape_(shape), relu_(relu), scale_(scale), buffers_(shape, kind, out_kind, 8) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto drawn = [&](int64_t count) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float& value : values) value = normal(random);
      return values;
    };
    std::vector<float> x = drawn(shape.records * shape.positions * buffers_.channels),
                       weight = drawn(shape.features * buffers_.columns);
    for (size_t i = 0; i < x.size(); ++i) {
      if (static_cast<int64_t>(i) % buffers_.channels >= shape.channels) x[i] = 0.0f;
    }
    buffers_.x.upload(x, false);
    buffers_.weight.upload(weight, false);
    bias_ = drawn(shape.features);
    buffers_.bias.upload(bias_);
    buffers_.x.fetch();
    buffers_.weight.fetch();
  }

  implicit_gemm::Task task() const { return buffers_.task(scale_, relu_); }

  // x becomes what another kernel left; the bits stay as they are.
  void take_x(const OperandBuffer& from) {
    ASSERT_TRUE(from.kind() == buffers_.x.kind() && from.rows() == buffers_.x.rows() &&
                from.columns() == buffers_.x.columns());
    for (int plane = 0; plane < cta::num_planes(buffers_.x.kind()); ++plane) {
      for (int64_t row = 0; row < buffers_.x.rows(); ++row) {
        for (int64_t column = 0; column < buffers_.x.columns(); ++column)
          buffers_.x.set_bits(plane, row, column, from.bits(plane, row, column));
      }
    }
    buffers_.x.upload_fetched();
  }

  // [records, features], before they are rounded to the output's kind.
  std::vector<float> expected(ThreadPool& threads) const {
    const std::vector<float> sums = by_model(threads);
    const int64_t windows = shape_.positions - shape_.taps + 1;
    std::vector<float> values;
    for (int64_t n = 0; n < shape_.records; ++n) {
      for (int64_t f = 0; f < shape_.features; ++f) {
        float sum = -INFINITY;
        for (int64_t j = 0; j < windows; ++j)
          sum = larger(sum, sums[static_cast<size_t>((n * windows + j) * shape_.features + f)]);
        const float value = sum * scale_ + bias_[static_cast<size_t>(f)];  // two roundings: contraction is off
        values.push_back(relu_ ? larger(value, 0.0f) : value);
      }
    }
    return values;
  }

  // How many of the output's elements have other bits than the model's.
  int64_t num_different(ThreadPool& threads) {
    buffers_.out.fetch();
    const std::vector<float> values = expected(threads);
    int64_t different = 0;
    for (int64_t n = 0; n < shape_.records; ++n) {
      for (int64_t f = 0; f < shape_.features; ++f) {
        const float value = values[static_cast<size_t>(n * shape_.features + f)];
        for (int plane = 0; plane < cta::num_planes(buffers_.out.kind()); ++plane)
          different += buffers_.out.bits(plane, n, f) != operand_bits(buffers_.out.kind(), plane, value) ? 1 : 0;
      }
    }
    return different;
  }

  int64_t num_elements() const { return shape_.records * shape_.features; }
  // The host's copies are what the model multiplies.
  OperandBuffer& x() { return buffers_.x; }
  OperandBuffer& weight() { return buffers_.weight; }
  OperandBuffer& out() { return buffers_.out; }

 private:
  // K in the kernel's order: plane pair by plane pair, 64 channels by 64, tap by tap. The small products of a split
  // first.
  struct Planes {
    int x, weight;
  };
  std::vector<Planes> planes() const {
    if (buffers_.x.kind() != Operand::split) return {{0, 0}};
    return {{1, 0}, {0, 1}, {0, 0}};
  }

  std::vector<float> by_model(ThreadPool& threads) const {
    const int64_t steps = (buffers_.channels + 63) / 64, windows = shape_.positions - shape_.taps + 1;
    const int64_t depth = static_cast<int64_t>(planes().size()) * steps * shape_.taps * 64;
    std::vector<uint16_t> rows(static_cast<size_t>(shape_.records * windows * depth));
    std::vector<uint16_t> columns(static_cast<size_t>(shape_.features * depth));
    int64_t k = 0;
    for (const Planes& pair : planes()) {
      for (int64_t column = 0; column < steps * shape_.taps * 64; ++column, ++k) {
        const int64_t tap = column / 64 % shape_.taps, channel = column / 64 / shape_.taps * 64 + column % 64;
        for (int64_t row = 0; channel < buffers_.channels && row < shape_.records * windows; ++row) {
          const int64_t position = row / windows * shape_.positions + row % windows + tap;
          rows[static_cast<size_t>(row * depth + k)] =
              static_cast<uint16_t>(buffers_.x.bits(pair.x, position, channel));
        }
        for (int64_t f = 0; column < buffers_.columns && f < shape_.features; ++f)
          columns[static_cast<size_t>(f * depth + k)] =
              static_cast<uint16_t>(buffers_.weight.bits(pair.weight, f, column));
      }
    }
    const bool is_bf16 = buffers_.x.kind() == Operand::bf16;
    const auto rules = moe::tensor_core_rules(is_bf16 ? moe::TensorCoreType::bf16 : moe::TensorCoreType::f16);
    std::vector<float> sums(static_cast<size_t>(shape_.records * windows * shape_.features));
    constexpr int64_t kRowsAnItem = 64;
    const int64_t num_rows = shape_.records * windows;
    threads.run((num_rows + kRowsAnItem - 1) / kRowsAnItem, [&](int64_t item, int) {
      const int64_t begin = item * kRowsAnItem;
      moe::products(rules, {rows.data() + begin * depth, std::min(kRowsAnItem, num_rows - begin), depth, nullptr},
                    {columns.data(), shape_.features, depth, nullptr}, depth, sums.data() + begin * shape_.features,
                    shape_.features);
    });
    return sums;
  }

  Shape shape_;
  bool relu_;
  float scale_;
  ProductBuffers buffers_;
  std::vector<float> bias_;
};

const Shape kShapes[] = {
    {1, 1, 1, 1, 1},       {3, 5, 7, 3, 5},      {40, 64, 16, 3, 130}, {41, 72, 16, 5, 257}, {49, 136, 16, 7, 64},
    {65, 64, 16, 9, 128},  {60, 64, 16, 16, 40}, {33, 24, 5, 4, 20},   {5, 16, 128, 1, 9},   {5, 16, 131, 3, 9},
    {3, 16, 200, 1, 17},   {3, 8, 300, 44, 17},  {2, 8, 512, 1, 12},   {2, 8, 512, 512, 12}, {255, 64, 1, 1, 256},
    {257, 200, 1, 1, 264}, {70, 64, 1, 1, 13},   {64, 4096, 1, 1, 64},
};

TEST(ExactProducts, ConvolutionsAndPlainProductsInEveryKind) {
  ThreadPool threads(available_processors());
  for (const Shape& shape : kShapes) {
    for (const Operand kind : {Operand::f16, Operand::bf16, Operand::split}) {
      for (const Operand out : {kind, Operand::f32}) {
        ExactProduct product(shape, kind, out, out != Operand::f32, out == Operand::f32 ? 0.25f : 1.0f, 7);
        const implicit_gemm::Task task = product.task();
        implicit_gemm::ImplicitGemm(std::span(&task, 1), shape.records).launch(shape.records, nullptr);
        TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
        EXPECT_EQ(product.num_different(threads), 0) << "of " << product.num_elements() << ": " << shape << ", "
                                                     << operand_name(kind) << " to " << operand_name(out);
      }
    }
  }
}

// Bins as frequency space has them: the first and the last real, the others with twice as many rows of K.
TEST(ExactProducts, BinsOfOneLaunch) {
  ThreadPool threads(available_processors());
  for (const Operand kind : {Operand::f16, Operand::bf16, Operand::split}) {
    std::vector<std::unique_ptr<ExactProduct>> bins;
    std::vector<implicit_gemm::Task> tasks;
    for (int bin = 0; bin < 9; ++bin) {
      const bool is_real = bin == 0 || bin == 8;
      const Shape shape{130, is_real ? 256 : 512, 1, 1, is_real ? 96 : 192};
      bins.push_back(
          std::make_unique<ExactProduct>(shape, kind, Operand::f32, false, 1.0f, 20u + static_cast<uint32_t>(bin)));
      tasks.push_back(bins.back()->task());
    }
    implicit_gemm::ImplicitGemm(tasks, 130).launch(130, nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    for (const auto& bin : bins) EXPECT_EQ(bin->num_different(threads), 0) << operand_name(kind);
  }
}

// What frequency space multiplies: the bins of a transform on the device, and weights, all in one launch.
TEST(ExactProducts, SpectraOfATransform) {
  ThreadPool threads(available_processors());
  for (const Operand kind : {Operand::f16, Operand::bf16, Operand::split}) {
    const Operand out = kind == Operand::split ? Operand::f32 : kind;
    ForwardRun transform({.kind = kind, .records = 70, .channels = 72, .positions = 16});
    transform.run();
    ASSERT_EQ(transform.judge(), "");
    std::vector<std::unique_ptr<ExactProduct>> bins;
    std::vector<implicit_gemm::Task> tasks;
    for (int32_t b = 0; b < transform.spectrum().count(); ++b) {
      const OperandBuffer& bin = transform.spectrum().bin(b);
      const Shape shape{70, static_cast<int32_t>(bin.columns()), 1, 1, transform.spectrum().is_real(b) ? 60 : 120};
      bins.push_back(std::make_unique<ExactProduct>(shape, kind, out, false, 1.0f, 40u + static_cast<uint32_t>(b)));
      bins.back()->take_x(bin);
      tasks.push_back(bins.back()->task());
    }
    implicit_gemm::ImplicitGemm(tasks, 70).launch(70, nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    for (const auto& bin : bins) EXPECT_EQ(bin->num_different(threads), 0) << operand_name(kind);
  }
}

// A product that ran, and is judged after something was done to the output or to what the judge sees of the operands.
class PlantedProductErrors : public ::testing::Test {
 protected:
  void SetUp() override {
    for (ExactProduct* product : {&product_, &in_fp32_}) {
      const implicit_gemm::Task task = product->task();
      implicit_gemm::ImplicitGemm(std::span(&task, 1), kRecords).launch(kRecords, nullptr);
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      ASSERT_EQ(product->num_different(threads_), 0);
    }
  }

  static constexpr int64_t kRecords = 40, kFeatures = 130;
  ThreadPool threads_{available_processors()};
  ExactProduct product_{{kRecords, 64, 16, 3, kFeatures}, Operand::f16, Operand::f16, false, 1.0f, 3};
  ExactProduct in_fp32_{{kRecords, 64, 16, 3, kFeatures}, Operand::f16, Operand::f32, false, 1.0f, 3};
};

TEST_F(PlantedProductErrors, OneBit) {
  product_.out().set_bits(0, 7, 11, product_.out().bits(0, 7, 11) ^ 1u);
  product_.out().upload_fetched();
  EXPECT_EQ(product_.num_different(threads_), 1);
}

TEST_F(PlantedProductErrors, ANeighboursElement) {
  ASSERT_NE(product_.out().bits(0, 7, 12), product_.out().bits(0, 7, 11));
  product_.out().set_bits(0, 7, 11, product_.out().bits(0, 7, 12));
  product_.out().upload_fetched();
  EXPECT_EQ(product_.num_different(threads_), 1);
}

TEST_F(PlantedProductErrors, OneLostProduct) {
  // The device multiplied by a weight that the judge does not see.
  ASSERT_NE(product_.weight().bits(0, 11, 5) & 0x7FFFu, 0u);
  product_.weight().set_bits(0, 11, 5, 0);
  const int64_t lost = product_.num_different(threads_);
  EXPECT_GT(lost, 0);
  EXPECT_LE(lost, kRecords);  // one feature of every record
}

TEST_F(PlantedProductErrors, OrderOfK) {
  // Two instructions' worth of channels change places in x and in the weights: the same products in another order.
  for (OperandBuffer* operand : {&in_fp32_.x(), &in_fp32_.weight()}) {
    for (int64_t row = 0; row < operand->rows(); ++row) {
      for (int64_t begin = 0; begin < operand->columns(); begin += 64) {
        for (int64_t i = 0; i < 16; ++i) {
          const uint32_t first = operand->bits(0, row, begin + i), second = operand->bits(0, row, begin + 32 + i);
          operand->set_bits(0, row, begin + i, second);
          operand->set_bits(0, row, begin + 32 + i, first);
        }
      }
    }
  }
  EXPECT_GT(in_fp32_.num_different(threads_), kRecords * kFeatures / 4);  // about half, on one GPU
}

TEST_F(PlantedProductErrors, AWrongRounding) {
  // Cut to fp16 instead of rounded: half of the elements become other ones.
  const std::vector<float> values = product_.expected(threads_);
  for (int64_t n = 0; n < kRecords; ++n) {
    for (int64_t f = 0; f < kFeatures; ++f) {
      const uint32_t bits = std::bit_cast<uint32_t>(values[static_cast<size_t>(n * kFeatures + f)]) & 0xFFFFE000u;
      product_.out().set_bits(0, n, f, operand_bits(Operand::f16, 0, std::bit_cast<float>(bits)));
    }
  }
  product_.out().upload_fetched();
  EXPECT_GT(product_.num_different(threads_), kRecords * kFeatures / 4);
}

}  // namespace
}  // namespace tessera::testing
