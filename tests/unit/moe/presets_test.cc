#include "tessera/moe/presets.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <numeric>
#include <set>
#include <string>

#include "tessera/core/error.h"
#include "unit/error_message.h"

namespace tessera::moe {
namespace {

using testing::error_of;

std::vector<int32_t> counts_of(const std::vector<int32_t>& ids, int32_t num_experts) {
  std::vector<int32_t> counts(static_cast<size_t>(num_experts), 0);
  for (const int32_t id : ids) ++counts.at(static_cast<size_t>(id));
  return counts;
}

// The comparison's grid is plain Python that needs no library, so it states the shapes again: they must be these.
TEST(Presets, AreTheComparisonsShapes) {
  std::ifstream file(TESSERA_SOURCE_DIR "/bench/peers/grid.py");
  std::string text(std::istreambuf_iterator<char>(file), {});
  const size_t begin = text.find("PRESETS = {");
  ASSERT_NE(begin, std::string::npos);
  text = text.substr(begin, text.find('}', begin) - begin);
  int compared = 0;
  for (size_t quote = text.find('"'); quote != std::string::npos; quote = text.find('"', quote), ++compared) {
    std::array<char, 64> name{};
    std::array<int, 4> stated{};
    int length = 0;
    const int read = std::sscanf(text.c_str() + quote, "\"%63[^\"]\": (%d, %d, %d, %d)%n", name.data(), &stated[0],
                                 &stated[1], &stated[2], &stated[3], &length);
    ASSERT_TRUE(read == 5 && length > 0) << text.substr(quote, 80);
    const LayerConfig& ours = find_preset(name.data()).config;
    const std::array<int, 4> sizes{ours.hidden_size, ours.intermediate_size, ours.num_experts, ours.top_k};
    EXPECT_EQ(stated, sizes) << name.data();
    quote += static_cast<size_t>(length);
  }
  EXPECT_GE(compared, 10);
  EXPECT_EQ(compared, std::count(text.begin(), text.end(), ':'));  // every entry was read
}

TEST(Presets, AreValidAndNamedOnce) {
  std::set<std::string_view> names;
  for (const Preset& preset : presets()) {
    SCOPED_TRACE(preset.name);
    EXPECT_TRUE(names.insert(preset.name).second);
    EXPECT_EQ(&find_preset(preset.name), &preset);
    EXPECT_EQ(preset.config.hidden_size % 8, 0);
    EXPECT_EQ(preset.config.intermediate_size % 8, 0);
    EXPECT_LE(preset.config.top_k, preset.config.num_experts);
    EXPECT_LE(preset.config.first_expert + preset.config.num_experts, preset.num_global_experts);
  }
  for (const int32_t width : {96, 128, 192, 256}) {  // of the tensor-parallel shards
    EXPECT_TRUE(std::any_of(presets().begin(), presets().end(), [&](const Preset& preset) {
      return preset.config.intermediate_size == width;
    })) << width;
  }
}

TEST(Presets, UnknownNameListsAll) {
  const std::string message = error_of([] { find_preset("qwen9"); });
  EXPECT_NE(message.find("got 'qwen9', expected mixtral-8x7b, "), std::string::npos) << message;
  for (const Preset& preset : presets()) EXPECT_NE(message.find(preset.name), std::string::npos) << preset.name;
}

TEST(Routings, NamesAndBack) {
  for (const Routing routing :
       {Routing::balanced, Routing::best, Routing::worst, Routing::random, Routing::zipf, Routing::one}) {
    EXPECT_EQ(parse_routing(routing_name(routing), "--routing"), routing);
  }
  EXPECT_EQ(error_of([] { parse_routing("uniform", "--routing"); }),
            "--routing: got 'uniform', expected balanced, best, worst, random, zipf or one");
}

TEST(Routings, IdsInRangeAndDistinctInAToken) {
  struct Case {
    int32_t experts, top_k;
  };
  for (const Case c : {Case{8, 2}, Case{128, 8}, Case{512, 10}, Case{7, 7}, Case{1, 1}, Case{33, 32}, Case{1024, 32}}) {
    for (const Routing routing : {Routing::balanced, Routing::best, Routing::worst, Routing::random, Routing::zipf}) {
      for (const int32_t tokens : {1024, 129}) {
        const std::vector<int32_t> ids = make_topk_ids(routing, tokens, c.experts, c.top_k, 3);
        ASSERT_EQ(ids.size(), static_cast<size_t>(tokens) * static_cast<size_t>(c.top_k));
        for (size_t first = 0; first < ids.size(); first += static_cast<size_t>(c.top_k)) {
          const std::set<int32_t> of_token(ids.begin() + static_cast<std::ptrdiff_t>(first),
                                           ids.begin() + static_cast<std::ptrdiff_t>(first) + c.top_k);
          ASSERT_EQ(of_token.size(), static_cast<size_t>(c.top_k)) << routing_name(routing) << " " << first;
          ASSERT_GE(*of_token.begin(), 0);
          ASSERT_LT(*of_token.rbegin(), c.experts);
        }
      }
    }
  }
}

TEST(Routings, CountsAreWhatTheNameSays) {
  constexpr int32_t kExperts = 60, kTopK = 6, kTokens = 700, kSlots = kTokens * kTopK;
  const auto counts = [&](Routing routing) {
    return counts_of(make_topk_ids(routing, kTokens, kExperts, kTopK, 5), kExperts);
  };
  EXPECT_EQ(counts(Routing::balanced), std::vector<int32_t>(kExperts, kSlots / kExperts));

  const std::vector<int32_t> best = counts(Routing::best);
  EXPECT_EQ(std::vector<int32_t>(best.begin(), best.begin() + kTopK), std::vector<int32_t>(kTopK, kTokens));
  EXPECT_EQ(std::count(best.begin(), best.end(), 0), kExperts - kTopK);

  const std::vector<int32_t> worst = counts(Routing::worst);
  EXPECT_EQ(std::count(worst.begin() + kTopK, worst.end(), 1), kExperts - kTopK);
  EXPECT_EQ(std::accumulate(worst.begin(), worst.begin() + kTopK, 0), kSlots - (kExperts - kTopK));

  const std::vector<int32_t> one = counts(Routing::one);
  EXPECT_EQ(one[0], kSlots);
}

TEST(Routings, WorstNeedsASlotForEachExpertAndNoMore) {
  const std::vector<int32_t> all = make_topk_ids(Routing::worst, 8, 64, 8, 1);
  EXPECT_EQ(counts_of(all, 64), std::vector<int32_t>(64, 1));
  EXPECT_EQ(error_of([] { make_topk_ids(Routing::worst, 7, 64, 8, 1); }),
            "routing worst: got 7 tokens x 8 slots, expected at least one slot for each of 64 experts");
}

// With N draws of probability p a count is within 6 standard deviations of N p, or the generator is wrong.
void expect_near(int32_t count, double draws, double p) {
  EXPECT_NEAR(count, draws * p, 6.0 * std::sqrt(draws * p * (1.0 - p)));
}

TEST(Routings, RandomIsUniformAndZipfFallsAsOneOverRank) {
  constexpr int32_t kExperts = 16, kTokens = 40000;
  for (const int32_t count : counts_of(make_topk_ids(Routing::random, kTokens, kExperts, 4, 9), kExperts)) {
    expect_near(count, kTokens, 4.0 / kExperts);
  }
  std::vector<int32_t> zipf = counts_of(make_topk_ids(Routing::zipf, kTokens, kExperts, 1, 9), kExperts);
  EXPECT_FALSE(std::is_sorted(zipf.rbegin(), zipf.rend()));  // ranks are shuffled over the experts
  std::sort(zipf.rbegin(), zipf.rend());
  double harmonic = 0.0;
  for (int32_t rank = 1; rank <= kExperts; ++rank) harmonic += 1.0 / rank;
  for (int32_t rank = 1; rank <= kExperts; ++rank) {
    expect_near(zipf[static_cast<size_t>(rank - 1)], kTokens, 1.0 / rank / harmonic);
  }
}

TEST(Routings, SeedsDecideAndRepeat) {
  for (const Routing routing : {Routing::random, Routing::zipf}) {
    const std::vector<int32_t> ids = make_topk_ids(routing, 100, 64, 8, 1);
    EXPECT_EQ(ids, make_topk_ids(routing, 100, 64, 8, 1));
    EXPECT_NE(ids, make_topk_ids(routing, 100, 64, 8, 2));
  }
}

TEST(Routings, BadArgumentsAreNamed) {
  const auto message = [](int64_t tokens, int32_t experts, int32_t top_k) {
    return error_of([=] { make_topk_ids(Routing::balanced, tokens, experts, top_k, 1); });
  };
  EXPECT_EQ(message(-1, 8, 2), "tokens: got -1, expected 0..1073741823");
  EXPECT_EQ(message(1, 8, 9), "top-k: got 9, expected at most the number of experts, 8");
  EXPECT_EQ(message(1, 8, 0), "top-k: got 0, expected 1..32");
  EXPECT_EQ(message(1, 1025, 1), "experts: got 1025, expected 1..1024");
  EXPECT_EQ(message(int64_t{1} << 30, 8, 2), "tokens: got 1073741824, expected 0..1073741823");
  EXPECT_TRUE(make_topk_ids(Routing::balanced, 0, 8, 2, 1).empty());
}

TEST(Routings, AShardGetsItsPartOfTheGlobalExperts) {
  const Preset& preset = find_preset("deepseek-v3-ep8");
  const auto rows_of_shard = [&](Routing routing) {
    const std::vector<int32_t> ids = make_topk_ids(preset, routing, 2048, 1);
    return std::count_if(ids.begin(), ids.end(), [&](int32_t id) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, preset.num_global_experts);
      return id >= preset.config.first_expert && id < preset.config.first_expert + preset.config.num_experts;
    });
  };
  EXPECT_EQ(rows_of_shard(Routing::balanced), 2048);  // 2048 x 8 slots over 8 shards
  EXPECT_EQ(rows_of_shard(Routing::best), 2048 * 8);
}

}  // namespace
}  // namespace tessera::moe
