#include "tessera/core/buffer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

namespace tessera {
namespace {

TEST(Buffer, EverySizeIsAlignedAndOwned) {
  for (size_t size = 1; size <= 300; ++size) {
    Buffer<uint16_t> buffer(size);
    ASSERT_EQ(buffer.size(), size);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kHostAlignment, 0u);
    for (size_t i = 0; i < size; ++i) buffer[i] = static_cast<uint16_t>(i);  // a sanitizer run sees an overflow
    ASSERT_EQ(buffer.span().back(), size - 1);
    ASSERT_EQ(static_cast<size_t>(buffer.end() - buffer.begin()), size);
  }
}

TEST(Buffer, SizeZeroOwnsNothing) {
  const Buffer<float> buffer(0);
  EXPECT_TRUE(buffer.empty());
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_TRUE(buffer.span().empty());
}

TEST(Buffer, WhatIsMovedFromIsEmpty) {
  Buffer<int> first(3);
  first[2] = 7;
  const int* const data = first.data();
  Buffer<int> second(std::move(first));
  EXPECT_EQ(first.size(), 0u);  // NOLINT(bugprone-use-after-move): that is what is tested
  EXPECT_EQ(first.data(), nullptr);
  EXPECT_EQ(second.data(), data);
  Buffer<int> third(5);
  third = std::move(second);
  EXPECT_TRUE(second.empty());  // NOLINT(bugprone-use-after-move)
  ASSERT_EQ(third.size(), 3u);
  EXPECT_EQ(third[2], 7);
}

TEST(Buffer, SizesThatOverflowAreProgrammerErrors) {
  EXPECT_THROW(Buffer<double>(SIZE_MAX / 8), ProgrammerError);
  EXPECT_THROW(Buffer<char>(SIZE_MAX), ProgrammerError);
}

TEST(Buffer, MemoryThatCannotBeHadIsBadAlloc) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer ends the process where malloc would return null";
#endif
  EXPECT_THROW(Buffer<char>(size_t{1} << 60), std::bad_alloc);
}

}  // namespace
}  // namespace tessera
