// Lists in options, and the library's errors in the command's words.
#include "option_text.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera::cli {
namespace {

using Pieces = std::vector<std::string_view>;

TEST(OptionText, ListsAreSplitAtCommas) {
  EXPECT_EQ(split_list("a,bc,d"), (Pieces{"a", "bc", "d"}));
  EXPECT_EQ(split_list("a"), Pieces{"a"});
  EXPECT_EQ(split_list(""), Pieces{""});
  EXPECT_EQ(split_list(",a,"), (Pieces{"", "a", ""}));
}

std::string renamed(const Error& error) { return naming_option(error, {"form", "expert_threshold"}).what(); }

TEST(OptionText, AnArgumentIsNamedAsItsOption) {
  EXPECT_EQ(renamed(Error("form", "'x'", "auto")), "--form: got 'x', expected auto");
  EXPECT_EQ(renamed(Error("form vocab", "embeddings as input", "token ids: more")),
            "--form vocab: got embeddings as input, expected token ids: more");
  EXPECT_EQ(renamed(Error("expert_threshold", "2", "[0, 1)")), "--expert-threshold: got 2, expected [0, 1)");
  EXPECT_EQ(naming_option(Error("form", "missing"), {"form"}).where(), "--form");
}

TEST(OptionText, WhatIsNoOptionStaysAsItIs) {
  EXPECT_EQ(renamed(Error("memory of cuda:0", "too little")), "memory of cuda:0: too little");
  EXPECT_EQ(renamed(Error("forms", "'x'", "one")), "forms: got 'x', expected one");
  EXPECT_EQ(renamed(Error("device cuda:0", "form: wrong")), "device cuda:0: form: wrong");
}

TEST(OptionText, OnlyErrorsOfTheCallAreRenamed) {
  EXPECT_EQ(with_options_named({"form"}, [] { return 7; }), 7);
  try {
    with_options_named({"shard"}, [] { throw Error("shard", "'5/2'", "I/N"); });
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "--shard: got '5/2', expected I/N");
  }
}

}  // namespace
}  // namespace tessera::cli
