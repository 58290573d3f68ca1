#include "classifier/cpu_form.h"

#include <gtest/gtest.h>

#include <sstream>

#include "random_model.h"

namespace tessera::classifier {
namespace {

constexpr size_t kGiB = size_t{1} << 30;

TEST(CpuForm, FullSizeModel) {
  const ClassifierConfig config = preset_config("apws25");
  EXPECT_EQ(select_cpu_form(config, InputKind::ids, 8 * kGiB), (CpuForm{true, true}));
  EXPECT_EQ(select_cpu_form(config, InputKind::embeddings, 8 * kGiB), (CpuForm{false, true}));
  // classifier.md: 71.3 MFLOP of experts and head become 33.6, and the router's and the later layers' stay.
  EXPECT_EQ(tail_flops(config, {}), 2 * (4 * 4096 + 4 * 2048 * 4096 + 2048 * 1024 + 1024 * 512 + 512 * 2));
  EXPECT_EQ(tail_flops(config, {true, true}), 2 * (4 * 4096 + 4 * 1024 * 4096 + 1024 * 512 + 512 * 2));
}

TEST(CpuForm, ATableThatDoesNotFitIsNotBuilt) {
  const ClassifierConfig config = preset_config("apws25");
  // 21,635 tokens x 24 taps x 1,024 filters x 4 bytes; it may take half of the memory.
  const size_t table = 21'635ull * 24 * 1'024 * 4;
  EXPECT_TRUE(select_cpu_form(config, InputKind::ids, 2 * table).projected_vocabulary);
  EXPECT_FALSE(select_cpu_form(config, InputKind::ids, 2 * table - 2).projected_vocabulary);
}

TEST(CpuForm, NarrowEmbeddingsAreMultiplied) {
  ClassifierConfig config = testing::odd_config();
  config.embedding_size = 15;
  EXPECT_FALSE(select_cpu_form(config, InputKind::ids, kGiB).projected_vocabulary);
  config.embedding_size = 16;
  EXPECT_TRUE(select_cpu_form(config, InputKind::ids, kGiB).projected_vocabulary);
  EXPECT_FALSE(select_cpu_form(config, InputKind::embeddings, kGiB).projected_vocabulary);
}

TEST(CpuForm, TheHeadIsFoldedOnlyWhereThatSavesWork) {
  ClassifierConfig config = testing::odd_config();  // experts 15 -> 11, head 11 -> 9
  EXPECT_TRUE(select_cpu_form(config, InputKind::ids, kGiB).folded_head);
  config.head_sizes = {40};  // a head wider than the experts
  EXPECT_FALSE(select_cpu_form(config, InputKind::ids, kGiB).folded_head);
  config.head_sizes = {};
  EXPECT_FALSE(select_cpu_form(config, InputKind::ids, kGiB).folded_head);
}

TEST(CpuForm, SaysWhatItIs) {
  std::ostringstream out;
  out << CpuForm{true, true} << "; " << CpuForm{};
  EXPECT_EQ(out.str(),
            "projected vocabulary, first head layer folded into the experts; direct convolutions, experts as they are");
}

}  // namespace
}  // namespace tessera::classifier
