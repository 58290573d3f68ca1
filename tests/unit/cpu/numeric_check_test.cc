// The checks of numeric_check.h must fail for what they are there to find.
#include "unit/numeric_check.h"

#include <limits>

#include "unit/random_values.h"

namespace tessera::test {
namespace {

constexpr size_t kRows = 300;
constexpr size_t kColumns = 96;
constexpr size_t kDepth = 40;
constexpr size_t kExperts = 4;

// sum over experts of weight_e * (a W_e^T), as fp32 and as fp64, with the magnitudes of the sums.
struct Layer {
  std::vector<float> out = std::vector<float>(kRows * kColumns);
  std::vector<double> reference = std::vector<double>(kRows * kColumns);
  std::vector<double> magnitude = std::vector<double>(kRows * kColumns);
  std::vector<float> without_last_expert = std::vector<float>(kRows * kColumns);

  Layer() {
    const std::vector<float> a = random_normal(kRows * kDepth, 1.0f, 1);
    const std::vector<float> w = random_normal(kExperts * kColumns * kDepth, 0.1f, 2);
    for (size_t i = 0; i < out.size(); ++i) {
      const float* row = a.data() + i / kColumns * kDepth;
      for (size_t e = 0; e < kExperts; ++e) {
        const float* weights = w.data() + (e * kColumns + i % kColumns) * kDepth;
        without_last_expert[i] = out[i];
        for (size_t k = 0; k < kDepth; ++k) {
          out[i] += 0.25f * row[k] * weights[k];
          reference[i] += 0.25 * row[k] * weights[k];
          magnitude[i] += std::abs(0.25 * row[k] * weights[k]);
        }
      }
    }
  }

  void expect_found(const std::vector<float>& wrong, const char* what) const {
    EXPECT_FALSE(rows_within(wrong, reference, kColumns, kRowLimitF32)) << what;
    EXPECT_FALSE(elements_within(wrong, reference, magnitude, kUnitF32, kUnitF32)) << what;
    EXPECT_FALSE(exactly(wrong, reference)) << what;
    EXPECT_FALSE(same_bits(wrong, out)) << what;
  }
};

const Layer& layer() {
  static const Layer made;
  return made;
}

TEST(NumericCheck, AcceptsRoundingErrors) {
  EXPECT_TRUE(rows_within(layer().out, layer().reference, kColumns, kRowLimitF32));
  EXPECT_TRUE(elements_within(layer().out, layer().reference, layer().magnitude, kUnitF32, kUnitF32));
  EXPECT_TRUE(same_bits(layer().out, layer().out));
}

TEST(NumericCheck, FindsAZeroedOutput) {
  layer().expect_found(std::vector<float>(kRows * kColumns), "zeroed");
  const std::vector<float> logits = {0.8f, -2.4f};
  EXPECT_TRUE(logits_within(logits, logits, kLogitTauBf16));
  EXPECT_FALSE(logits_within(std::vector<float>(2), logits, kLogitTauBf16));
}

TEST(NumericCheck, FindsADroppedExpert) { layer().expect_found(layer().without_last_expert, "dropped expert"); }

TEST(NumericCheck, FindsSwappedRows) {
  std::vector<float> wrong = layer().out;
  std::swap_ranges(wrong.begin() + 17 * kColumns, wrong.begin() + 18 * kColumns, wrong.begin() + 201 * kColumns);
  layer().expect_found(wrong, "swapped rows");
}

TEST(NumericCheck, FindsAWrongPatch) {
  std::vector<float> wrong = layer().out;
  for (size_t row = 128; row < 256; ++row) {
    for (size_t column = 32; column < 64; ++column) wrong[row * kColumns + column] *= 1.01f;
  }
  layer().expect_found(wrong, "128 x 32 patch one per cent off");
}

TEST(NumericCheck, FindsASingleWrongElement) {
  std::vector<float> wrong = layer().out;
  wrong[12'345] += 0.01f;
  EXPECT_FALSE(elements_within(wrong, layer().reference, layer().magnitude, kUnitF32, kUnitF32));
  EXPECT_FALSE(rows_within(wrong, layer().reference, kColumns, kRowLimitF32));
}

TEST(NumericCheck, NotANumberAlwaysFails) {
  std::vector<float> wrong = layer().out;
  wrong[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(elements_within(wrong, layer().reference, layer().magnitude, kUnitF32, kUnitF32));
  EXPECT_FALSE(rows_within(wrong, layer().reference, kColumns, kRowLimitF32));
  EXPECT_FALSE(exactly(wrong, layer().reference));
  const std::vector<float> nan = {std::numeric_limits<float>::quiet_NaN()};
  EXPECT_FALSE(logits_within(nan, std::vector<float>{0.0f}, kLogitTauBf16));
  EXPECT_FALSE(logits_within(std::vector<float>{0.0f}, nan, kLogitTauBf16));
}

TEST(NumericCheck, ARowWhoseReferenceIsZeroIsExactlyZero) {
  const std::vector<double> zeros(3);
  EXPECT_TRUE(rows_within(std::vector<float>(3), zeros, 3, kRowLimitF32));
  EXPECT_FALSE(rows_within(std::vector<float>{0, 1e-30f, 0}, zeros, 3, kRowLimitF32));
}

TEST(NumericCheck, SizesMustAgree) {
  const std::vector<float> two(2);
  const std::vector<double> three(3);
  EXPECT_FALSE(rows_within(two, three, 1, 1));
  EXPECT_FALSE(elements_within(two, three, three, 1, 1));
  EXPECT_FALSE(exactly(two, three));
  EXPECT_FALSE(same_bits(two, std::vector<float>(3)));
  EXPECT_FALSE(logits_within(two, std::vector<float>(3), 1));
}

TEST(NumericCheck, SameBitsTellsZerosApart) {
  EXPECT_FALSE(same_bits(std::vector<float>{0.0f}, std::vector<float>{-0.0f}));
}

TEST(GuardedArray, FindsWhatWasNotWrittenAndWhatWasWrittenBeside) {
  GuardedArray<float> array(5);
  EXPECT_FALSE(array.intact());  // nothing written
  std::fill_n(array.data(), 4, 1.0f);
  EXPECT_FALSE(array.intact());  // one element missing
  array.data()[4] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(array.intact());  // a NaN is a value
  array.data()[5] = 1.0f;
  EXPECT_FALSE(array.intact());
  array.poison();
  std::fill_n(array.data() - 1, 6, 1.0f);
  EXPECT_FALSE(array.intact());
}

}  // namespace
}  // namespace tessera::test
