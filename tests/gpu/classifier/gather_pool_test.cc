// Gathered sums and their maximum: every bit equals a host loop that adds the same fp32 numbers in the same order.
#include "cuda/kernels/gather_pool/launch.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "gpu/classifier/operand_buffer.h"
#include "tessera/core/error.h"

namespace tessera::testing {
namespace {

namespace gather_pool = kernels::gather_pool;

struct PoolCase {
  int32_t records = 3;
  int32_t positions = 16;
  int32_t filters = 8;
  std::vector<int32_t> widths = {3, 5, 7, 9};
  Operand table = Operand::f16;
  Operand out = Operand::f32;
  int32_t tokens = 20;
  int32_t extra_stride = 0;  // of out, beyond the padded columns

  int32_t taps() const {
    int32_t sum = 0;
    for (const int32_t width : widths) sum += width;
    return sum;
  }
  int64_t columns() const { return static_cast<int64_t>(widths.size()) * filters; }

  friend std::ostream& operator<<(std::ostream& out, const PoolCase& c) {
    out << operand_name(c.table) << " to " << operand_name(c.out) << ", N " << c.records << " S " << c.positions
        << " F " << c.filters << " widths";
    for (const int32_t width : c.widths) out << " " << width;
    return out;
  }
};

/// Changes to the reference: what a wrong kernel might compute.
enum class Planted { nothing, taps_in_reverse, last_window_missing, next_width_taps, bias_forgotten };

class PoolRun {
 public:
  explicit PoolRun(const PoolCase& c, uint32_t seed = 1)
      : case_(c),
        table_(c.table, static_cast<int64_t>(c.tokens) * c.taps(), c.filters, cta::padded_stride(c.filters)),
        out_(c.out, c.records, c.columns(), cta::padded_stride(c.columns()) + c.extra_stride),
        rows_(static_cast<size_t>(c.records) * static_cast<size_t>(c.positions)),
        bias_(static_cast<size_t>(c.columns())),
        device_rows_(rows_.size() * sizeof(int32_t)),
        device_bias_(bias_.size() * sizeof(float)) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> values(static_cast<size_t>(table_.rows() * c.filters));
    for (float& value : values) value = normal(rng);
    table_.upload(values, /*pad=*/false);  // the padding stays NaN: it must not matter
    table_values_.resize(values.size());
    for (size_t i = 0; i < values.size(); ++i)
      table_values_[i] = bits_to_float(c.table, operand_bits(c.table, 0, values[i]));
    // A third of the tokens is token 0, as real text repeats its frequent words.
    for (int32_t& row : rows_) row = rng() % 3 == 0 ? 0 : static_cast<int32_t>(rng() % static_cast<uint32_t>(c.tokens));
    for (float& b : bias_) b = 0.25f * normal(rng);
    device_rows_.upload(rows_);
    device_bias_.upload(bias_);
  }

  gather_pool::Args args() const {
    gather_pool::Args args{};
    args.rows = static_cast<const int32_t*>(device_rows_.data());
    args.table = table_.view();
    args.bias = static_cast<const float*>(device_bias_.data());
    args.out = out_.view();
    args.num_records = case_.records;
    args.positions = case_.positions;
    args.filters = case_.filters;
    args.num_widths = static_cast<int32_t>(case_.widths.size());
    std::copy(case_.widths.begin(), case_.widths.end(), args.widths);
    return args;
  }

  /// Runs into poisoned memory; out() holds the result.
  void run() {
    out_.poison();
    gather_pool::launch(args(), nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    out_.fetch();
  }
  OperandBuffer& out() { return out_; }
  const std::vector<int32_t>& rows() const { return rows_; }
  void set_rows(const std::vector<int32_t>& rows) {
    rows_ = rows;
    device_rows_.upload(rows_);
  }

  float expected(int32_t record, size_t w, int32_t filter, Planted planted = Planted::nothing) const {
    int32_t first_tap = 0;
    for (size_t i = 0; i < w; ++i) first_tap += case_.widths[i];
    const int32_t width = case_.widths[w];
    if (planted == Planted::next_width_taps) first_tap = (first_tap + width) % (case_.taps() - width + 1);
    const int32_t windows = case_.positions - width + 1 - (planted == Planted::last_window_missing ? 1 : 0);
    float best = -std::numeric_limits<float>::infinity();
    for (int32_t window = 0; window < windows; ++window) {
      float sum = 0.0f;
      for (int32_t i = 0; i < width; ++i) {
        const int32_t tap = planted == Planted::taps_in_reverse ? width - 1 - i : i;
        const int64_t row = rows_[static_cast<size_t>(record * case_.positions + window + tap)];
        sum += table_values_[static_cast<size_t>((row * case_.taps() + first_tap + tap) * case_.filters + filter)];
      }
      if (sum > best) best = sum;
    }
    const size_t column = w * static_cast<size_t>(case_.filters) + static_cast<size_t>(filter);
    const float value = planted == Planted::bias_forgotten ? best : best + bias_[column];
    return value > 0.0f ? value : 0.0f;
  }

  /// First difference of out() from the reference, in all planes, and what is wrong around it; empty when all is right.
  std::string difference(Planted planted = Planted::nothing) const {
    for (int32_t record = 0; record < case_.records; ++record) {
      for (size_t w = 0; w < case_.widths.size(); ++w) {
        for (int32_t filter = 0; filter < case_.filters; ++filter) {
          const float value = expected(record, w, filter, planted);
          const int64_t column = static_cast<int64_t>(w) * case_.filters + filter;
          for (int plane = 0; plane < cta::num_planes(case_.out); ++plane) {
            const uint32_t got = out_.bits(plane, record, column);
            if (got == operand_bits(case_.out, plane, value)) continue;
            return str_cat("record ", record, " width ", case_.widths[w], " filter ", filter, " plane ", plane,
                           ": got ", bits_to_float(case_.out, got), ", expected ", value);
          }
        }
      }
    }
    const int64_t padded = cta::padded_stride(case_.columns());
    const auto poison = static_cast<uint32_t>((uint64_t{1} << (8 * cta::element_bytes(case_.out))) - 1);
    for (int plane = 0; plane < cta::num_planes(case_.out); ++plane) {
      for (int32_t record = 0; record < case_.records; ++record) {
        for (int64_t column = padded; column < out_.stride(); ++column) {
          if (out_.bits(plane, record, column) != poison)
            return str_cat("record ", record, " column ", column, " does not belong to out, but was written");
        }
      }
    }
    return out_.margin_problem(case_.columns(), padded);
  }

 private:
  PoolCase case_;
  OperandBuffer table_, out_;
  std::vector<int32_t> rows_;
  std::vector<float> bias_, table_values_;
  GuardedBuffer device_rows_, device_bias_;
};

void expect_right(const PoolCase& c) {
  PoolRun run(c);
  run.run();
  EXPECT_EQ(run.difference(), "") << c;
}

constexpr Operand kTables[] = {Operand::f16, Operand::bf16, Operand::f32};
constexpr Operand kOuts[] = {Operand::f16, Operand::bf16, Operand::split, Operand::f32};

TEST(ClassifierSmall, GatherPool) {
  for (const Operand table : kTables) {
    expect_right({.records = 2, .positions = 5, .filters = 7, .widths = {1, 3, 5}, .table = table, .tokens = 4});
    expect_right({.records = 2, .positions = 12, .filters = 8, .widths = {2, 11}, .table = table, .tokens = 4});
  }
  expect_right({.records = 1, .positions = 4, .filters = 9, .widths = {2, 4}, .out = Operand::split, .tokens = 3});
}

TEST(GatherPool, PositionsAndRecords) {
  for (const Operand table : kTables) {
    for (const int32_t records : {1, 3, 130}) {
      expect_right({.records = records, .positions = 1, .filters = 100, .widths = {1}, .table = table});
      expect_right({.records = records, .positions = 5, .filters = 100, .widths = {3, 5}, .table = table});
      expect_right({.records = records, .positions = 16, .filters = 100, .widths = {2, 2, 16}, .table = table});
      expect_right({.records = records, .positions = 33, .filters = 8, .widths = {3, 5, 7, 9}, .table = table});
    }
  }
}

TEST(GatherPool, Filters) {
  for (const Operand table : kTables) {
    for (const int32_t filters : {1, 7, 8, 9, 100, 256, 264, 300, 1024})
      expect_right({.records = 5, .filters = filters, .table = table});
  }
}

TEST(GatherPool, FullSize) {
  for (const Operand out : kOuts) expect_right({.records = 130, .filters = 1024, .out = out, .tokens = 200});
}

TEST(GatherPool, EveryUnrolledWidthAndBeyond) {
  for (const Operand table : kTables) {
    expect_right({.records = 4, .positions = 33, .filters = 20, .widths = {1, 2, 3, 4, 5, 6, 7, 8}, .table = table});
    expect_right(
        {.records = 4, .positions = 33, .filters = 20, .widths = {9, 10, 11, 12, 19, 20, 21, 33}, .table = table});
    // As many windows as are loaded together, one fewer, one more.
    for (int32_t positions = 1; positions <= 24; ++positions) {
      expect_right({.positions = positions, .widths = {1}, .table = table});
      if (positions >= 3) expect_right({.positions = positions, .widths = {3, 2}, .table = table});
    }
  }
}

TEST(GatherPool, LongSequencesAndWideFilters) {
  for (const Operand table : kTables) {
    expect_right({.records = 3, .positions = 512, .filters = 8, .widths = {1, 512}, .table = table});
    expect_right({.records = 3, .positions = 512, .filters = 16, .widths = {3, 5, 7, 9}, .table = table});
    expect_right({.records = 1, .positions = 512, .filters = 1024, .widths = {3}, .table = table});
    expect_right({.records = 2, .positions = 512, .filters = 7, .widths = {511, 16}, .table = table});
  }
}

TEST(GatherPool, EveryOutputKindWithAndWithoutWholeChunks) {
  for (const Operand out : kOuts) {
    for (const int32_t filters : {5, 8, 44}) {
      expect_right({.records = 7, .filters = filters, .out = out});
      expect_right({.records = 7, .filters = filters, .out = out, .extra_stride = 16});
    }
  }
}

TEST(GatherPool, SixteenWidths) {
  expect_right({.records = 9,
                .positions = 20,
                .filters = 33,
                .widths = {1, 20, 2, 19, 3, 18, 4, 17, 5, 16, 6, 15, 7, 14, 8, 13}});
}

TEST(GatherPool, NoRecordsLaunchesNothing) {
  PoolRun run({.records = 1});
  gather_pool::Args args = run.args();
  args.num_records = 0;
  args.rows = nullptr;
  gather_pool::launch(args, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  run.out().fetch();
  EXPECT_EQ(run.out().bits(0, 0, 0), 0xFFFFFFFFu);
}

TEST(GatherPool, NegativeSumsBecomeZero) {
  const PoolCase c{.records = 40, .filters = 64};
  PoolRun run(c);
  run.run();
  int64_t zeros = 0;
  for (int64_t record = 0; record < c.records; ++record) {
    for (int64_t column = 0; column < c.columns(); ++column) zeros += run.out().bits(0, record, column) == 0 ? 1 : 0;
  }
  EXPECT_GT(zeros, 0);  // otherwise the comparisons above never see the ReLU
  EXPECT_EQ(run.difference(), "");
}

TEST(GatherPool, NeighboursDoNotChangeBits) {
  const PoolCase c{.records = 65, .filters = 100};
  PoolRun batch(c);
  batch.run();
  for (const size_t record : {size_t{0}, size_t{31}, size_t{64}}) {
    PoolCase alone = c;
    alone.records = 1;
    PoolRun single(alone);
    const auto begin = batch.rows().begin() + static_cast<int64_t>(record) * c.positions;
    single.set_rows(std::vector<int32_t>(begin, begin + c.positions));
    // The same table: it is drawn first, from the same seed. The bias is drawn after the rows and is not.
    gather_pool::Args args = single.args();
    args.bias = batch.args().bias;
    gather_pool::launch(args, nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    single.out().fetch();
    for (int64_t column = 0; column < c.columns(); ++column) {
      ASSERT_EQ(single.out().bits(0, 0, column), batch.out().bits(0, static_cast<int64_t>(record), column))
          << "record " << record << " column " << column;
    }
  }
}

TEST(GatherPool, EveryRunHasTheSameBits) {
  PoolRun run({.records = 70, .filters = 300});
  run.run();
  const std::vector<uint8_t> first = run.out().bytes();
  for (int repeat = 0; repeat < 4; ++repeat) {
    run.run();
    ASSERT_EQ(run.out().bytes(), first);
  }
}

// Element offsets beyond 2^31: only the last token's rows are filled, everything else is NaN.
TEST(GatherPool, TableBeyond32Bits) {
  constexpr int32_t kFilters = 1024, kTaps = 24, kTokens = 90'000;
  constexpr int64_t kTokenElements = int64_t{kTaps} * kFilters;
  static_assert(kTokenElements * (kTokens - 1) > int64_t{1} << 31);
  GuardedBuffer table(static_cast<size_t>(kTokenElements * kTokens) * sizeof(uint16_t));
  std::vector<uint16_t> last(static_cast<size_t>(kTokenElements));
  for (size_t i = 0; i < last.size(); ++i) last[i] = f32_to_f16(static_cast<float>(i % 61) / 8.0f);
  TESSERA_CUDA_CHECK(cudaMemcpy(static_cast<uint16_t*>(table.data()) + kTokenElements * (kTokens - 1), last.data(),
                                last.size() * sizeof(uint16_t), cudaMemcpyHostToDevice));
  PoolRun run({.records = 1, .filters = kFilters});
  run.set_rows(std::vector<int32_t>(16, kTokens - 1));
  gather_pool::Args args = run.args();
  args.table.data = table.data();
  const std::vector<float> zeros(4 * kFilters, 0.0f);
  GuardedBuffer bias(zeros.size() * sizeof(float));
  bias.upload(zeros);
  args.bias = static_cast<const float*>(bias.data());
  gather_pool::launch(args, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  run.out().fetch();
  int32_t tap = 0;
  for (int32_t w = 0; w < 4; ++w) {
    for (int32_t filter = 0; filter < kFilters; ++filter) {
      double sum = 0.0;  // exact: multiples of 1/8
      for (int32_t l = 0; l < args.widths[w]; ++l)
        sum += static_cast<double>((static_cast<int64_t>(tap + l) * kFilters + filter) % 61) / 8.0;
      ASSERT_EQ(run.out().value(0, static_cast<int64_t>(w) * kFilters + filter), sum) << "width " << args.widths[w];
    }
    tap += args.widths[w];
  }
}

TEST(GatherPool, TheComparisonSeesErrors) {
  const PoolCase c{.records = 6, .filters = 100, .table = Operand::f32};
  PoolRun run(c);
  run.run();
  ASSERT_EQ(run.difference(), "");
  for (const Planted planted :
       {Planted::taps_in_reverse, Planted::last_window_missing, Planted::next_width_taps, Planted::bias_forgotten})
    EXPECT_NE(run.difference(planted), "") << static_cast<int>(planted);

  OperandBuffer& out = run.out();
  const auto expect_seen = [&](const char* what) {
    EXPECT_NE(run.difference(), "") << what;
    out.fetch();
  };
  const int64_t last = c.columns() - 1;
  out.set_bits(0, 5, last, out.bits(0, 5, last) ^ 1u);
  expect_seen("one bit");
  for (int64_t column = 0; column < c.columns(); ++column) {
    const uint32_t bits = out.bits(0, 1, column);
    out.set_bits(0, 1, column, out.bits(0, 4, column));
    out.set_bits(0, 4, column, bits);
  }
  expect_seen("swapped records");
  for (int64_t column = 0; column < c.columns(); ++column) out.set_bits(0, 2, column, 0);
  expect_seen("a zeroed record");
  EXPECT_EQ(run.difference(), "");
}

TEST(GatherPool, BadArgumentsAreNamed) {
  PoolRun run({.records = 2, .filters = 9});
  const auto error = [&](const auto& change) {
    gather_pool::Args args = run.args();
    change(args);
    return error_of([&] { gather_pool::launch(args, nullptr); });
  };
  using Args = gather_pool::Args;
  const auto names = [](const std::string& message, const std::string& argument) {
    return message.find("gather_pool " + argument) == 0 ? "" : message;
  };
  EXPECT_EQ(names(error([](Args& a) { a.num_records = -1; }), "num_records"), "");
  EXPECT_EQ(names(error([](Args& a) { a.num_records = int64_t{1} << 42; }), "num_records"), "");
  EXPECT_EQ(names(error([](Args& a) { a.positions = 0; }), "positions"), "");
  EXPECT_EQ(names(error([](Args& a) { a.positions = 513; }), "positions"), "");
  EXPECT_EQ(names(error([](Args& a) { a.filters = 0; }), "filters"), "");
  EXPECT_EQ(names(error([](Args& a) { a.num_widths = 17; }), "num_widths"), "");
  EXPECT_EQ(names(error([](Args& a) { a.num_widths = 0; }), "num_widths"), "");
  EXPECT_EQ(names(error([](Args& a) { a.widths[1] = 17; }), "widths[1]"), "");
  EXPECT_EQ(names(error([](Args& a) { a.widths[3] = 0; }), "widths[3]"), "");
  EXPECT_EQ(names(error([](Args& a) { a.rows = nullptr; }), "rows"), "");
  EXPECT_EQ(names(error([](Args& a) { a.bias = nullptr; }), "bias"), "");
  EXPECT_EQ(names(error([](Args& a) { a.table.data = nullptr; }), "table"), "");
  EXPECT_EQ(names(error([](Args& a) { a.table.kind = Operand::split; }), "table"), "");
  EXPECT_EQ(names(error([](Args& a) { a.table.stride = 8; }), "table"), "");
  EXPECT_EQ(names(error([](Args& a) { a.table.stride = int64_t{1} << 33; }), "table"), "");
  EXPECT_EQ(names(error([](Args& a) { a.table.data = static_cast<uint8_t*>(a.table.data) + 8; }), "table"), "");
  EXPECT_EQ(names(error([](Args& a) { a.out.stride = 37; }), "out"), "");
  EXPECT_EQ(names(error([](Args& a) { a.out.data = nullptr; }), "out"), "");
}

}  // namespace
}  // namespace tessera::testing
