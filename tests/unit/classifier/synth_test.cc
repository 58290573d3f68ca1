#include "classifier/synth.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "tessera/core/error.h"

namespace tessera::classifier {
namespace {

TEST(RandomStream, counts_and_differs_by_seed_and_stream) {
  const RandomStream random(7, 3);
  EXPECT_EQ(random.bits(5), RandomStream(7, 3).bits(5));
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 1000; ++i) {
    seen.insert({random.bits(i), RandomStream(8, 3).bits(i), RandomStream(7, 4).bits(i)});
  }
  EXPECT_EQ(seen.size(), 3000u);
}

TEST(RandomStream, uniform_and_normal_have_their_moments) {
  const RandomStream random(1, 1);
  constexpr uint64_t kCount = 100'000;
  double sum = 0;
  double normal_sum = 0;
  double normal_squares = 0;
  double products = 0;
  int64_t beyond_two = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double u = random.uniform(i);
    ASSERT_TRUE(u >= 0 && u < 1);
    sum += u;
    double a = 0;
    double b = 0;
    random.normal_pair(i, a, b);
    normal_sum += a + b;
    normal_squares += a * a + b * b;
    products += a * b;
    beyond_two += (std::abs(a) > 2) + (std::abs(b) > 2);
  }
  EXPECT_NEAR(sum / kCount, 0.5, 0.005);
  EXPECT_NEAR(normal_sum / (2 * kCount), 0, 0.01);
  EXPECT_NEAR(normal_squares / (2 * kCount), 1, 0.02);
  EXPECT_NEAR(products / kCount, 0, 0.02);
  EXPECT_NEAR(static_cast<double>(beyond_two) / (2 * kCount), 0.0455, 0.003);
}

TEST(SynthesizeVocabulary, words_are_different_and_the_special_ones_in_place) {
  ClassifierConfig config = preset_config("apws25");
  config.unknown_id = 5;
  config.pad_id = 3;
  const std::vector<std::string> words = synthesize_vocabulary(config);
  ASSERT_EQ(words.size(), static_cast<size_t>(config.vocab_size));
  EXPECT_EQ(words[5], "<unk>");
  EXPECT_EQ(words[3], "<pad>");
  EXPECT_EQ(std::set<std::string>(words.begin(), words.end()).size(), words.size());
  for (size_t i = 6; i < words.size(); ++i) {
    ASSERT_TRUE(words[i].size() >= 4 &&
                std::all_of(words[i].begin(), words[i].end(), [](char c) { return c >= 'a' && c <= 'z'; }))
        << words[i];
  }
}

class SynthesizeIds : public ::testing::Test {
 protected:
  std::vector<int32_t> ids(int64_t first, int64_t count, uint64_t seed = 1) const {
    std::vector<int32_t> out(static_cast<size_t>(count * config_.sequence_length));
    synthesize_ids(config_, seed, first, out);
    return out;
  }
  ClassifierConfig config_ = preset_config("apws25");
};

TEST_F(SynthesizeIds, words_then_padding_all_in_the_vocabulary) {
  const std::vector<int32_t> all = ids(0, 2000);
  std::set<size_t> lengths;
  for (size_t row = 0; row < all.size(); row += 16) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(row);
    const auto pad = std::find(begin, begin + 16, config_.pad_id);
    lengths.insert(static_cast<size_t>(pad - begin));
    EXPECT_TRUE(std::all_of(pad, begin + 16, [&](int32_t id) { return id == config_.pad_id; }));
    EXPECT_TRUE(std::all_of(
        begin, pad, [&](int32_t id) { return id >= 0 && id < config_.vocab_size && id != config_.unknown_id; }));
  }
  EXPECT_EQ(*lengths.begin(), 1u);
  EXPECT_EQ(lengths.size(), 16u) << "every length from 1 to 16 words";
}

TEST_F(SynthesizeIds, a_sentence_does_not_depend_on_those_before_it) {
  const std::vector<int32_t> all = ids(0, 50);
  const std::vector<int32_t> later = ids(20, 30);
  EXPECT_TRUE(std::equal(later.begin(), later.end(), all.begin() + 20 * 16));
  EXPECT_NE(ids(0, 50, 2), all);
}

TEST_F(SynthesizeIds, tiny_vocabularies) {
  for (const int64_t vocab_size : {2, 3, 4}) {
    config_.vocab_size = vocab_size;
    for (const int32_t id : ids(0, 200)) ASSERT_TRUE(id >= 0 && id < vocab_size) << vocab_size;
  }
}

TEST(SynthesizeModel, is_finite_padded_with_zeros_and_the_same_for_any_threads) {
  const ClassifierConfig config = preset_config("small");
  Model one = synthesize_model(config, {}, {.seed = 3, .num_threads = 1});
  Model three = synthesize_model(config, {}, {.seed = 3, .num_threads = 3});
  Model other = synthesize_model(config, {}, {.seed = 4, .num_threads = 1});
  const auto specs = tensor_specs(config, one.weights);
  const auto same = tensor_specs(config, three.weights);
  const auto different = tensor_specs(config, other.weights);
  for (size_t i = 0; i < specs.size(); ++i) {
    const Buffer<float>& values = *specs[i].values;
    ASSERT_TRUE(std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); })) << specs[i].name;
    EXPECT_EQ(std::memcmp(values.data(), same[i].values->data(), values.size() * sizeof(float)), 0) << specs[i].name;
    EXPECT_NE(std::memcmp(values.data(), different[i].values->data(), values.size() * sizeof(float)), 0)
        << specs[i].name;
  }
  for (int64_t c = 0; c < config.embedding_size; ++c) {
    EXPECT_EQ(one.weights.embedding[static_cast<size_t>(config.pad_id * config.embedding_size + c)], 0.0f);
  }
}

TEST(SynthesizeModel, a_configuration_that_is_none_is_an_error) {
  ClassifierConfig config = preset_config("small");
  config.filter_widths = {config.sequence_length + 1};
  EXPECT_THROW(synthesize_model(config, {}, {}), Error);
}

}  // namespace
}  // namespace tessera::classifier
