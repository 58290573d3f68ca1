// The implicit GEMM against the host model of the tensor cores, bit for bit: convolutions, plain products, split ones,
// and the bins of frequency space, which are plain products of one launch. What lies beside the operands is NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <random>

#include "cuda/kernels/implicit_gemm/launch.h"
#include "gpu/classifier/operand_buffer.h"
#include "moe/judge/tensor_core.h"
#include "tessera/core/thread_pool.h"

namespace tessera::testing {
namespace {

namespace implicit_gemm = kernels::implicit_gemm;

struct Shape {
  int64_t records;
  int32_t channels, positions, taps, features;
};

// As max.NaN of the device for numbers: +0 is larger than -0.
float larger(float x, float y) {
  if (x == y) return std::signbit(x) ? y : x;
  return x > y ? x : y;
}

class ExactProduct {
 public:
  ExactProduct(const Shape& shape, Operand kind, Operand out_kind, bool relu, float scale, uint32_t seed)
      : shape_(shape),
        relu_(relu),
        scale_(scale),
        channels_(cta::padded_stride(shape.channels)),
        columns_(shape.taps == 1 ? channels_ : implicit_gemm::weight_columns(channels_, shape.taps)),
        x_(kind, shape.records * shape.positions, channels_, channels_ + 8),
        weight_(kind, shape.features, columns_, columns_ + 8),
        out_(out_kind, shape.records, shape.features, cta::padded_stride(shape.features) + 8),
        bias_memory_(static_cast<size_t>(shape.features) * sizeof(float)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto drawn = [&](int64_t count) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float& value : values) value = normal(random);
      return values;
    };
    std::vector<float> x = drawn(shape.records * shape.positions * channels_),
                       weight = drawn(shape.features * columns_);
    for (size_t i = 0; i < x.size(); ++i) {
      if (static_cast<int64_t>(i) % channels_ >= shape.channels) x[i] = 0.0f;
    }
    x_.upload(x, false);
    weight_.upload(weight, false);
    bias_ = drawn(shape.features);
    bias_memory_.upload(bias_);
    x_.fetch();
    weight_.fetch();
  }

  implicit_gemm::Task task() const {
    implicit_gemm::Task task;
    task.x = x_.view();
    task.weight = weight_.view();
    task.channels = static_cast<int32_t>(channels_);
    task.positions = shape_.positions;
    task.taps = shape_.taps;
    task.out_features = shape_.features;
    task.scale = scale_;
    task.bias = static_cast<const float*>(bias_memory_.data());
    task.relu = relu_;
    task.out = out_.view();
    return task;
  }

  // How many of the output's elements have other bits than the model's.
  int64_t num_different(ThreadPool& threads) {
    out_.fetch();
    const std::vector<float> sums = by_model(threads);
    const int64_t windows = shape_.positions - shape_.taps + 1;
    int64_t different = 0;
    for (int64_t n = 0; n < shape_.records; ++n) {
      for (int64_t f = 0; f < shape_.features; ++f) {
        float sum = -INFINITY;
        for (int64_t j = 0; j < windows; ++j)
          sum = larger(sum, sums[static_cast<size_t>((n * windows + j) * shape_.features + f)]);
        float value = sum * scale_ + bias_[static_cast<size_t>(f)];  // two roundings: contraction is off
        if (relu_) value = larger(value, 0.0f);
        for (int plane = 0; plane < cta::num_planes(out_.kind()); ++plane)
          different += out_.bits(plane, n, f) != operand_bits(out_.kind(), plane, value) ? 1 : 0;
      }
    }
    return different;
  }

  int64_t num_elements() const { return shape_.records * shape_.features; }
  OperandBuffer& out() { return out_; }

 private:
  // K in the kernel's order: plane pair by plane pair, 64 channels by 64, tap by tap. The small products of a split
  // first.
  struct Planes {
    int x, weight;
  };
  std::vector<Planes> planes() const {
    if (x_.kind() != Operand::split) return {{0, 0}};
    return {{1, 0}, {0, 1}, {0, 0}};
  }

  std::vector<float> by_model(ThreadPool& threads) const {
    const int64_t steps = (channels_ + 63) / 64, windows = shape_.positions - shape_.taps + 1;
    const int64_t depth = static_cast<int64_t>(planes().size()) * steps * shape_.taps * 64;
    std::vector<uint16_t> rows(static_cast<size_t>(shape_.records * windows * depth));
    std::vector<uint16_t> columns(static_cast<size_t>(shape_.features * depth));
    int64_t k = 0;
    for (const Planes& pair : planes()) {
      for (int64_t column = 0; column < steps * shape_.taps * 64; ++column, ++k) {
        const int64_t tap = column / 64 % shape_.taps, channel = column / 64 / shape_.taps * 64 + column % 64;
        for (int64_t row = 0; channel < channels_ && row < shape_.records * windows; ++row) {
          const int64_t position = row / windows * shape_.positions + row % windows + tap;
          rows[static_cast<size_t>(row * depth + k)] = static_cast<uint16_t>(x_.bits(pair.x, position, channel));
        }
        for (int64_t f = 0; column < columns_ && f < shape_.features; ++f)
          columns[static_cast<size_t>(f * depth + k)] = static_cast<uint16_t>(weight_.bits(pair.weight, f, column));
      }
    }
    const bool is_bf16 = x_.kind() == Operand::bf16;
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
  int64_t channels_, columns_;
  OperandBuffer x_, weight_, out_;
  std::vector<float> bias_;
  GuardedBuffer bias_memory_;
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
        EXPECT_EQ(product.num_different(threads), 0)
            << "of " << product.num_elements() << ": " << shape.records << " records, " << shape.channels
            << " channels, " << shape.positions << " positions, " << shape.taps << " taps, " << shape.features
            << " features, " << operand_name(kind) << " to " << operand_name(out);
      }
    }
  }
}

// Bins as frequency space has them: the first and the last real, the others with twice as many rows of K.
TEST(ExactProducts, BinsOfOneLaunch) {
  ThreadPool threads(available_processors());
  for (const Operand kind : {Operand::f16, Operand::split}) {
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

TEST(ExactProducts, OneChangedBitShows) {
  ThreadPool threads(available_processors());
  ExactProduct product({40, 64, 16, 3, 130}, Operand::f16, Operand::f16, true, 1.0f, 3);
  const implicit_gemm::Task task = product.task();
  implicit_gemm::ImplicitGemm(std::span(&task, 1), 40).launch(40, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  ASSERT_EQ(product.num_different(threads), 0);
  product.out().fetch();
  product.out().set_bits(0, 7, 11, product.out().bits(0, 7, 11) ^ 1u);
  product.out().upload_fetched();
  EXPECT_EQ(product.num_different(threads), 1);
}

}  // namespace
}  // namespace tessera::testing
