#include "cpu/convolution.h"

#include <limits>
#include <numeric>

#include "stage_reference.h"
#include "tessera/core/check.h"
#include "unit/numeric_check.h"

namespace tessera::cpu {
namespace {

using test::GuardedArray;

size_t record_size(const ConvolutionShape& shape) { return static_cast<size_t>(shape.channels * shape.positions); }
size_t feature_size(const ConvolutionShape& shape) { return static_cast<size_t>(shape.num_features()); }

std::string name_of(const ConvolutionShape& shape, DType operand) {
  std::string name =
      str_cat(shape.channels, " channels, ", shape.positions, " positions, ", shape.filters, " filters,");
  for (const int64_t width : shape.widths) name += str_cat(" ", width);
  return str_cat(name, " ", dtype_name(operand));
}

std::vector<float> run(Convolution& convolution, const ConvolutionShape& shape, const std::vector<float>& records) {
  const auto num_records = static_cast<int64_t>(records.size() / record_size(shape));
  GuardedArray<float> features(static_cast<size_t>(num_records) * feature_size(shape));
  GuardedArray<uint8_t> finite(static_cast<size_t>(num_records));
  convolution.run_embeddings(records.data(), num_records, features.data(), finite.data());
  EXPECT_TRUE(features.intact());
  EXPECT_TRUE(finite.intact());
  EXPECT_TRUE(std::all_of(finite.span().begin(), finite.span().end(), [](uint8_t flag) { return flag == 1; }));
  return {features.span().begin(), features.span().end()};
}

TEST(ConvolutionPolicy, FullSizeModel) {
  const ConvolutionPolicy policy = select_policy({4096, 16, 1024, {3, 5, 7, 9}});
  EXPECT_EQ(policy, (ConvolutionPolicy{16, {14, 12, 10, 8}}));
  std::ostringstream text;
  text << policy;
  EXPECT_EQ(text.str(), "tiles of 16 records, products of 224 192 160 128 rows");
}

TEST(ConvolutionPolicy, ProductsAreNeitherTinyNorHuge) {
  for (int64_t positions = 1; positions <= 400; ++positions) {
    for (const int64_t width : {int64_t{1}, (positions + 1) / 2, positions}) {
      const ConvolutionPolicy policy = select_policy({4, positions, 4, {1, width}});
      for (const int64_t windows : policy.windows_per_product) {
        ASSERT_GE(windows, 1);
        ASSERT_GE(windows * policy.records_per_tile, 64) << positions << " " << width;
        ASSERT_LE(windows * policy.records_per_tile, 256) << positions << " " << width;
      }
    }
  }
}

TEST(Convolution, IsExactForIntegers) {
  ThreadPool pool(3);
  for (const DType operand : operand_types()) {
    for (const ConvolutionShape& shape : convolution_shapes()) {
      SCOPED_TRACE(name_of(shape, operand));
      const TestConvolution weights = random_convolution(shape, true, 1);
      constexpr int64_t kRecords = 70;
      const auto records = test::random_integers(kRecords * record_size(shape), 4, 2);
      Convolution convolution(shape, weights.view(), operand, kRecords, pool);
      EXPECT_TRUE(test::exactly(run(convolution, shape, records),
                                reference_features(weights, records, kRecords, operand).values));
    }
  }
}

TEST(Convolution, StaysWithinTheRoundingBounds) {
  ThreadPool pool(2);
  for (const DType operand : operand_types()) {
    for (const ConvolutionShape& shape : convolution_shapes()) {
      SCOPED_TRACE(name_of(shape, operand));
      const TestConvolution weights = random_convolution(shape, false, 3);
      constexpr int64_t kRecords = 11;
      const auto records = test::random_normal(kRecords * record_size(shape), 1, 4);
      Convolution convolution(shape, weights.view(), operand, kRecords, pool);
      const std::vector<float> features = run(convolution, shape, records);
      const StageReference expected = reference_features(weights, records, kRecords, operand);
      EXPECT_TRUE(
          test::elements_within(features, expected.values, expected.magnitudes, test::kUnitF32, test::kUnitF32));
      EXPECT_TRUE(test::rows_within(features, expected.values, feature_size(shape), test::kRowLimitF32));
    }
  }
}

TEST(Convolution, ARecordsBitsDependOnItAlone) {
  constexpr int64_t kMaxRecords = 140;
  for (const DType operand : operand_types()) {
    for (const ConvolutionShape& shape : convolution_shapes()) {
      SCOPED_TRACE(name_of(shape, operand));
      const TestConvolution weights = random_convolution(shape, false, 5);
      const auto records = test::random_normal(kMaxRecords * record_size(shape), 1, 6);
      std::vector<float> expected;
      for (const int num_threads : {1, 2, 3, 4}) {
        ThreadPool pool(num_threads);
        Convolution convolution(shape, weights.view(), operand, kMaxRecords, pool);
        for (const int64_t count : {kMaxRecords, int64_t{1}, int64_t{7}, int64_t{64}, int64_t{65}}) {
          const std::vector<float> some(records.begin(),
                                        records.begin() + count * static_cast<int64_t>(record_size(shape)));
          const std::vector<float> features = run(convolution, shape, some);
          if (expected.empty()) expected = features;
          EXPECT_TRUE(test::same_bits(features, std::span(expected).first(features.size())))
              << num_threads << " threads, " << count << " records";
        }
      }
    }
  }
}

TEST(Convolution, RecordsMayStandAnywhere) {
  ThreadPool pool(2);
  const ConvolutionShape shape = {24, 16, 10, {3, 9}};
  constexpr size_t kRecords = 37;
  const TestConvolution weights = random_convolution(shape, false, 7);
  const auto records = test::random_normal(kRecords * record_size(shape), 1, 8);
  std::vector<size_t> order(kRecords);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937(9));
  std::vector<float> permuted;
  for (const size_t record : order) {
    const auto begin = records.begin() + static_cast<std::ptrdiff_t>(record * record_size(shape));
    permuted.insert(permuted.end(), begin, begin + static_cast<std::ptrdiff_t>(record_size(shape)));
  }
  for (const DType operand : operand_types()) {
    Convolution convolution(shape, weights.view(), operand, kRecords, pool);
    const std::vector<float> straight = run(convolution, shape, records);
    const std::vector<float> shuffled = run(convolution, shape, permuted);
    for (size_t i = 0; i < kRecords; ++i) {
      EXPECT_TRUE(test::same_bits(std::span(shuffled).subspan(i * feature_size(shape), feature_size(shape)),
                                  std::span(straight).subspan(order[i] * feature_size(shape), feature_size(shape))));
    }
  }
}

TEST(Convolution, ARecordThatIsNotFiniteHurtsNoOther) {
  ThreadPool pool(2);
  const ConvolutionShape shape = {9, 16, 12, {3, 5}};
  constexpr size_t kRecords = 20;
  const TestConvolution weights = random_convolution(shape, false, 10);
  const auto records = test::random_normal(kRecords * record_size(shape), 1, 11);
  for (const DType operand : operand_types()) {
    Convolution convolution(shape, weights.view(), operand, kRecords, pool);
    const std::vector<float> clean = run(convolution, shape, records);
    std::vector<float> bad = records;
    bad[3 * record_size(shape) + 5] = std::numeric_limits<float>::quiet_NaN();
    bad[12 * record_size(shape)] = std::numeric_limits<float>::infinity();
    bad[20 * record_size(shape) - 1] = -std::numeric_limits<float>::infinity();
    std::vector<float> features(clean.size());
    std::vector<uint8_t> finite(kRecords);
    convolution.run_embeddings(bad.data(), kRecords, features.data(), finite.data());
    for (size_t record = 0; record < kRecords; ++record) {
      const bool is_bad = record == 3 || record == 12 || record == 19;
      EXPECT_EQ(finite[record], is_bad ? 0 : 1);
      const auto out = std::span(features).subspan(record * feature_size(shape), feature_size(shape));
      if (is_bad) {
        EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float value) { return std::isfinite(value); }));
      } else {
        EXPECT_TRUE(test::same_bits(out, std::span(clean).subspan(record * feature_size(shape), feature_size(shape))));
      }
    }
    EXPECT_TRUE(test::same_bits(run(convolution, shape, records), clean)) << "nothing is left behind";
  }
}

TEST(Convolution, IdsAreLookedUpAndGiveTheSameBitsAsTheirEmbeddings) {
  ThreadPool pool(2);
  for (const DType operand : operand_types()) {
    for (const ConvolutionShape& shape : convolution_shapes()) {
      SCOPED_TRACE(name_of(shape, operand));
      constexpr int64_t kVocab = 13;
      constexpr int64_t kRecords = 19;
      const TestConvolution weights = random_convolution(shape, false, 12);
      const auto table = test::random_normal(static_cast<size_t>(kVocab * shape.channels), 1, 13);
      std::vector<int32_t> ids;
      std::mt19937 random(14);
      for (int64_t i = 0; i < kRecords * shape.positions; ++i) ids.push_back(static_cast<int32_t>(random() % kVocab));
      std::vector<float> records;
      for (int64_t record = 0; record < kRecords; ++record) {
        for (int64_t channel = 0; channel < shape.channels; ++channel) {
          for (int64_t position = 0; position < shape.positions; ++position) {
            const int32_t id = ids[static_cast<size_t>(record * shape.positions + position)];
            records.push_back(table[static_cast<size_t>(id * shape.channels + channel)]);
          }
        }
      }
      Convolution convolution(shape, weights.view(), operand, kRecords, pool);
      GuardedArray<float> features(kRecords * feature_size(shape));
      convolution.run_ids(ids.data(), table.data(), kRecords, features.data());
      EXPECT_TRUE(features.intact());
      EXPECT_TRUE(test::same_bits(features.span(), run(convolution, shape, records)));
    }
  }
}

TEST(Convolution, AnOverflowShowsAsNotANumber) {
  // Inf - Inf in the sums of one window; the maximum and the ReLU must not hide it.
  ThreadPool pool(1);
  const ConvolutionShape shape = {2, 3, 1, {1}};
  const std::vector<float> weight = {3e38f, -3e38f};
  const std::vector<float> bias = {0};
  const ConvolutionWeights view[] = {{weight.data(), bias.data()}};
  Convolution convolution(shape, view, DType::f32, 1, pool);
  const std::vector<float> record = {1, 9, 1, 1, 9, 1};
  float feature = 0;
  uint8_t finite = 0;
  convolution.run_embeddings(record.data(), 1, &feature, &finite);
  EXPECT_EQ(finite, 1);
  EXPECT_FALSE(std::isfinite(feature));
}

TEST(Convolution, RefusesMoreRecordsThanItWasMadeFor) {
  ThreadPool pool(1);
  const ConvolutionShape shape = {2, 4, 2, {3}};
  const TestConvolution weights = random_convolution(shape, true, 15);
  Convolution convolution(shape, weights.view(), DType::f32, 4, pool);
  EXPECT_GT(convolution.memory_bytes(), 0u);
  std::vector<float> records(5 * record_size(shape));
  std::vector<float> features(5 * feature_size(shape));
  std::vector<uint8_t> finite(5);
  EXPECT_THROW(convolution.run_embeddings(records.data(), 5, features.data(), finite.data()), ProgrammerError);
  convolution.run_embeddings(nullptr, 0, nullptr, nullptr);  // nothing to do is no error
}

}  // namespace
}  // namespace tessera::cpu
