#include "io/text_arena.h"

#include <gtest/gtest.h>

#include "unit/io/allocation_counter.h"

namespace tessera::io {
namespace {

using Texts = std::vector<std::string>;

Texts copied(const TextArena& arena) { return {arena.begin(), arena.end()}; }

TEST(TextArena, KeepsTextsApart) {
  TextArena arena;
  EXPECT_TRUE(arena.empty());
  EXPECT_EQ(copied(arena), Texts{});
  const Texts texts = {"", "one", "", "two\n", std::string("a\0b", 3), std::string(1'000, 'x'), ""};
  for (const std::string& text : texts) arena.push_back(text);
  EXPECT_EQ(arena.size(), texts.size());
  EXPECT_EQ(copied(arena), texts);
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(arena[i], texts[i]);
  EXPECT_EQ(arena.num_bytes(), 3u + 4u + 3u + 1'000u);
}

TEST(TextArena, AssignReplaces) {
  TextArena arena;
  arena.push_back("old");
  const Texts texts = {"a", "b", "c"};
  arena.assign(texts.begin() + 1, texts.end());
  EXPECT_EQ(copied(arena), (Texts{"b", "c"}));
}

TEST(TextArena, ClearKeepsTheMemory) {
  TextArena arena;
  const auto fill = [&] {
    for (int i = 0; i < 1'000; ++i) arena.push_back("a sentence that is longer than any small string");
  };
  fill();
  arena.clear();
  EXPECT_TRUE(arena.empty());
  const size_t before = testing::allocated_bytes();
  fill();
  EXPECT_EQ(testing::allocated_bytes(), before);
}

}  // namespace
}  // namespace tessera::io
