#include "cpu/plain_gemm.h"

#include <gtest/gtest.h>

#include <thread>

#include "cpu/convert.h"
#include "cpu/gemm_kernel.h"
#include "tessera/core/buffer.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "unit/numeric_check.h"
#include "unit/random_values.h"

namespace tessera::cpu {
namespace {

using test::GuardedArray;

std::vector<GemmLibrary> libraries() {
  std::vector<GemmLibrary> all = {GemmLibrary::portable};
  if (default_gemm_library() == GemmLibrary::onednn) all.push_back(GemmLibrary::onednn);
  return all;
}

Buffer<std::byte> typed(const std::vector<float>& values, DType dtype) {
  Buffer<std::byte> bytes(values.size() * dtype_size(dtype));
  from_f32(values.data(), static_cast<int64_t>(values.size()), dtype, bytes.data());
  return bytes;
}

std::vector<float> read(const Buffer<std::byte>& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / dtype_size(dtype));
  to_f32(bytes.data(), dtype, static_cast<int64_t>(values.size()), values.data());
  return values;
}

// fp64 sums and the sums of absolute products.
void multiply(const std::vector<float>& a, const std::vector<float>& w, size_t depth, std::vector<double>& sums,
              std::vector<double>& magnitudes) {
  sums.clear();
  magnitudes.clear();
  for (size_t row = 0; row < a.size(); row += depth) {
    for (size_t column = 0; column < w.size(); column += depth) {
      double sum = 0;
      double magnitude = 0;
      for (size_t k = 0; k < depth; ++k) {
        sum += double{a[row + k]} * double{w[column + k]};
        magnitude += std::abs(double{a[row + k]} * double{w[column + k]});
      }
      sums.push_back(sum);
      magnitudes.push_back(magnitude);
    }
  }
}

TEST(PlainGemm, EveryHeightOfEveryKind) {
  for (const GemmLibrary library : libraries()) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1, 1}, {8, 8}, {40, 72}, {128, 264}, {33, 515}}) {
        const PlainGemm gemm({out, in, dtype}, library);
        const Buffer<std::byte> weights = typed(test::random_normal(static_cast<size_t>(out * in), 1.0f, 3), dtype);
        Buffer<std::byte> scratch(gemm.scratch_bytes());
        for (const int64_t height : gemm.heights()) {
          const Buffer<std::byte> a =
              typed(test::random_normal(static_cast<size_t>(height * in), 1.0f, 4), gemm.operand());
          GuardedArray<float> c(static_cast<size_t>(height * out));
          gemm.run(height, a.data(), weights.data(), c.data(), scratch.data());
          std::vector<double> sums;
          std::vector<double> magnitudes;
          multiply(read(a, gemm.operand()), read(weights, dtype), static_cast<size_t>(in), sums, magnitudes);
          EXPECT_TRUE(c.intact());
          // Four units of the magnitude hold for some 64 products added in a row; oneDNN adds all of them in a row.
          const double u_acc = test::kUnitF32 * std::max(1.0, std::sqrt(static_cast<double>(in)) / 8.0);
          EXPECT_TRUE(test::elements_within(c.span(), sums, magnitudes, test::kUnitF32, u_acc))
              << out << " x " << in << " height " << height << " " << dtype_name(dtype);
        }
      }
    }
  }
}

// One row among others, at any place, in a tile of any height: the same bits.
TEST(PlainGemm, RowsGiveTheSameBitsAtEveryHeight) {
  for (const GemmLibrary library : libraries()) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const auto& [out, in] : {std::pair<int64_t, int64_t>{128, 2048}, {128, 768}, {72, 392}, {8, 24}}) {
        if (library == GemmLibrary::portable && in > 400) continue;  // its parts are much shorter, and it is slow
        const PlainGemm gemm({out, in, dtype}, library);
        const DType operand = gemm.operand();
        const Buffer<std::byte> weights = typed(test::random_normal(static_cast<size_t>(out * in), 1.0f, 5), dtype);
        const size_t row_bytes = static_cast<size_t>(in) * dtype_size(operand);
        const Buffer<std::byte> row = typed(test::random_normal(static_cast<size_t>(in), 1.0f, 6), operand);
        Buffer<std::byte> scratch(gemm.scratch_bytes());
        std::vector<float> expected;
        for (const int64_t height : gemm.heights()) {
          Buffer<std::byte> a = typed(test::random_normal(static_cast<size_t>(height * in), 2.0f, 7), operand);
          std::vector<float> c(static_cast<size_t>(height * out));
          for (const int64_t place : {int64_t{0}, height / 2 + 1, height - 1}) {
            std::memcpy(a.data() + static_cast<size_t>(place) * row_bytes, row.data(), row_bytes);
          }
          gemm.run(height, a.data(), weights.data(), c.data(), scratch.data());
          for (const int64_t place : {int64_t{0}, height / 2 + 1, height - 1}) {
            const std::vector<float> got(c.begin() + place * out, c.begin() + (place + 1) * out);
            if (expected.empty()) expected = got;
            EXPECT_TRUE(test::same_bits(got, expected)) << "height " << height << " place " << place;
          }
        }
      }
    }
  }
}

TEST(PlainGemm, HeightsHoldTheRows) {
  const PlainGemm gemm({16, 16, DType::f32});
  EXPECT_GE(gemm.max_height(), 64);
  EXPECT_TRUE(std::is_sorted(gemm.heights().begin(), gemm.heights().end()));
  for (int64_t rows = 1; rows <= gemm.max_height(); ++rows) {
    EXPECT_GE(gemm.height_for(rows), rows);
    EXPECT_NE(std::find(gemm.heights().begin(), gemm.heights().end(), gemm.height_for(rows)), gemm.heights().end());
  }
  EXPECT_EQ(gemm.height_for(1), gemm.heights().front());
  EXPECT_THROW(gemm.height_for(0), ProgrammerError);
  EXPECT_THROW(gemm.height_for(gemm.max_height() + 1), ProgrammerError);
}

TEST(PlainGemm, SeveralThreadsAtOnce) {
  const PlainGemm gemm({128, 256, DType::bf16});
  const Buffer<std::byte> weights = typed(test::random_normal(128 * 256, 1.0f, 1), DType::bf16);
  const Buffer<std::byte> a = typed(test::random_normal(64 * 256, 1.0f, 2), gemm.operand());
  std::vector<std::vector<float>> results(4, std::vector<float>(64 * 128));
  std::vector<std::thread> threads;
  for (std::vector<float>& result : results) {
    threads.emplace_back([&] {
      Buffer<std::byte> scratch(gemm.scratch_bytes());
      for (int repeat = 0; repeat < 20; ++repeat) gemm.run(64, a.data(), weights.data(), result.data(), scratch.data());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& result : results) EXPECT_TRUE(test::same_bits(result, results[0]));
}

TEST(PlainGemm, RefusesWhatItCannotBe) {
  EXPECT_THROW(PlainGemm({0, 8, DType::f32}), ProgrammerError);
  EXPECT_THROW(PlainGemm({8, 0, DType::f32}), ProgrammerError);
  if (default_gemm_library() == GemmLibrary::portable) {
    EXPECT_THROW(PlainGemm({8, 8, DType::f32}, GemmLibrary::onednn), Error);
  }
}

}  // namespace
}  // namespace tessera::cpu
