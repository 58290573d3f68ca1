#include "cpu/gemm.h"

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <thread>

#include "cpu/gemm_kernel.h"
#include "tessera/core/buffer.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "unit/exhaustive.h"
#include "unit/numeric_check.h"
#include "unit/random_values.h"

namespace tessera::cpu {
namespace {

using test::GuardedArray;

struct Variant {
  GemmLibrary library;
  DType operand;
};

// What this build and processor have.
std::vector<Variant> variants() {
  std::vector<Variant> all = {{GemmLibrary::portable, DType::f32}};
  if (default_gemm_library() == GemmLibrary::onednn) all.push_back({GemmLibrary::onednn, DType::f32});
  if (gemm_supports_bf16()) all.push_back({GemmLibrary::onednn, DType::bf16});
  return all;
}

std::string name_of(const Variant& variant) {
  return std::string(variant.library == GemmLibrary::onednn ? "oneDNN " : "portable ") +
         std::string(dtype_name(variant.operand));
}

struct Shape {
  int64_t rows, out, in;
};

// Rows: those of the classifier's tiles (64 to 256) and small ones. Out and in: one, below, at and beyond the width of
// vectors, panels (32), cache blocks (256) and AMX tiles (16 x 32), and the tails between them.
const Shape kShapes[] = {{1, 1, 1},      {1, 5, 7},      {3, 2, 1},     {8, 17, 33},   {16, 16, 32},
                         {64, 1, 300},   {64, 4, 512},   {64, 33, 257}, {70, 96, 256}, {80, 31, 130},
                         {112, 128, 64}, {128, 63, 511}, {224, 40, 70}};

// The operands that a product sees, as bytes.
std::vector<std::byte> operands(const std::vector<float>& values, DType operand) {
  std::vector<std::byte> bytes(values.size() * dtype_size(operand));
  for (size_t i = 0; i < values.size(); ++i) {
    if (operand == DType::f32) {
      std::memcpy(bytes.data() + i * 4, &values[i], 4);
    } else {
      const uint16_t rounded = f32_to_bf16(values[i]);
      std::memcpy(bytes.data() + i * 2, &rounded, 2);
    }
  }
  return bytes;
}

// Runs with guarded scratch memory, so that a product that uses more than it asked for is found.
void run(const PackedGemm& gemm, const std::vector<float>& a, float* c) {
  const std::vector<std::byte> bytes = operands(a, gemm.spec().operand);
  Buffer<std::byte> input(bytes.size());
  std::copy(bytes.begin(), bytes.end(), input.begin());
  constexpr size_t kGuard = 256;
  Buffer<std::byte> scratch(gemm.scratch_bytes() + kGuard);
  std::fill(scratch.begin(), scratch.end(), std::byte{0xAB});
  gemm.run(input.data(), c, scratch.data());
  EXPECT_TRUE(std::all_of(scratch.begin() + gemm.scratch_bytes(), scratch.end(),
                          [](std::byte byte) { return byte == std::byte{0xAB}; }));
}

struct Product {
  std::vector<double> values, magnitudes;
};

Product reference(const Shape& shape, const std::vector<float>& a, const std::vector<float>& w,
                  const std::vector<float>& initial) {
  Product product;
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t out = 0; out < shape.out; ++out) {
      double sum = initial.empty() ? 0 : initial[static_cast<size_t>(row * shape.out + out)];
      double magnitude = std::abs(sum);
      for (int64_t in = 0; in < shape.in; ++in) {
        const double term =
            double{a[static_cast<size_t>(row * shape.in + in)]} * w[static_cast<size_t>(out * shape.in + in)];
        sum += term;
        magnitude += std::abs(term);
      }
      product.values.push_back(sum);
      product.magnitudes.push_back(magnitude);
    }
  }
  return product;
}

TEST(PackedGemm, IsExactForIntegers) {
  for (const Variant& variant : variants()) {
    for (const Shape& shape : kShapes) {
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(str_cat(name_of(variant), " ", shape.rows, "x", shape.out, "x", shape.in, " ", accumulate));
        const auto a = test::random_integers(static_cast<size_t>(shape.rows * shape.in), 4, 1);
        const auto w = test::random_integers(static_cast<size_t>(shape.out * shape.in), 2, 2);
        std::vector<float> initial;
        if (accumulate) initial = test::random_integers(static_cast<size_t>(shape.rows * shape.out), 1000, 3);
        const PackedGemm gemm({shape.rows, shape.out, shape.in, variant.operand, accumulate}, {w.data(), shape.in, 1},
                              variant.library);
        GuardedArray<float> c(static_cast<size_t>(shape.rows * shape.out));
        std::copy(initial.begin(), initial.end(), c.data());
        run(gemm, a, c.data());
        EXPECT_TRUE(c.intact());
        EXPECT_TRUE(test::exactly(c.span(), reference(shape, a, w, initial).values));
      }
    }
  }
}

TEST(PackedGemm, StaysWithinTheRoundingBounds) {
  for (const Variant& variant : variants()) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(str_cat(name_of(variant), " ", shape.rows, "x", shape.out, "x", shape.in));
      const auto a =
          test::rounded(test::random_normal(static_cast<size_t>(shape.rows * shape.in), 1, 4), variant.operand);
      const auto w = test::random_normal(static_cast<size_t>(shape.out * shape.in), 1, 5);
      const PackedGemm gemm({shape.rows, shape.out, shape.in, variant.operand}, {w.data(), shape.in, 1},
                            variant.library);
      GuardedArray<float> c(static_cast<size_t>(shape.rows * shape.out));
      run(gemm, a, c.data());
      EXPECT_TRUE(c.intact());
      const Product expected = reference(shape, a, test::rounded(w, variant.operand), {});
      EXPECT_TRUE(
          test::elements_within(c.span(), expected.values, expected.magnitudes, test::kUnitF32, test::kUnitF32));
    }
  }
}

TEST(PackedGemm, TakesWeightsWithAnyStrides) {
  const Shape shape = {16, 21, 37};
  const auto a = test::random_integers(static_cast<size_t>(shape.rows * shape.in), 4, 6);
  const auto w = test::random_integers(static_cast<size_t>(shape.out * shape.in), 2, 7);
  const std::vector<double> expected = reference(shape, a, w, {}).values;
  // As tap 2 of a convolution of width 5, [out][in][5], and transposed, [in][out].
  std::vector<float> taps(w.size() * 5, 99.0f);
  std::vector<float> transposed(w.size());
  for (int64_t out = 0; out < shape.out; ++out) {
    for (int64_t in = 0; in < shape.in; ++in) {
      const float value = w[static_cast<size_t>(out * shape.in + in)];
      taps[static_cast<size_t>((out * shape.in + in) * 5 + 2)] = value;
      transposed[static_cast<size_t>(in * shape.out + out)] = value;
    }
  }
  for (const Variant& variant : variants()) {
    for (const WeightView& view :
         {WeightView{taps.data() + 2, shape.in * 5, 5}, WeightView{transposed.data(), 1, shape.out}}) {
      const PackedGemm gemm({shape.rows, shape.out, shape.in, variant.operand}, view, variant.library);
      GuardedArray<float> c(static_cast<size_t>(shape.rows * shape.out));
      run(gemm, a, c.data());
      EXPECT_TRUE(test::exactly(c.span(), expected)) << name_of(variant);
    }
  }
}

// Everything that the library promises about equal bits rests on this: what stands in the other rows of a tile, and
// where in the tile a row stands, must not show in its result.
void expect_rows_are_independent(const Variant& variant, const Shape& shape, bool accumulate) {
  const size_t in = static_cast<size_t>(shape.in);
  const size_t out = static_cast<size_t>(shape.out);
  const size_t rows = static_cast<size_t>(shape.rows);
  const auto w = test::random_normal(out * in, 1, 8);
  const PackedGemm gemm({shape.rows, shape.out, shape.in, variant.operand, accumulate}, {w.data(), shape.in, 1},
                        variant.library);
  const auto row = test::random_normal(in, 1, 9);
  const auto multiply = [&](const std::vector<float>& a) {
    std::vector<float> c(rows * out, accumulate ? 0.7f : std::numeric_limits<float>::quiet_NaN());
    run(gemm, a, c.data());
    return c;
  };
  const auto row_of = [&](const std::vector<float>& c, size_t i) { return std::span(c).subspan(i * out, out); };

  std::vector<float> equal_rows;
  for (size_t i = 0; i < rows; ++i) equal_rows.insert(equal_rows.end(), row.begin(), row.end());
  const std::vector<float> expected = multiply(equal_rows);
  for (size_t i = 1; i < rows; ++i) ASSERT_TRUE(test::same_bits(row_of(expected, i), row_of(expected, 0))) << i;

  const float inf = std::numeric_limits<float>::infinity();
  for (const size_t place : {size_t{0}, rows / 3, rows / 2, rows - 1}) {
    auto random = test::random_normal(rows * in, 3, 10 + place);
    std::vector<float> bad(rows * in, place % 2 == 0 ? inf : std::numeric_limits<float>::quiet_NaN());
    for (std::vector<float>* neighbours : {&random, &bad}) {
      std::copy(row.begin(), row.end(), neighbours->begin() + static_cast<std::ptrdiff_t>(place * in));
      const std::vector<float> c = multiply(*neighbours);
      ASSERT_TRUE(test::same_bits(row_of(c, place), row_of(expected, 0))) << "row " << place;
    }
  }
}

TEST(PackedGemm, ARowDependsOnThatRowAlone) {
  std::vector<int64_t> heights = {1, 2, 8, 30, 44, 64, 70, 94, 126, 128, 160, 192, 224, 252, 256};
  if (testing::kExhaustiveDivisor > 1) heights = {1, 30, 64, 126, 256};
  for (const Variant& variant : variants()) {
    for (const int64_t rows : heights) {
      for (const auto& [out, in] : {std::pair<int64_t, int64_t>{33, 257}, {64, 1024}, {5, 7}, {16, 64}}) {
        for (const bool accumulate : {false, true}) {
          SCOPED_TRACE(str_cat(name_of(variant), " ", rows, "x", out, "x", in, accumulate ? " accumulated" : ""));
          expect_rows_are_independent(variant, {rows, out, in}, accumulate);
        }
      }
    }
  }
}

// A kernel that treats its last row differently, by one unit in the last place of one column.
class UnevenKernel final : public GemmKernel {
 public:
  UnevenKernel(const GemmSpec& spec, const std::vector<float>& weights)
      : spec_(spec), even_(make_portable_gemm(spec, {weights.data(), spec.in_features, 1})) {}
  size_t scratch_bytes() const override { return 0; }
  size_t packed_bytes() const override { return 0; }
  void run(const void* a, float* c, std::byte* scratch) const override {
    even_->run(a, c, scratch);
    float& last = c[spec_.rows * spec_.out_features - 1];
    last = std::nextafter(last, 1e30f);
  }

 private:
  GemmSpec spec_;
  std::unique_ptr<const GemmKernel> even_;
};

TEST(PackedGemm, AKernelThatTreatsRowsDifferentlyIsFound) {
  for (const GemmSpec& spec : {GemmSpec{8, 5, 7}, GemmSpec{64, 1, 1}, GemmSpec{126, 2000, 30}}) {
    const auto w = test::random_normal(static_cast<size_t>(spec.out_features * spec.in_features), 1, 15);
    EXPECT_TRUE(gives_equal_rows(spec, *make_portable_gemm(spec, {w.data(), spec.in_features, 1})));
    EXPECT_FALSE(gives_equal_rows(spec, UnevenKernel(spec, w)));
  }
}

// oneDNN chooses its kernels by the processor, once: this program again, as on one that has AVX2 alone.
TEST(PackedGemm, ARowDependsOnThatRowAloneWithAvx2Too) {
  if (default_gemm_library() != GemmLibrary::onednn) GTEST_SKIP() << "a build without oneDNN";
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string command = "ONEDNN_MAX_CPU_ISA=AVX2 '" + program +
                              "' --gtest_filter=PackedGemm.ARowDependsOnThatRowAlone --gtest_output= >/dev/null 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

TEST(PackedGemm, ManyThreadsMayRunOneProduct) {
  const Shape shape = {64, 96, 512};
  const auto a = test::random_normal(static_cast<size_t>(shape.rows * shape.in), 1, 11);
  const auto w = test::random_normal(static_cast<size_t>(shape.out * shape.in), 1, 12);
  for (const Variant& variant : variants()) {
    const PackedGemm gemm({shape.rows, shape.out, shape.in, variant.operand}, {w.data(), shape.in, 1}, variant.library);
    std::vector<std::vector<float>> results(4, std::vector<float>(static_cast<size_t>(shape.rows * shape.out)));
    std::vector<std::thread> threads;
    for (auto& result : results) {
      threads.emplace_back([&] {
        for (int i = 0; i < 20; ++i) run(gemm, a, result.data());
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& result : results) EXPECT_TRUE(test::same_bits(result, results.front())) << name_of(variant);
  }
}

TEST(PackedGemm, KeepsNoPointerToTheWeights) {
  const Shape shape = {8, 40, 70};
  const auto a = test::random_integers(static_cast<size_t>(shape.rows * shape.in), 4, 13);
  auto w = test::random_integers(static_cast<size_t>(shape.out * shape.in), 2, 14);
  const std::vector<double> expected = reference(shape, a, w, {}).values;
  for (const Variant& variant : variants()) {
    std::vector<float> weights = w;
    PackedGemm made({shape.rows, shape.out, shape.in, variant.operand}, {weights.data(), shape.in, 1}, variant.library);
    std::fill(weights.begin(), weights.end(), 1e9f);
    const PackedGemm gemm = std::move(made);
    EXPECT_GE(gemm.packed_bytes(), w.size() * dtype_size(variant.operand));
    GuardedArray<float> c(static_cast<size_t>(shape.rows * shape.out));
    run(gemm, a, c.data());
    EXPECT_TRUE(test::exactly(c.span(), expected)) << name_of(variant);
  }
}

TEST(PackedGemm, RefusesWhatItCannotDo) {
  const std::vector<float> w(64);
  EXPECT_THROW(PackedGemm({0, 8, 8}, {w.data(), 8, 1}), ProgrammerError);
  EXPECT_THROW(PackedGemm({8, 0, 8}, {w.data(), 8, 1}), ProgrammerError);
  EXPECT_THROW(PackedGemm({8, 8, 0}, {w.data(), 8, 1}), ProgrammerError);
  EXPECT_THROW(PackedGemm({8, 8, 8, DType::f16}, {w.data(), 8, 1}), ProgrammerError);
  EXPECT_THROW(PackedGemm({8, 8, 8, DType::bf16}, {w.data(), 8, 1}, GemmLibrary::portable), Error);
  if (default_gemm_library() == GemmLibrary::portable) {
    EXPECT_FALSE(gemm_supports_bf16());
    EXPECT_THROW(PackedGemm({8, 8, 8}, {w.data(), 8, 1}, GemmLibrary::onednn), Error);
    EXPECT_EQ(gemm_library_name(), "portable loops");
  } else {
    EXPECT_EQ(gemm_library_name().find("oneDNN "), 0u);
  }
}

}  // namespace
}  // namespace tessera::cpu
