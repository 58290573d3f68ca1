// Which name a mistyped one was meant to be.
#include "nearest_name.h"

#include <gtest/gtest.h>

namespace tessera::cli {
namespace {

TEST(NearestName, DistanceCountsEdits) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("output", "output"), 0u);
  EXPECT_EQ(edit_distance("", "ids"), 3u);
  EXPECT_EQ(edit_distance("ids", ""), 3u);
  EXPECT_EQ(edit_distance("ouput", "output"), 1u);
  EXPECT_EQ(edit_distance("outtput", "output"), 1u);
  EXPECT_EQ(edit_distance("outpat", "output"), 1u);
  EXPECT_EQ(edit_distance("quite", "quiet"), 1u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("ca", "abc"), 3u);  // nothing is edited twice
}

TEST(NearestName, TheNearestAndOfThoseTheFirst) {
  EXPECT_EQ(nearest_name("ouput", {"input", "output", "output-format"}), "output");
  EXPECT_EQ(nearest_name("oupt", {"input", "output"}), "output");  // 2 of 6 may be wrong
  EXPECT_EQ(nearest_name("inp", {"input"}), "");                   // 2 of 5 may not
  EXPECT_EQ(nearest_name("bone", {"bond", "tone"}), "bond");
  EXPECT_EQ(nearest_name("output", {"output"}), "output");
}

TEST(NearestName, NothingIsNear) {
  EXPECT_EQ(nearest_name("frobnicate", {"classify", "merge"}), "");
  EXPECT_EQ(nearest_name("classify", {}), "");
  EXPECT_EQ(nearest_name("", {"a", "ids"}), "");
  EXPECT_EQ(nearest_name("b", {"a"}), "");  // every character is wrong
  EXPECT_EQ(nearest_name("idxx", {"ids"}), "");
}

}  // namespace
}  // namespace tessera::cli
