// Distinct rows and tokens: numbers, copies and the count equal a map's, bit for bit.
#include "cuda/kernels/distinct_rows/launch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "gpu/classifier/operand_buffer.h"

namespace tessera::testing {
namespace {

namespace distinct_rows = kernels::distinct_rows;

/// A row of all planes, as bits.
using Row = std::vector<uint16_t>;

struct Found {
  int32_t num_distinct = 0;
  std::vector<int32_t> row_index;
  std::vector<Row> distinct;

  friend bool operator==(const Found&, const Found&) = default;
};

Found reference(const std::vector<Row>& rows) {
  Found found;
  std::map<Row, int32_t> numbers;
  for (const Row& row : rows) {
    const auto [place, is_new] = numbers.emplace(row, static_cast<int32_t>(numbers.size()));
    if (is_new) found.distinct.push_back(row);
    found.row_index.push_back(place->second);
  }
  found.num_distinct = static_cast<int32_t>(numbers.size());
  return found;
}

/// What is found when all rows have one hash.
Found reference_of_one_hash(const std::vector<Row>& rows) {
  Found found;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool is_first = i > 0 && rows[i] == rows[0];
    found.row_index.push_back(is_first ? 0 : found.num_distinct++);
    if (!is_first) found.distinct.push_back(rows[i]);
  }
  return found;
}

/// First difference of `got` from `expected`; empty when there is none.
std::string difference(const Found& got, const Found& expected) {
  if (got.num_distinct != expected.num_distinct)
    return str_cat(got.num_distinct, " distinct, expected ", expected.num_distinct);
  for (size_t i = 0; i < expected.row_index.size(); ++i) {
    if (got.row_index[i] != expected.row_index[i])
      return str_cat("row ", i, " has number ", got.row_index[i], ", expected ", expected.row_index[i]);
  }
  for (size_t i = 0; i < expected.distinct.size(); ++i) {
    if (got.distinct[i] != expected.distinct[i]) return str_cat("distinct row ", i, " has other bits");
  }
  return got == expected ? "" : "different sizes";
}

/// What holds however hashes collide: every row's copy is that row, numbers are in the order of first occurrence.
std::string broken_promise(const Found& got, const std::vector<Row>& rows) {
  int32_t seen = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t number = got.row_index[i];
    if (number < 0 || number > seen || number >= got.num_distinct) return str_cat("row ", i, " has number ", number);
    if (number == seen) ++seen;
    if (got.distinct[static_cast<size_t>(number)] != rows[i]) return str_cat("row ", i, "'s copy has other bits");
  }
  return seen == got.num_distinct ? "" : str_cat(got.num_distinct, " distinct, but ", seen, " numbers in use");
}

class RowsRun {
 public:
  static constexpr int64_t kExtraStride = 8;  // columns that neither count nor are written

  RowsRun(Operand kind, const std::vector<Row>& rows, int32_t columns)
      : kind_(kind),
        columns_(columns),
        rows_(rows),
        device_rows_(kind, num_rows(), columns, columns + kExtraStride),
        distinct_(kind, num_rows(), columns, columns + kExtraStride),
        row_index_(rows.size() * sizeof(int32_t)),
        num_distinct_(sizeof(int32_t)),
        workspace_(distinct_rows::workspace_bytes(num_rows())) {
    // What lies beyond the columns differs from row to row and must not matter.
    std::vector<float> noise(rows.size() * static_cast<size_t>(columns));
    device_rows_.upload(noise, /*pad=*/true);
    for (int64_t row = 0; row < num_rows(); ++row) {
      for (int plane = 0; plane < cta::num_planes(kind); ++plane) {
        for (int64_t column = 0; column < columns + kExtraStride; ++column) {
          const auto beyond = static_cast<uint32_t>(row % 60000);
          device_rows_.set_bits(plane, row, column, column < columns ? bits(plane, row, column) : beyond);
        }
      }
    }
    device_rows_.upload_fetched();
  }

  distinct_rows::Args args() const {
    distinct_rows::Args args{};
    args.rows = device_rows_.view();
    args.num_rows = num_rows();
    args.row_columns = columns_;
    args.distinct = distinct_.view();
    args.row_index = static_cast<int32_t*>(row_index_.data());
    args.num_distinct = static_cast<int32_t*>(num_distinct_.data());
    args.workspace = workspace_.data();
    return args;
  }

  Found run(uint64_t hash_mask = ~uint64_t{0}, bool copy = true) {
    distinct_.poison();
    row_index_.poison();
    num_distinct_.poison();
    workspace_.poison();
    distinct_rows::Args call = args();
    call.hash_mask = hash_mask;
    if (!copy) call.distinct = {};
    distinct_rows::find(call, nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    EXPECT_TRUE(row_index_.guards_intact() && num_distinct_.guards_intact() && workspace_.guards_intact());
    Found found;
    found.num_distinct = num_distinct_.download<int32_t>(1)[0];
    found.row_index = row_index_.download<int32_t>(rows_.size());
    if (copy) fetch_distinct(found);
    return found;
  }

 private:
  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()); }
  uint32_t bits(int plane, int64_t row, int64_t column) const {
    return rows_[static_cast<size_t>(row)][static_cast<size_t>(plane * columns_ + column)];
  }
  void fetch_distinct(Found& found) {
    distinct_.fetch();
    EXPECT_EQ(distinct_.margin_problem(0, 0), "");
    for (int64_t row = 0; row < num_rows(); ++row) {
      Row copy;
      for (int plane = 0; plane < cta::num_planes(kind_); ++plane) {
        for (int64_t column = 0; column < columns_ + kExtraStride; ++column) {
          const uint32_t got = distinct_.bits(plane, row, column);
          if (column < columns_ && row < found.num_distinct) {
            copy.push_back(static_cast<uint16_t>(got));
          } else {
            EXPECT_EQ(got, 0xFFFFu) << "written beyond the distinct rows or their columns: row " << row;
          }
        }
      }
      if (row < found.num_distinct) found.distinct.push_back(copy);
    }
  }

  Operand kind_;
  int32_t columns_;
  std::vector<Row> rows_;
  OperandBuffer device_rows_, distinct_;
  GuardedBuffer row_index_, num_distinct_, workspace_;
};

/// `num_rows` rows drawn from `num_sources` random ones.
std::vector<Row> random_rows(int64_t num_rows, int32_t num_sources, int32_t row_elements, uint32_t seed = 1) {
  std::mt19937 rng(seed);
  std::vector<Row> sources(static_cast<size_t>(num_sources), Row(static_cast<size_t>(row_elements)));
  for (Row& row : sources) {
    for (uint16_t& element : row) element = static_cast<uint16_t>(rng() % 60000);
  }
  std::vector<Row> rows;
  for (int64_t i = 0; i < num_rows; ++i) rows.push_back(sources[rng() % sources.size()]);
  return rows;
}

/// Rows of which a second copy follows: were two different rows given one hash, the later one's copies would not be
/// found equal.
std::vector<Row> twice(const std::vector<Row>& rows) {
  std::vector<Row> both = rows;
  both.insert(both.end(), rows.begin(), rows.end());
  return both;
}

void expect_right(Operand kind, const std::vector<Row>& rows, int32_t columns) {
  RowsRun run(kind, rows, columns);
  const Found right = reference(rows);
  const Found got = run.run();
  EXPECT_EQ(difference(got, right), "") << operand_name(kind) << ", " << rows.size() << " rows, " << columns
                                        << " columns";
  const Found without_copies = run.run(~uint64_t{0}, /*copy=*/false);
  EXPECT_EQ(without_copies.row_index, right.row_index);
  EXPECT_EQ(without_copies.num_distinct, right.num_distinct);
}

TEST(ClassifierSmall, DistinctRows) {
  expect_right(Operand::f16, random_rows(40, 7, 8), 8);
  expect_right(Operand::split, random_rows(20, 5, 2 * 16), 16);
  const std::vector<Row> rows = random_rows(30, 6, 8);
  EXPECT_EQ(broken_promise(RowsRun(Operand::f16, rows, 8).run(0), rows), "");
}

TEST(DistinctRows, CountsAndKinds) {
  for (const Operand kind : {Operand::f16, Operand::bf16, Operand::split}) {
    const int planes = cta::num_planes(kind);
    for (const int64_t num_rows : {1, 2, 7, 8, 9, 1000, 1023, 1024, 1025, 3000}) {
      for (const int32_t columns : {8, 264}) {
        expect_right(kind, random_rows(num_rows, 1, planes * columns), columns);
        expect_right(kind, random_rows(num_rows, 37, planes * columns), columns);
        expect_right(kind, random_rows(num_rows, 100'000 / columns, planes * columns), columns);
      }
    }
  }
}

TEST(DistinctRows, ManyRows) {
  expect_right(Operand::f16, random_rows(70'000, 5'000, 16), 16);
  expect_right(Operand::f16, random_rows(70'000, 1, 16), 16);
}

TEST(DistinctRows, AllRowsDiffer) {
  std::vector<Row> rows(20'000, Row(8, 0));
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i][2] = static_cast<uint16_t>(i & 0xFF);
    rows[i][5] = static_cast<uint16_t>(i >> 8);
  }
  expect_right(Operand::f16, rows, 8);
}

TEST(DistinctRows, LongRows) { expect_right(Operand::f16, random_rows(300, 40, 4096), 4096); }

TEST(DistinctRows, OneBitAnywhere) {
  constexpr int32_t kColumns = 520;
  std::vector<Row> rows = random_rows(1, 1, kColumns);
  for (size_t column = 0; column < kColumns; ++column) {
    for (const int bit : {0, 15}) {
      Row row = rows[0];
      row[column] = static_cast<uint16_t>(row[column] ^ (1 << bit));
      rows.push_back(row);
      rows.push_back(rows[0]);
    }
  }
  const Found right = reference(rows);
  ASSERT_EQ(right.num_distinct, 1 + 2 * kColumns);
  expect_right(Operand::bf16, rows, kColumns);
  // Now only the verification keeps them apart, wherever the bit is.
  EXPECT_EQ(difference(RowsRun(Operand::bf16, rows, kColumns).run(0), reference_of_one_hash(rows)), "");
  expect_right(Operand::bf16, twice(rows), kColumns);
}

TEST(DistinctRows, LastColumnOfEitherPlane) {
  std::vector<Row> rows(9, Row(2 * 264, 0x3C00));
  rows[3][263] = 0x3C01;          // last of the high plane
  rows[5][2 * 264 - 1] = 0x3C01;  // last of the low plane
  rows[7] = rows[5];
  ASSERT_EQ(reference(rows).num_distinct, 3);
  expect_right(Operand::split, rows, 264);
  EXPECT_EQ(difference(RowsRun(Operand::split, rows, 264).run(0), reference_of_one_hash(rows)), "");
}

TEST(DistinctRows, PermutedColumnsAreOtherRows) {
  for (const int32_t columns : {256, 512}) {  // a lane reads one chunk, or two
    Row row(static_cast<size_t>(columns));
    for (size_t i = 0; i < row.size(); ++i) row[i] = static_cast<uint16_t>(i);
    std::vector<Row> rows = {row};
    for (size_t distance = 1; distance < row.size(); distance *= 2) {  // elements, words, chunks of lanes, rounds
      Row swapped = row;
      for (size_t i = 0; i < distance; ++i) std::swap(swapped[i], swapped[i + distance]);
      rows.push_back(swapped);
    }
    ASSERT_EQ(static_cast<size_t>(reference(rows).num_distinct), rows.size());
    expect_right(Operand::f16, twice(rows), columns);
  }
}

TEST(DistinctRows, BitsCountNotValues) {
  std::vector<Row> rows(12, Row(16, 0));
  rows[1][4] = 0x8000;  // -0
  rows[2][4] = 0x7E00;  // NaN
  rows[3][4] = 0x7E01;  // NaN, another payload
  rows[4][4] = 0xFE00;  // NaN, negative
  rows[5] = rows[3];    // equal bits are equal rows, NaN or not
  rows[6] = rows[1];
  rows[7][15] = 0x0001;  // smallest subnormal
  const Found right = reference(rows);
  ASSERT_EQ(right.num_distinct, 6);
  ASSERT_EQ(right.row_index[5], right.row_index[3]);
  expect_right(Operand::f16, rows, 16);
}

// With one hash for all, only rows equal to the first one are found equal; the others are distinct by themselves.
TEST(DistinctRows, OneHashForAllRows) {
  const std::vector<Row> rows = random_rows(1000, 30, 24);
  RowsRun run(Operand::f16, rows, 24);
  const Found got = run.run(0);
  EXPECT_EQ(difference(got, reference_of_one_hash(rows)), "");
  EXPECT_EQ(broken_promise(got, rows), "");
  EXPECT_EQ(difference(run.run(), reference(rows)), "");
}

TEST(DistinctRows, FewHashes) {
  for (const uint64_t mask : {uint64_t{0xF}, uint64_t{0xF} << 60, uint64_t{0xFFF}}) {
    const std::vector<Row> rows = random_rows(3000, 200, 32);
    RowsRun run(Operand::f16, rows, 32);
    const Found got = run.run(mask);
    EXPECT_EQ(broken_promise(got, rows), "") << mask;
    EXPECT_GE(got.num_distinct, reference(rows).num_distinct);
    for (int repeat = 0; repeat < 4; ++repeat) ASSERT_EQ(run.run(mask), got);
  }
}

TEST(DistinctRows, EveryRunHasTheSameBits) {
  const std::vector<Row> rows = random_rows(20'000, 300, 24);
  RowsRun run(Operand::f16, rows, 24);
  const Found first = run.run();
  for (int repeat = 0; repeat < 4; ++repeat) ASSERT_EQ(run.run(), first);
}

TEST(DistinctRows, NoRowsAreZeroDistinct) {
  EXPECT_EQ(distinct_rows::workspace_bytes(0), 0u);
  GuardedBuffer count(sizeof(int32_t));
  distinct_rows::Args args{};
  args.num_distinct = static_cast<int32_t*>(count.data());
  distinct_rows::find(args, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_EQ(count.download<int32_t>(1)[0], 0);
}

TEST(DistinctRows, TheComparisonSeesErrors) {
  const std::vector<Row> rows = random_rows(100, 9, 8);
  RowsRun run(Operand::f16, rows, 8);
  const Found right = reference(rows);
  const Found got = run.run();
  ASSERT_EQ(difference(got, right), "");
  ASSERT_EQ(broken_promise(got, rows), "");
  const auto expect_seen = [&](const auto& plant) {
    Found wrong = got;
    plant(wrong);
    EXPECT_NE(difference(wrong, right), "");
    EXPECT_NE(broken_promise(wrong, rows), "");
  };
  expect_seen([](Found& f) { f.row_index[99] = (f.row_index[99] + 1) % f.num_distinct; });
  expect_seen([](Found& f) { f.distinct[8][7] ^= 1; });
  expect_seen([](Found& f) { std::swap(f.distinct[0], f.distinct[1]); });
  expect_seen([](Found& f) { ++f.num_distinct; });
  expect_seen([](Found& f) { std::fill(f.row_index.begin(), f.row_index.end(), 0); });
  // Numbers in another order, consistently: only the order is wrong.
  expect_seen([](Found& f) {
    std::swap(f.distinct[0], f.distinct[1]);
    for (int32_t& number : f.row_index) number = number == 0 ? 1 : number == 1 ? 0 : number;
  });
}

TEST(DistinctRows, BadArgumentsAreNamed) {
  const RowsRun run(Operand::split, random_rows(4, 2, 16), 8);
  const auto error = [&](const auto& change) {
    distinct_rows::Args args = run.args();
    change(args);
    return error_of([&] { distinct_rows::find(args, nullptr); });
  };
  using Args = distinct_rows::Args;
  EXPECT_EQ(error([](Args& a) { a.num_rows = -1; }).find("distinct_rows num_rows"), 0u);
  EXPECT_EQ(error([](Args& a) { a.num_rows = (int64_t{1} << 30) + 1; }).find("distinct_rows num_rows"), 0u);
  EXPECT_EQ(error([](Args& a) { a.row_columns = 4; }).find("distinct_rows row_columns"), 0u);
  EXPECT_EQ(error([](Args& a) { a.row_columns = 0; }).find("distinct_rows row_columns"), 0u);
  EXPECT_EQ(error([](Args& a) { a.row_columns = 24; }).find("distinct_rows rows"), 0u);
  EXPECT_EQ(error([](Args& a) { a.rows.kind = Operand::f32; }).find("distinct_rows rows"), 0u);
  EXPECT_EQ(error([](Args& a) { a.rows.plane_stride = 8; }).find("distinct_rows rows"), 0u);
  EXPECT_EQ(error([](Args& a) { a.distinct.kind = Operand::f16; }).find("distinct_rows distinct"), 0u);
  EXPECT_EQ(error([](Args& a) { a.row_index = nullptr; }).find("distinct_rows row_index"), 0u);
  EXPECT_EQ(error([](Args& a) { a.num_distinct = nullptr; }).find("distinct_rows num_distinct"), 0u);
  EXPECT_EQ(error([](Args& a) { a.workspace = static_cast<uint8_t*>(a.workspace) + 16; }).find("distinct_rows work"),
            0u);
}

/// The ids in the order of their first occurrence stand for the distinct rows.
Found find_tokens(const std::vector<int32_t>& ids, int32_t vocab_size) {
  const auto num_rows = static_cast<int64_t>(ids.size());
  const size_t most = std::min(ids.size(), static_cast<size_t>(vocab_size));
  GuardedBuffer device_ids(ids.size() * sizeof(int32_t)), distinct_ids(most * sizeof(int32_t)),
      row_index(ids.size() * sizeof(int32_t)), num_distinct(sizeof(int32_t)),
      workspace(distinct_rows::token_workspace_bytes(num_rows, vocab_size));
  device_ids.upload(ids);
  distinct_rows::TokenArgs args{};
  args.ids = static_cast<const int32_t*>(device_ids.data());
  args.num_rows = num_rows;
  args.vocab_size = vocab_size;
  args.distinct_ids = static_cast<int32_t*>(distinct_ids.data());
  args.row_index = static_cast<int32_t*>(row_index.data());
  args.num_distinct = static_cast<int32_t*>(num_distinct.data());
  args.workspace = workspace.data();
  distinct_rows::find_tokens(args, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_TRUE(distinct_ids.guards_intact() && row_index.guards_intact() && num_distinct.guards_intact() &&
              workspace.guards_intact());
  Found found;
  found.num_distinct = num_distinct.download<int32_t>(1)[0];
  found.row_index = row_index.download<int32_t>(ids.size());
  const std::vector<uint32_t> written = distinct_ids.download<uint32_t>(most);
  for (size_t i = 0; i < most; ++i) {
    if (static_cast<int32_t>(i) < found.num_distinct) {
      found.distinct.push_back({static_cast<uint16_t>(written[i] & 0xFFFF), static_cast<uint16_t>(written[i] >> 16)});
    } else {
      EXPECT_EQ(written[i], 0xFFFFFFFFu) << "written beyond the distinct ids";
    }
  }
  return found;
}

Found token_reference(const std::vector<int32_t>& ids) {
  std::vector<Row> rows;
  for (const int32_t id : ids) {
    const auto bits = static_cast<uint32_t>(id);
    rows.push_back({static_cast<uint16_t>(bits & 0xFFFF), static_cast<uint16_t>(bits >> 16)});
  }
  return reference(rows);
}

std::vector<int32_t> random_ids(size_t count, int32_t vocab_size, uint32_t seed = 1) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % static_cast<uint32_t>(vocab_size));
  return ids;
}

TEST(ClassifierSmall, DistinctTokens) {
  const std::vector<int32_t> ids = random_ids(50, 11);
  EXPECT_EQ(difference(find_tokens(ids, 11), token_reference(ids)), "");
}

TEST(DistinctTokens, CountsAndVocabularies) {
  for (const size_t count : {1, 2, 1000, 1023, 1024, 1025, 70'000}) {
    for (const int32_t vocab_size : {1, 2, 500, 21'635, 200'000}) {
      const std::vector<int32_t> ids = random_ids(count, vocab_size);
      EXPECT_EQ(difference(find_tokens(ids, vocab_size), token_reference(ids)), "") << count << " of " << vocab_size;
    }
  }
}

TEST(DistinctTokens, FallingIdsAreNumberedAsTheyCome) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 3000; ++i) ids.push_back(2999 - i % 1500);
  const Found got = find_tokens(ids, 3000);
  EXPECT_EQ(difference(got, token_reference(ids)), "");
  EXPECT_EQ(got.row_index[1499], 1499);
  EXPECT_EQ(got.row_index[1500], 0);
}

// More tiles than one step of the scan holds.
TEST(DistinctTokens, MoreThanAMillionTokens) {
  const std::vector<int32_t> ids = random_ids(1'200'000, 300'000);
  EXPECT_EQ(difference(find_tokens(ids, 300'000), token_reference(ids)), "");
}

TEST(DistinctTokens, NoTokensAndRepeats) {
  GuardedBuffer count(sizeof(int32_t));
  distinct_rows::TokenArgs args{};
  args.num_distinct = static_cast<int32_t*>(count.data());
  distinct_rows::find_tokens(args, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_EQ(count.download<int32_t>(1)[0], 0);

  const std::vector<int32_t> ids = random_ids(30'000, 700);
  const Found first = find_tokens(ids, 700);
  for (int repeat = 0; repeat < 4; ++repeat) ASSERT_EQ(find_tokens(ids, 700), first);
}

TEST(DistinctTokens, BadArgumentsAreNamed) {
  distinct_rows::TokenArgs args{};
  int32_t count = 0;  // never reached
  args.num_distinct = &count;
  args.num_rows = 1;
  const auto error = [&] { return error_of([&] { distinct_rows::find_tokens(args, nullptr); }); };
  EXPECT_EQ(error().find("distinct_rows vocab_size"), 0u);
  args.vocab_size = 5;
  EXPECT_EQ(error().find("distinct_rows ids"), 0u);
  args.num_rows = -1;
  EXPECT_EQ(error().find("distinct_rows num_rows"), 0u);
  args.num_distinct = nullptr;
  args.num_rows = 0;
  EXPECT_EQ(error().find("distinct_rows num_distinct"), 0u);
}

}  // namespace
}  // namespace tessera::testing
