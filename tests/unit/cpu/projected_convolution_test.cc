#include "cpu/projected_convolution.h"

#include <random>

#include "stage_reference.h"
#include "unit/numeric_check.h"

namespace tessera::cpu {
namespace {

using test::GuardedArray;

struct Problem {
  ConvolutionShape shape;
  int64_t vocab_size;
  TestConvolution weights;
  std::vector<float> table;  // [vocab_size, channels]

  Problem(const ConvolutionShape& with_shape, int64_t with_vocab, bool integers, uint64_t seed)
      : shape(with_shape), vocab_size(with_vocab), weights(random_convolution(with_shape, integers, seed)) {
    const auto size = static_cast<size_t>(vocab_size * shape.channels);
    table = integers ? test::random_integers(size, 4, seed + 50) : test::random_normal(size, 1, seed + 50);
  }

  ProjectedConvolution make(DType operand, ThreadPool& pool) const {
    return ProjectedConvolution(shape, weights.view(), operand, table.data(), vocab_size, pool);
  }

  // Records that end in runs of token 1 of every length, as padded sentences do.
  std::vector<int32_t> random_ids(int64_t num_records, uint64_t seed) const {
    std::mt19937_64 random(seed);
    std::vector<int32_t> ids;
    for (int64_t record = 0; record < num_records; ++record) {
      const int64_t words = record % (shape.positions + 1);
      for (int64_t position = 0; position < shape.positions; ++position) {
        const auto id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size));
        ids.push_back(position < words ? id : 1);
      }
    }
    return ids;
  }

  std::vector<float> embed(const std::vector<int32_t>& ids) const {
    std::vector<float> records;
    for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(shape.positions)) {
      for (int64_t channel = 0; channel < shape.channels; ++channel) {
        for (int64_t position = 0; position < shape.positions; ++position) {
          const int32_t id = ids[begin + static_cast<size_t>(position)];
          records.push_back(table[static_cast<size_t>(id * shape.channels + channel)]);
        }
      }
    }
    return records;
  }

  std::vector<float> run(ProjectedConvolution& convolution, const std::vector<int32_t>& ids) const {
    const auto num_records = static_cast<int64_t>(ids.size()) / shape.positions;
    GuardedArray<float> features(static_cast<size_t>(num_records * shape.num_features()));
    convolution.run(ids.data(), num_records, features.data());
    EXPECT_TRUE(features.intact());
    return {features.span().begin(), features.span().end()};
  }
};

TEST(ProjectedConvolution, IsExactForIntegers) {
  ThreadPool pool(3);
  for (const DType operand : operand_types()) {
    for (const ConvolutionShape& shape : convolution_shapes()) {
      SCOPED_TRACE(str_cat(shape.channels, " channels, ", shape.positions, " positions ", dtype_name(operand)));
      const Problem problem(shape, 150, true, 1);
      ProjectedConvolution convolution = problem.make(operand, pool);
      const std::vector<int32_t> ids = problem.random_ids(70, 2);
      const auto expected = reference_features(problem.weights, problem.embed(ids), 70, operand);
      EXPECT_TRUE(test::exactly(problem.run(convolution, ids), expected.values));
    }
  }
}

TEST(ProjectedConvolution, StaysWithinTheRoundingBounds) {
  ThreadPool pool(2);
  for (const DType operand : operand_types()) {
    for (const ConvolutionShape& shape : convolution_shapes()) {
      SCOPED_TRACE(str_cat(shape.channels, " channels, ", shape.positions, " positions ", dtype_name(operand)));
      const Problem problem(shape, 90, false, 3);
      ProjectedConvolution convolution = problem.make(operand, pool);
      const std::vector<int32_t> ids = problem.random_ids(23, 4);
      const std::vector<float> features = problem.run(convolution, ids);
      const auto expected = reference_features(problem.weights, problem.embed(ids), 23, operand);
      EXPECT_TRUE(
          test::elements_within(features, expected.values, expected.magnitudes, test::kUnitF32, test::kUnitF32));
      EXPECT_TRUE(
          test::rows_within(features, expected.values, static_cast<size_t>(shape.num_features()), test::kRowLimitF32));
    }
  }
}

// Bits must not depend on which tokens were seen before, in which order, or together.
TEST(ProjectedConvolution, AFilledTableHasTheBitsOfALazyOne) {
  const ConvolutionShape shape = {40, 16, 24, {3, 5, 9}};
  constexpr int64_t kVocab = 1'300;  // more than two rounds of 512
  const Problem problem(shape, kVocab, false, 5);
  for (const DType operand : operand_types()) {
    ThreadPool pool(2);
    ProjectedConvolution full = problem.make(operand, pool);
    std::vector<int32_t> every_token;
    for (int32_t id = 0; id < 1'312; ++id) every_token.push_back(id % static_cast<int32_t>(kVocab));
    problem.run(full, every_token);
    EXPECT_EQ(full.num_projected_tokens(), kVocab);

    ThreadPool other_pool(3);
    ProjectedConvolution lazy = problem.make(operand, other_pool);
    EXPECT_EQ(lazy.num_projected_tokens(), 0);
    const std::vector<int32_t> ids = problem.random_ids(60, 6);
    const std::vector<float> expected = problem.run(full, ids);
    EXPECT_EQ(full.num_projected_tokens(), kVocab);
    for (size_t record = 60; record-- > 0;) {  // one at a time, last first
      const std::vector<int32_t> one(ids.begin() + static_cast<std::ptrdiff_t>(record * 16),
                                     ids.begin() + static_cast<std::ptrdiff_t>(record * 16 + 16));
      EXPECT_TRUE(test::same_bits(problem.run(lazy, one), std::span(expected).subspan(record * 72, 72)));
    }
    EXPECT_LT(lazy.num_projected_tokens(), kVocab);
    EXPECT_LT(lazy.memory_bytes(), full.memory_bytes());
    EXPECT_TRUE(test::same_bits(problem.run(lazy, ids), expected));
  }
}

TEST(ProjectedConvolution, ARecordsBitsDependOnItAlone) {
  for (const DType operand : operand_types()) {
    for (const ConvolutionShape& shape : convolution_shapes()) {
      const Problem problem(shape, 80, false, 7);
      const std::vector<int32_t> ids = problem.random_ids(70, 8);
      std::vector<float> expected;
      for (const int num_threads : {1, 2, 3, 4}) {
        ThreadPool pool(num_threads);
        ProjectedConvolution convolution = problem.make(operand, pool);
        for (const int64_t count : {70, 1, 8, 9}) {
          const std::vector<int32_t> some(ids.begin(), ids.begin() + count * shape.positions);
          const std::vector<float> features = problem.run(convolution, some);
          if (expected.empty()) expected = features;
          EXPECT_TRUE(test::same_bits(features, std::span(expected).first(features.size())));
        }
      }
    }
  }
}

// The run of equal ids at a record's end is computed once. Token 2 has token 1's embedding, so a record that ends in 2
// has the same windows, but no run that could be cut short.
TEST(ProjectedConvolution, CuttingTheFinalRunShortIsExact) {
  ThreadPool pool(1);
  for (const ConvolutionShape& shape : convolution_shapes()) {
    Problem problem(shape, 20, false, 9);
    std::copy_n(problem.table.begin() + shape.channels, shape.channels, problem.table.begin() + 2 * shape.channels);
    ProjectedConvolution convolution = problem.make(DType::f32, pool);
    const std::vector<int32_t> ids = problem.random_ids(40, 10);
    std::vector<int32_t> without_run = ids;
    for (size_t last = static_cast<size_t>(shape.positions) - 1; last < ids.size();
         last += static_cast<size_t>(shape.positions)) {
      if (ids[last] == 1) without_run[last] = 2;
    }
    EXPECT_TRUE(test::same_bits(problem.run(convolution, ids), problem.run(convolution, without_run)));
  }
}

TEST(ProjectedConvolution, GrowsByChunks) {
  // Rows of 2.1 MiB: a chunk of 64 MiB holds 29 of the 40.
  const Problem problem({2, 8, 70'000, {8}}, 40, true, 11);
  ThreadPool pool(2);
  ProjectedConvolution convolution = problem.make(DType::f32, pool);
  for (const int32_t first : {0, 8, 20, 28, 32}) {
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 8; ++i) ids.push_back(first + i);
    const auto expected = reference_features(problem.weights, problem.embed(ids), 1, DType::f32);
    EXPECT_TRUE(test::exactly(problem.run(convolution, ids), expected.values));
  }
  EXPECT_EQ(convolution.num_projected_tokens(), 36);
}

}  // namespace
}  // namespace tessera::cpu
