// Inputs become operand rows with the host's own rounding, bit for bit, whatever the shape; what no kind can hold is
// flagged in its record and nowhere else.
#include "cuda/kernels/operand_rows/launch.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <random>

#include "cuda/core/stream.h"
#include "gpu/captured_graph.h"
#include "gpu/classifier/operand_buffer.h"

namespace tessera::testing {
namespace {

using kernels::operand_rows::convert_embeddings;
using kernels::operand_rows::gather_tokens;

constexpr Operand kKinds[] = {Operand::f16, Operand::bf16, Operand::split, Operand::f32};

struct ConvertCase {
  Operand kind = Operand::f16;
  int64_t records = 1;
  int32_t channels = 8;
  int32_t positions = 16;
  int64_t extra_stride = 0;  // beyond the padding to a multiple of 8

  friend std::ostream& operator<<(std::ostream& out, const ConvertCase& c) {
    return out << operand_name(c.kind) << " N " << c.records << " C " << c.channels << " S " << c.positions << " extra "
               << c.extra_stride;
  }
  size_t num_values() const { return static_cast<size_t>(records * channels * positions); }
};

/// Numbers within the kind, of every magnitude: subnormals, values halfway between two of the kind's, both zeros.
std::vector<float> hard_numbers(Operand kind, size_t count, uint32_t seed) {
  std::vector<float> numbers(count);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  const bool is_half = kind == Operand::f16 || kind == Operand::split;
  for (float& number : numbers) {
    const uint32_t random = static_cast<uint32_t>(rng());
    const auto lower = static_cast<uint16_t>(random % (is_half ? 0x7BFFu : 0x7F7Fu));
    switch (rng() % 5) {
      case 0: number = normal(rng); break;
      case 1:
        number = std::ldexp(1.0f + static_cast<float>(random % 0x800000u) * 0x1p-23f,
                            static_cast<int>((random >> 24) % 46) - 30);
        break;
      case 2:  // halfway between two neighbours of 16 bits
        number = is_half ? 0.5f * (f16_to_f32(lower) + f16_to_f32(static_cast<uint16_t>(lower + 1)))
                         : std::bit_cast<float>(uint32_t{lower} << 16 | 0x8000u);
        break;
      case 3: number = is_half ? f16_to_f32(lower) : bf16_to_f32(lower); break;
      default: number = random % 8 == 0 ? 0.0f : std::ldexp(normal(rng), -20); break;
    }
    if (is_half) number = std::min(number, 65504.0f);
    if (rng() % 2 == 0) number = -number;
  }
  return numbers;
}

class ConvertRun {
 public:
  ConvertRun(const ConvertCase& c, std::vector<float> embeddings)
      : case_(c),
        host_(std::move(embeddings)),
        embeddings_(c.num_values() * sizeof(float)),
        rows_(c.kind, c.records * c.positions, c.channels, cta::padded_stride(c.channels) + c.extra_stride),
        finite_(static_cast<size_t>(c.records)) {
    embeddings_.upload(host_);
  }

  void launch(cudaStream_t stream = nullptr) {
    convert_embeddings({static_cast<const float*>(embeddings_.data()), rows_.view(),
                        static_cast<uint8_t*>(finite_.data()), case_.records, case_.channels, case_.positions},
                       stream);
  }
  void fetch() {
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    rows_.fetch();
  }
  void set_embeddings(std::vector<float> embeddings) {
    host_ = std::move(embeddings);
    embeddings_.upload(host_);
  }

  /// First difference of the rows from the host's rounding; empty when there is none.
  std::string difference() const {
    for (int plane = 0; plane < cta::num_planes(case_.kind); ++plane) {
      for (int64_t row = 0; row < rows_.rows(); ++row) {
        const int64_t record = row / case_.positions, position = row % case_.positions;
        for (int64_t channel = 0; channel < case_.channels; ++channel) {
          const float value =
              host_[static_cast<size_t>((record * case_.channels + channel) * case_.positions + position)];
          const uint32_t expected = operand_bits(case_.kind, plane, value), got = rows_.bits(plane, row, channel);
          const bool both_nan =
              std::isnan(bits_to_float(case_.kind, expected)) && std::isnan(bits_to_float(case_.kind, got));
          if (got == expected || both_nan) continue;
          return str_cat("plane ", plane, " record ", record, " position ", position, " channel ", channel, ": bits ",
                         got, ", expected ", expected, " of ", value);
        }
      }
    }
    if (!finite_.guards_intact() || !embeddings_.guards_intact()) return "a guard was written";
    if (embeddings_.download<uint8_t>(embeddings_.bytes()) != bytes_of(host_)) return "the input was written";
    return rows_.margin_problem(case_.channels, rows_.stride());
  }
  std::vector<uint8_t> finite() const { return finite_.download<uint8_t>(static_cast<size_t>(case_.records)); }
  OperandBuffer& rows() { return rows_; }

 private:
  static std::vector<uint8_t> bytes_of(const std::vector<float>& values) {
    std::vector<uint8_t> bytes(values.size() * sizeof(float));
    if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }

  ConvertCase case_;
  std::vector<float> host_;
  GuardedBuffer embeddings_;
  OperandBuffer rows_;
  GuardedBuffer finite_;
};

void expect_host_bits(const ConvertCase& c) {
  static uint32_t seed = 100;
  ConvertRun run(c, hard_numbers(c.kind, c.num_values(), ++seed));
  run.launch();
  run.fetch();
  EXPECT_EQ(run.difference(), "") << c << " seed " << seed;
  EXPECT_EQ(run.finite(), std::vector<uint8_t>(static_cast<size_t>(c.records), 1)) << c;
}

TEST(OperandRows, ConvertHasTheHostsBits) {
  for (const Operand kind : kKinds) {
    expect_host_bits({kind, 1, 1, 1});
    expect_host_bits({kind, 3, 5, 7});
    expect_host_bits({kind, 2, 64, 16});
    expect_host_bits({kind, 5, 100, 16});
    expect_host_bits({kind, 7, 4096, 16});
    expect_host_bits({kind, 2, 33, 512});
    expect_host_bits({kind, 4, 8, 300});
    expect_host_bits({kind, 2, 257, 15, 8});
    expect_host_bits({kind, 3, 20, 16, 64});
    expect_host_bits({kind, 70, 9, 1});
  }
}

// Every way of sharing a warp between positions and channels, at its edges.
TEST(OperandRows, ConvertEveryNumberOfPositions) {
  for (int32_t positions = 1; positions <= 40; ++positions) {
    for (const int32_t channels : {7, 64, 72}) expect_host_bits({Operand::split, 3, channels, positions});
  }
  for (const int32_t positions : {63, 64, 65, 127, 128, 129, 509, 511})
    expect_host_bits({Operand::f16, 2, 24, positions});
}

TEST(OperandRows, NothingToDoLaunchesNothing) {
  convert_embeddings({nullptr, {}, nullptr, 0, 16, 16}, nullptr);
  gather_tokens({nullptr, {}, {}, 0}, nullptr);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

struct Flagged {
  float value;
  bool half, bf16, f32;  // whether the kinds hold it; a split holds what f16 holds

  bool is_held_by(Operand kind) const { return kind == Operand::f32 ? f32 : kind == Operand::bf16 ? bf16 : half; }
};

TEST(OperandRows, WhatTheKindCannotHoldIsFlagged) {
  const float last_bf16 = std::bit_cast<float>(0x7F7F7FFFu), first_beyond_bf16 = std::bit_cast<float>(0x7F7F8000u);
  const Flagged numbers[] = {{NAN, false, false, false},
                             {-NAN, false, false, false},
                             {std::bit_cast<float>(0x7F800001u), false, false, false},
                             {INFINITY, false, false, false},
                             {-INFINITY, false, false, false},
                             {65504.0f, true, true, true},
                             {-65504.0f, true, true, true},
                             {65504.01f, false, true, true},
                             {65520.0f, false, true, true},
                             {-1e5f, false, true, true},
                             {last_bf16, false, true, true},
                             {first_beyond_bf16, false, false, true},
                             {-FLT_MAX, false, false, true},
                             {FLT_MAX, false, false, true},
                             {0x1p-140f, true, true, true}};
  for (const Operand kind : kKinds) {
    for (const auto& [channels, positions] : {std::pair{70, 16}, std::pair{9, 7}}) {
      const ConvertCase c{kind, 3, channels, positions};
      const size_t record = static_cast<size_t>(channels) * static_cast<size_t>(positions);
      for (const Flagged& number : numbers) {
        for (const size_t place : {size_t{0}, record / 2, record - 1}) {
          std::vector<float> embeddings = hard_numbers(kind, c.num_values(), 7);
          embeddings[record + place] = number.value;
          ConvertRun run(c, embeddings);
          run.launch();
          run.fetch();
          const std::vector<uint8_t> expected = {1, number.is_held_by(kind), 1};
          EXPECT_EQ(run.finite(), expected) << c << " " << number.value << " at " << place;
          // A split of what is beyond it holds no number: nobody looks at that record.
          if (number.is_held_by(kind)) {
            EXPECT_EQ(run.difference(), "") << c << " " << number.value;
          }
        }
      }
    }
  }
}

TEST(OperandRows, ConvertInAGraph) {
  const ConvertCase c{Operand::f16, 4, 40, 16};
  ConvertRun run(c, hard_numbers(c.kind, c.num_values(), 1));
  const cuda::Stream owned(cudaStreamDefault);
  cudaStream_t stream = owned.get();
  const CapturedGraph graph(stream, [&] { run.launch(stream); });
  for (uint32_t replay = 0; replay < 4; ++replay) {
    std::vector<float> embeddings = hard_numbers(c.kind, c.num_values(), 20 + replay);
    embeddings[replay * 40 * 16 + 3] = NAN;  // a different record each time: the flags start at 1 each time
    run.set_embeddings(embeddings);
    run.rows().poison();
    graph.replay(stream);
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
    run.fetch();
    EXPECT_EQ(run.difference(), "") << replay;
    std::vector<uint8_t> expected(4, 1);
    expected[replay] = 0;
    EXPECT_EQ(run.finite(), expected) << replay;
  }
}

// C1: more than 2^31 elements in and out; a few records around the place where 32 bits end.
TEST(OperandRows, C1_ConvertBeyondTwoToTheThirtyOne) {
  const int32_t channels = 4096, positions = 16;
  const int64_t record = int64_t{channels} * positions, records = (int64_t{1} << 31) / record + 3;
  GuardedBuffer embeddings(static_cast<size_t>(records * record) * 4), finite(static_cast<size_t>(records));
  GuardedBuffer rows(static_cast<size_t>(records * record) * 2);
  TESSERA_CUDA_CHECK(cudaMemset(embeddings.data(), 0, embeddings.bytes()));
  const std::vector<int64_t> looked_at = {0, records / 2, records - 4, records - 3, records - 1};
  const std::vector<float> numbers = hard_numbers(Operand::f16, static_cast<size_t>(record), 3);
  for (const int64_t n : looked_at) {
    TESSERA_CUDA_CHECK(cudaMemcpy(static_cast<float*>(embeddings.data()) + n * record, numbers.data(),
                                  numbers.size() * 4, cudaMemcpyHostToDevice));
  }
  convert_embeddings({static_cast<const float*>(embeddings.data()),
                      {rows.data(), Operand::f16, channels, 0},
                      static_cast<uint8_t*>(finite.data()),
                      records,
                      channels,
                      positions},
                     nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_TRUE(rows.guards_intact() && finite.guards_intact());
  EXPECT_EQ(finite.download<uint8_t>(finite.bytes()), std::vector<uint8_t>(finite.bytes(), 1));
  for (const int64_t n : looked_at) {
    std::vector<uint16_t> got(numbers.size());
    TESSERA_CUDA_CHECK(cudaMemcpy(got.data(), static_cast<uint16_t*>(rows.data()) + n * record, got.size() * 2,
                                  cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < got.size(); ++i) {
      const float value = numbers[i % channels * positions + i / channels];
      ASSERT_EQ(got[i], f32_to_f16(value)) << "record " << n << " element " << i;
    }
  }
}

/// First row of `rows` that is not the table's row `ids` names; empty when there is none.
std::string gather_difference(const OperandBuffer& rows, const OperandBuffer& table, const std::vector<int32_t>& ids) {
  for (int plane = 0; plane < cta::num_planes(table.kind()); ++plane) {
    for (int64_t row = 0; row < rows.rows(); ++row) {
      for (int64_t column = 0; column < rows.stride(); ++column) {
        if (rows.bits(plane, row, column) != table.bits(plane, ids[static_cast<size_t>(row)], column))
          return str_cat("plane ", plane, " row ", row, " column ", column);
      }
    }
  }
  return rows.margin_problem(0, 0);
}

/// Every third id is the same, the first and the last row of the table are among them.
std::vector<int32_t> make_ids(int64_t num_rows, int32_t vocabulary) {
  std::vector<int32_t> ids(static_cast<size_t>(num_rows));
  std::mt19937 rng(5);
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = i % 3 == 0 ? vocabulary - 1 : static_cast<int32_t>(rng() % static_cast<uint32_t>(vocabulary));
    if (i % 11 == 1) ids[i] = 0;
  }
  return ids;
}

void expect_gathered(Operand kind, int64_t num_rows, int64_t columns, int32_t vocabulary) {
  OperandBuffer table(kind, vocabulary, columns, cta::padded_stride(columns));
  table.upload(hard_numbers(kind, static_cast<size_t>(vocabulary * columns), 9), true);
  OperandBuffer rows(kind, num_rows, columns, table.stride());
  const std::vector<int32_t> ids = make_ids(num_rows, vocabulary);
  GuardedBuffer device_ids(ids.size() * sizeof(int32_t));
  device_ids.upload(ids);
  gather_tokens({static_cast<const int32_t*>(device_ids.data()), table.view(), rows.view(), num_rows}, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  rows.fetch();
  table.fetch();
  EXPECT_EQ(gather_difference(rows, table, ids), "")
      << operand_name(kind) << " rows " << num_rows << " columns " << columns << " V " << vocabulary;
}

TEST(OperandRows, GatherCopiesRows) {
  for (const Operand kind : kKinds) {
    for (const int64_t columns : {1, 8, 24, 136, 1024, 1030, 4096}) {
      expect_gathered(kind, 1, columns, 1);
      expect_gathered(kind, 37, columns, 21);
      expect_gathered(kind, 300, columns, 50);
    }
  }
}

// C2: a table and rows whose offsets pass 2^31 elements.
TEST(OperandRows, C2_GatherBeyondTwoToTheThirtyOne) {
  const int64_t stride = 65536, count = (int64_t{1} << 31) / stride + 3;
  GuardedBuffer table(static_cast<size_t>(stride * count) * 2), rows(static_cast<size_t>(stride * count) * 2);
  std::vector<int32_t> ids(static_cast<size_t>(count), 0);
  const auto last = static_cast<size_t>(count - 1);
  ids[last] = static_cast<int32_t>(count - 1);
  ids[last - 3] = static_cast<int32_t>(count - 2);
  GuardedBuffer device_ids(ids.size() * 4);
  device_ids.upload(ids);
  std::vector<uint16_t> numbers(static_cast<size_t>(stride));
  for (const size_t row : {size_t{0}, last, last - 1}) {
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<uint16_t>(i * 7 + row);
    TESSERA_CUDA_CHECK(cudaMemcpy(static_cast<uint16_t*>(table.data()) + row * numbers.size(), numbers.data(),
                                  numbers.size() * 2, cudaMemcpyHostToDevice));
  }
  gather_tokens({static_cast<const int32_t*>(device_ids.data()),
                 {table.data(), Operand::f16, stride, 0},
                 {rows.data(), Operand::f16, stride, 0},
                 count},
                nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_TRUE(rows.guards_intact());
  for (const size_t row : {size_t{0}, size_t{1}, last - 3, last - 2, last}) {
    TESSERA_CUDA_CHECK(cudaMemcpy(numbers.data(), static_cast<uint16_t*>(rows.data()) + row * numbers.size(),
                                  numbers.size() * 2, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < numbers.size(); ++i)
      ASSERT_EQ(numbers[i], static_cast<uint16_t>(i * 7 + static_cast<size_t>(ids[row]))) << row << " " << i;
  }
}

TEST(OperandRows, BadArgumentsNameThemselves) {
  GuardedBuffer memory(1 << 16);
  auto* const bytes = static_cast<uint8_t*>(memory.data());
  auto* const floats = static_cast<float*>(memory.data());
  const cta::OperandView rows{bytes, Operand::f16, 16, 0}, split{bytes, Operand::split, 16, 64};
  const auto convert_error = [&](const kernels::operand_rows::ConvertArgs& args) {
    return error_of([&] { convert_embeddings(args, nullptr); });
  };
  const auto begins_with = [](const std::string& text, const std::string& begin) {
    EXPECT_EQ(text.substr(0, begin.size()), begin);
  };
  begins_with(convert_error({floats, rows, bytes, -1, 16, 4}), "convert_embeddings num_records: got -1");
  begins_with(convert_error({floats, rows, bytes, 1, 0, 4}), "convert_embeddings channels: got 0");
  begins_with(convert_error({floats, rows, bytes, 1, 16, 0}), "convert_embeddings positions: got 0");
  begins_with(convert_error({floats, rows, bytes, 1, 16, 513}), "convert_embeddings positions: got 513");
  begins_with(convert_error({nullptr, rows, bytes, 1, 16, 4}), "convert_embeddings embeddings: got a null");
  begins_with(convert_error({floats + 1, rows, bytes, 1, 16, 4}), "convert_embeddings embeddings: got a misaligned");
  begins_with(convert_error({floats, rows, nullptr, 1, 16, 4}), "convert_embeddings finite");
  begins_with(convert_error({floats, rows, bytes, 1, 17, 4}), "convert_embeddings rows.stride: got 16");
  begins_with(convert_error({floats, {bytes, Operand::f16, 20, 0}, bytes, 1, 16, 4}), "convert_embeddings rows.stride");
  begins_with(convert_error({floats, {bytes + 8, Operand::f16, 16, 0}, bytes, 1, 16, 4}),
              "convert_embeddings rows.data: got a misaligned");
  begins_with(convert_error({floats, split, bytes, 2, 16, 4}), "convert_embeddings rows.plane_stride: got 64");
  const auto* const ids = reinterpret_cast<const int32_t*>(bytes);
  begins_with(error_of([&] { gather_tokens({ids, rows, rows, -2}, nullptr); }), "gather_tokens num_rows: got -2");
  begins_with(error_of([&] { gather_tokens({nullptr, rows, rows, 1}, nullptr); }), "gather_tokens ids");
  begins_with(error_of([&] { gather_tokens({ids, {}, rows, 1}, nullptr); }), "gather_tokens table.data");
  begins_with(error_of([&] { gather_tokens({ids, rows, {}, 1}, nullptr); }), "gather_tokens rows.data");
  EXPECT_NE(error_of([&] { gather_tokens({ids, rows, split, 1}, nullptr); }), "no error");
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (const uint8_t byte : memory.download<uint8_t>(memory.bytes())) ASSERT_EQ(byte, GuardedBuffer::kPoisonByte);
}

TEST(OperandRows, ComparisonSeesPlantedErrors) {
  const ConvertCase c{Operand::split, 2, 20, 16};
  ConvertRun run(c, hard_numbers(c.kind, c.num_values(), 4));
  run.fetch();  // before the launch: nothing is written
  EXPECT_NE(run.difference(), "");
  run.launch();
  run.fetch();
  ASSERT_EQ(run.difference(), "");
  for (const auto& [plane, row, column] : {std::tuple{0, 0, 0}, {1, 31, 19}, {0, 7, 22}, {1, 32, 5}}) {
    const uint32_t right = run.rows().bits(plane, row, column);
    run.rows().set_bits(plane, row, column, right ^ 1u);  // values, padding (column 22) and a gap (row 32)
    EXPECT_NE(run.difference(), "") << plane << " " << row << " " << column;
    run.rows().set_bits(plane, row, column, right);
  }
  ASSERT_EQ(run.difference(), "");

  OperandBuffer table(Operand::f16, 3, 16, 16), rows(Operand::f16, 2, 16, 16);
  table.upload(hard_numbers(Operand::f16, 48, 5), true);
  rows.fetch();
  EXPECT_NE(gather_difference(rows, table, {2, 1}), "");
}

// Small enough for the sanitizers: both widths of a load, padded and whole groups, one and two planes.
TEST(ClassifierSmall, OperandRows) {
  for (const Operand kind : kKinds) {
    expect_host_bits({kind, 3, 5, 7});
    expect_host_bits({kind, 2, 72, 16});
    expect_host_bits({kind, 2, 9, 20, 8});
    expect_gathered(kind, 5, 40, 3);
  }
  expect_host_bits({Operand::f16, 9, 3, 1});
  expect_gathered(Operand::split, 3, 1100, 4);
}

}  // namespace
}  // namespace tessera::testing
