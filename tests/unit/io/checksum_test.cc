#include "io/checksum.h"

#include <gtest/gtest.h>

#include "tessera/core/check.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

std::string checksum_of(std::string_view bytes) {
  Checksum checksum;
  checksum.update(bytes);
  return checksum.hex();
}

// What `printf '' | xxh128sum` and `printf abc | xxh128sum` print.
TEST(Checksum, IsTheOneOfXxh128sum) {
  EXPECT_EQ(checksum_of(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(checksum_of("abc"), "06b05ab6733a618578af5f94892f3950");
}

TEST(Checksum, PiecesGiveTheChecksumOfTheWhole) {
  std::string bytes;
  for (int i = 0; i < 5000; ++i) bytes += static_cast<char>(i * 7 + i / 256);
  const std::string whole = checksum_of(bytes);
  for (const size_t piece : {1u, 3u, 64u, 257u, 4999u}) {
    Checksum checksum;
    for (size_t begin = 0; begin < bytes.size(); begin += piece) {
      checksum.update(std::string_view(bytes).substr(begin, piece));
      static_cast<void>(checksum.hex());  // reading it changes nothing
    }
    EXPECT_EQ(checksum.hex(), whole) << piece;
  }
}

TEST(Checksum, OfAFileAndOfItsBeginning) {
  const TempDir dir;
  const std::string bytes = std::string(3'000'000, 'x') + "end";
  write_file(dir / "a", bytes);
  EXPECT_EQ(file_checksum(dir / "a"), checksum_of(bytes));
  Checksum checksum;
  checksum.update("before");
  add_file(dir / "a", 2'500'000, checksum);
  EXPECT_EQ(checksum.hex(), checksum_of("before" + bytes.substr(0, 2'500'000)));
  expect_contains(error_of([&] { add_file(dir / "a", bytes.size() + 1, checksum); }), (dir / "a").string());
}

TEST(SampledChecksum, SeesEveryByteOfASmallFile) {
  const TempDir dir;
  std::string bytes(5000, 'x');
  write_file(dir / "a", bytes);
  const std::string before = sampled_checksum(dir / "a");
  EXPECT_EQ(before, checksum_of(bytes));
  for (const size_t place : {0u, 2500u, 4999u}) {
    bytes[place] = 'y';
    write_file(dir / "a", bytes);
    EXPECT_NE(sampled_checksum(dir / "a"), before) << place;
    bytes[place] = 'x';
  }
}

TEST(SampledChecksum, OfALargeFileSeesBothEndsAndTheMiddle) {
  const TempDir dir;
  std::string bytes(5u << 20, 'x');
  write_file(dir / "a", bytes);
  const std::string before = sampled_checksum(dir / "a");
  EXPECT_NE(before, checksum_of(bytes)) << "a sample";
  const size_t second_piece = (bytes.size() - (64u << 10)) / 63;
  for (const size_t place : {size_t{0}, second_piece, bytes.size() - 1}) {
    bytes[place] = 'y';
    write_file(dir / "a", bytes);
    EXPECT_NE(sampled_checksum(dir / "a"), before) << place;
    bytes[place] = 'x';
  }
}

}  // namespace
}  // namespace tessera::io
