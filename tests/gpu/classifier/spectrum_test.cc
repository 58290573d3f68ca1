// The transforms around the products in frequency space against sums in fp64, one by one and as a whole convolution.
#include "cuda/kernels/spectrum/launch.h"

#include <gtest/gtest.h>

#include "cuda/kernels/spectrum/twiddle.h"
#include "gpu/classifier/spectrum_run.h"

namespace tessera::testing {
namespace {

void expect_forward(const ForwardCase& c) {
  ForwardRun run(c, static_cast<uint32_t>(c.positions * 1000 + c.channels));
  run.run();
  EXPECT_EQ(run.judge(), "") << c;
}

TEST(Spectrum, FactorsAreRoundedOnceAndSymmetric) {
  for (int32_t positions = 1; positions <= kernels::spectrum::kMaxPositions; ++positions) {
    const std::vector<float> table = twiddle_table(positions);
    ASSERT_EQ(table.size(), static_cast<size_t>(2 * positions));
    for (int32_t i = 0; i < positions; ++i) {
      const double angle = 2.0 * std::numbers::pi * i / positions;
      const auto place = static_cast<size_t>(i);
      // fp32's rounding, and what fp64's own sine and pi are off by.
      EXPECT_NEAR(table[place], std::cos(angle), std::fabs(std::cos(angle)) * kUnit + 1e-15) << i << "/" << positions;
      EXPECT_NEAR(table[place + table.size() / 2], std::sin(angle), std::fabs(std::sin(angle)) * kUnit + 1e-15);
      if (i > 0) {
        EXPECT_EQ(table[place], table[static_cast<size_t>(positions - i)]);
      }
      if (4 * i == positions) {
        EXPECT_EQ(table[place], 0.0f);
      }
      if (2 * i == positions) {
        EXPECT_EQ(table[place + table.size() / 2], 0.0f);
      }
    }
  }
  const std::vector<float> table = twiddle_table(16);
  for (int32_t i = 0; i < 16; ++i) {
    EXPECT_EQ(table[static_cast<size_t>(i)], kernels::spectrum::cosine_of_16(i)) << i;
    EXPECT_EQ(table[static_cast<size_t>(16 + i)], kernels::spectrum::sine_of_16(i)) << i;
  }
  EXPECT_NE(error_of([] { twiddle_table(0); }), "no error");
  EXPECT_NE(error_of([] { twiddle_table(33); }), "no error");
}

TEST(Spectrum, ForwardIsTheTransform) {
  for (const Operand kind : {Operand::f16, Operand::bf16, Operand::split}) {
    for (const int32_t positions : {2, 3, 4, 5, 8, 15, 16, 17, 31, 32}) {
      for (const int32_t channels : {8, 24, 136}) expect_forward({kind, 3, channels, positions});
    }
    expect_forward({kind, 5, 24, 16, 8, 16});
    expect_forward({kind, 5, 24, 15, 40, 8});
    expect_forward({kind, 7, 4096, 16});
  }
}

TEST(Spectrum, ForwardIsExactOnIntegersAndQuarterTurns) {
  for (const int32_t positions : {2, 4}) {
    ForwardRun run({Operand::f16, 6, 40, positions, 0, 0, true});
    run.run();
    EXPECT_EQ(run.judge_exact(), "") << positions;
  }
  // With 16 positions the bins 0, 4, 8 and 12 are quarter turns: the others get inputs that need no other factor.
  ForwardRun run({Operand::f16, 6, 40, 16, 0, 0, true});
  std::vector<float> values = run.values();
  for (size_t i = 0; i < values.size(); ++i) {
    if (i / 40 % 16 % 4 != 0) values[i] = 0.0f;
  }
  run.set_x(values);
  run.run();
  EXPECT_EQ(run.judge_exact(), "");
}

TEST(Spectrum, ForwardDoesNotDependOnNeighbours) {
  for (const int32_t positions : {15, 16}) {
    ForwardRun all({Operand::f16, 37, 40, positions}, 3);
    all.run();
    const size_t record = static_cast<size_t>(positions) * 40;
    for (const int64_t n : {int64_t{0}, int64_t{20}, int64_t{36}}) {
      ForwardRun alone({Operand::f16, 1, 40, positions});
      const auto begin = all.values().begin() + n * static_cast<int64_t>(record);
      alone.set_x(std::vector<float>(begin, begin + static_cast<int64_t>(record)));
      alone.run();
      for (int32_t b = 0; b < num_bins(positions); ++b) {
        const OperandBuffer &one = alone.spectrum().bin(b), &many = all.spectrum().bin(b);
        for (int64_t c = 0; c < one.columns(); ++c) ASSERT_EQ(one.bits(0, 0, c), many.bits(0, n, c)) << b << " " << c;
      }
    }
  }
}

TEST(Spectrum, ForwardFlagsWhatTheKindCannotHold) {
  const auto flags = [](const ForwardCase& c, const std::vector<float>& values) {
    ForwardRun run(c);
    run.set_x(values);
    const std::vector<uint8_t> before = {1, 1, 1, 0};  // the 0 stays
    GuardedBuffer finite(before.size());
    finite.upload(before);
    run.run(static_cast<uint8_t*>(finite.data()));
    EXPECT_TRUE(finite.guards_intact());
    return finite.download<uint8_t>(before.size());
  };
  for (const int32_t positions : {15, 16}) {
    const auto record = static_cast<size_t>(positions) * 8;
    for (const Operand kind : {Operand::f16, Operand::split, Operand::bf16}) {
      const float large = kind == Operand::bf16 ? 0x1p127f : 4096.0f * 2.0f;
      const ForwardCase c{kind, 4, 8, positions};
      std::vector<float> values = normal_numbers(record * 4, 5);
      EXPECT_EQ(flags(c, values), (std::vector<uint8_t>{1, 1, 1, 0})) << c;
      // One column, every value within the kind, their sum not.
      for (int32_t s = 0; s < positions; ++s) values[record + static_cast<size_t>(s) * 8 + 5] = large;
      EXPECT_EQ(flags(c, values), (std::vector<uint8_t>{1, 0, 1, 0})) << c;
    }
    // The same in an imaginary part alone: x_s = sin(2 pi s / S) gives -i S / 2 in bin 1.
    std::vector<float> values = normal_numbers(record * 4, 6);
    for (int32_t s = 0; s < positions; ++s)
      values[2 * record + static_cast<size_t>(s) * 8] = static_cast<float>(12000.0 * unit_circle(s, positions).imag());
    EXPECT_EQ(flags({Operand::f16, 4, 8, positions}, values), (std::vector<uint8_t>{1, 1, 0, 0}));
    EXPECT_EQ(flags({Operand::bf16, 4, 8, positions}, values), (std::vector<uint8_t>{1, 1, 1, 0}));
  }
}

void expect_inverse(const InverseCase& c) {
  InverseRun run(c, static_cast<uint32_t>(c.positions * 10 + c.filters));
  run.run();
  EXPECT_EQ(run.judge(), "") << c;
}

TEST(Spectrum, InversePoolIsTheTransformAndTheMaximum) {
  for (const Operand bin_kind : {Operand::f16, Operand::f32, Operand::bf16}) {
    for (const Operand out_kind : {Operand::f16, Operand::split, Operand::f32, Operand::bf16}) {
      for (const int32_t filters : {1, 5, 8, 100}) {
        expect_inverse({bin_kind, out_kind, 3, 16, filters, {3, 5, 7, 9}});
        expect_inverse({bin_kind, out_kind, 3, 16, filters, {1, 16}, 8});
        expect_inverse({bin_kind, out_kind, 3, 15, filters, {1, 4, 15}, 16});
      }
    }
  }
  for (const int32_t positions : {2, 3, 4, 5, 8, 17, 31, 32}) {
    const std::vector<int32_t> widths = {1, 2, (positions + 1) / 2, positions - 1, positions};
    for (const int32_t filters : {1, 5, 8}) expect_inverse({Operand::f16, Operand::f32, 4, positions, filters, widths});
  }
  expect_inverse({Operand::f16, Operand::f16, 5, 16, 1024, {3, 5, 7, 9}});
  expect_inverse({Operand::f16, Operand::f16, 2, 16, 3, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}});
}

TEST(Spectrum, InversePoolIsExactOnIntegersAndQuarterTurns) {
  for (const int32_t positions : {2, 4}) {
    expect_inverse({Operand::f16, Operand::f32, 9, positions, 13, {1, 2, positions}, 0, true});
    expect_inverse({Operand::f32, Operand::f16, 9, positions, 16, {1, 2, positions}, 8, true});
  }
}

TEST(Spectrum, InversePoolDoesNotDependOnNeighbours) {
  for (const int32_t positions : {15, 16}) {
    const InverseCase c{Operand::f16, Operand::f32, 37, positions, 13, {3, 6}};
    InverseRun all(c, 4);
    all.run();
    for (const int64_t n : {int64_t{0}, int64_t{18}, int64_t{36}}) {
      InverseCase single = c;
      single.records = 1;
      InverseRun alone(single, 4);
      for (int32_t b = 0; b < num_bins(positions); ++b) {
        const OperandBuffer& bin = all.spectrum().bin(b);
        std::vector<float> row;
        for (int64_t i = 0; i < bin.columns(); ++i) row.push_back(static_cast<float>(bin.value(n, i)));
        alone.set_bin(b, row);
      }
      alone.run();
      for (int64_t f = 0; f < c.features(); ++f) ASSERT_EQ(alone.out().bits(0, 0, f), all.out().bits(0, n, f)) << f;
    }
  }
}

TEST(Spectrum, NothingToDoLaunchesNothing) {
  ForwardArgs to{};
  to.positions = 16;
  forward(to, nullptr);
  InversePoolArgs from{};
  from.positions = 16;
  inverse_pool(from, nullptr);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

/// Whole convolutions: transform, product with the spectra of weights in fp64 (bins kept in fp32), inverse and pooling,
/// against sums over taps. `forgotten_bin` leaves one bin out, to see that this is noticed.
std::string convolution_problem(Operand kind, int32_t positions, const std::vector<int32_t>& widths,
                                int32_t forgotten_bin = -1) {
  const int32_t channels = 24, filters = 5, records = 4;
  const auto size = [](int32_t count) { return static_cast<size_t>(count); };
  ForwardRun to({kind, records, channels, positions, 8}, 11);
  to.run();
  InverseRun from({Operand::f32, Operand::f32, records, positions, filters, widths}, 12);
  const std::vector<float> bias = normal_numbers(size(filters) * widths.size(), 13);
  from.set_bias(bias);
  const int32_t features = filters * static_cast<int32_t>(widths.size());
  const std::vector<float> weights = normal_numbers(size(features * positions * channels), 14);
  const auto weight = [&](int32_t f, int32_t l, int32_t c) {  // [F, S, C], of which a filter uses its first K rows
    return double{weights[size((f * positions + l) * channels + c)]} / 8.0;
  };
  std::vector<double> bounds(size(records * features), 0.0);
  for (int32_t b = 0; b < num_bins(positions); ++b) {
    OperandBuffer& bin = from.spectrum().bin(b);
    std::vector<float> products(static_cast<size_t>(bin.rows() * bin.columns()), 0.0f);
    for (int32_t f = 0; f < features; ++f) {
      for (int32_t n = 0; n < records; ++n) {
        std::complex<double> sum = 0.0;
        for (int32_t c = 0; c < channels; ++c) {
          std::complex<double> w = 0.0;
          for (int32_t l = 0; l < widths[size(f / filters)]; ++l)
            w += weight(f, l, c) * std::conj(unit_circle(int64_t{b} * l, positions)) / double(positions);
          double bound = 0.0;
          to.expected(b, n, c, bound);
          sum += to.spectrum().value(b, n, c) * std::conj(w);
          // Both parts of X off by `bound` move each part of the product by at most bound * (|Re w| + |Im w|).
          bounds[size(n * features + f)] +=
              2.0 * from.spectrum().multiplicity(b) * bound * (std::fabs(w.real()) + std::fabs(w.imag()));
        }
        if (b == forgotten_bin) sum = 0.0;
        const auto place = static_cast<size_t>(n * bin.columns() + f);
        products[place] = static_cast<float>(sum.real());
        if (!from.spectrum().is_real(b))
          products[place + size(from.spectrum().imaginary_offset())] = static_cast<float>(sum.imag());
        bounds[size(n * features + f)] += 2.0 * from.spectrum().multiplicity(b) * std::abs(sum) * kUnit;
      }
    }
    from.set_bin(b, products);
  }
  from.run();
  if (std::string problem = from.judge(); !problem.empty()) return "inverse: " + problem;
  for (int32_t n = 0; n < records; ++n) {
    for (int32_t f = 0; f < features; ++f) {
      const int32_t width = widths[size(f / filters)];
      double best = -INFINITY, inverse_bound = 0.0;
      for (int32_t j = 0; j + width <= positions; ++j) {
        double sum = 0.0;
        for (int32_t l = 0; l < width; ++l) {
          for (int32_t c = 0; c < channels; ++c) sum += to.x().value(n * positions + j + l, c) * weight(f, l, c);
        }
        best = std::max(best, sum);
      }
      from.expected(n, f, inverse_bound);
      const double right = std::max(0.0, best + bias[size(f)]), bound = bounds[size(n * features + f)] + inverse_bound;
      if (std::fabs(from.got(n, f) - right) <= bound) continue;
      return str_cat("record ", n, " feature ", f, ": got ", from.got(n, f), ", expected ", right, " +- ", bound);
    }
  }
  return "";
}

TEST(Spectrum, TransformsMakeAConvolution) {
  for (const Operand kind : {Operand::f16, Operand::split, Operand::bf16}) {
    EXPECT_EQ(convolution_problem(kind, 16, {3, 5, 7, 9}), "") << operand_name(kind);
    EXPECT_EQ(convolution_problem(kind, 16, {1, 16}), "") << operand_name(kind);
    EXPECT_EQ(convolution_problem(kind, 15, {2, 15}), "") << operand_name(kind);
    EXPECT_EQ(convolution_problem(kind, 8, {3}), "") << operand_name(kind);
  }
  for (int32_t b = 0; b < num_bins(16); ++b) EXPECT_NE(convolution_problem(Operand::f16, 16, {3, 5}, b), "") << b;
}

// C1: x, bins and out of more than 2^31 elements; records around the place where 32 bits end.
TEST(Spectrum, C1_BeyondTwoToTheThirtyOne) {
  const int32_t positions = 2, columns = 8;
  const int64_t stride = 65536, records = (int64_t{1} << 31) / stride + 3;
  GuardedBuffer twiddle(4 * sizeof(float)), bias(columns * sizeof(float));
  twiddle.upload(twiddle_table(positions));
  bias.upload(std::vector<float>(columns, 0.0f));
  std::vector<std::unique_ptr<GuardedBuffer>> bins;
  ForwardArgs to{};
  InversePoolArgs from{};
  for (int b = 0; b < 2; ++b) {
    bins.push_back(std::make_unique<GuardedBuffer>(static_cast<size_t>(records * stride) * 2));
    from.bins[b] = to.bins[b] = {bins.back()->data(), Operand::f16, stride, 0};
  }
  const std::vector<int64_t> looked_at = {0, records / 2, records - 4, records - 3, records - 1};
  to.imaginary_offset = from.imaginary_offset = columns;
  to.twiddle = from.twiddle = static_cast<const float*>(twiddle.data());
  to.num_records = from.num_records = records;
  to.positions = from.positions = positions;
  to.channels = from.num_features = from.filters = columns;
  {
    GuardedBuffer x(static_cast<size_t>(records * positions * stride) * 2);
    for (const int64_t n : looked_at) {
      for (int64_t s = 0; s < positions; ++s) {
        const std::vector<uint16_t> row(columns, f32_to_f16(static_cast<float>(n % 512 * (1 - s) + 3 * s)));
        TESSERA_CUDA_CHECK(cudaMemcpy(static_cast<uint16_t*>(x.data()) + (n * positions + s) * stride, row.data(),
                                      row.size() * 2, cudaMemcpyHostToDevice));
      }
    }
    to.x = {x.data(), Operand::f16, stride, 0};
    forward(to, nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  }
  GuardedBuffer out(static_cast<size_t>(records * stride) * 2);
  from.out = {out.data(), Operand::f16, stride, 0};
  from.bias = static_cast<const float*>(bias.data());
  from.num_widths = 1;
  from.widths[0] = 2;  // one position: y_0 = Y_0 + Y_1
  inverse_pool(from, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_TRUE(out.guards_intact() && bins[0]->guards_intact() && bins[1]->guards_intact());
  for (const int64_t n : looked_at) {
    const float first = static_cast<float>(n % 512);
    const auto expect_row = [&](const GuardedBuffer& rows, float expected) {
      std::vector<uint16_t> row(static_cast<size_t>(stride));
      TESSERA_CUDA_CHECK(cudaMemcpy(row.data(), static_cast<const uint16_t*>(rows.data()) + n * stride, row.size() * 2,
                                    cudaMemcpyDeviceToHost));
      for (size_t i = 0; i < row.size(); ++i)
        ASSERT_EQ(row[i], f32_to_f16(i < columns ? expected : 0.0f)) << n << " " << i;
    };
    expect_row(*bins[0], first + 3.0f);
    expect_row(*bins[1], first - 3.0f);
    expect_row(out, 2.0f * first);
  }
}

TEST(Spectrum, BadArgumentsNameThemselves) {
  GuardedBuffer memory(1 << 16);
  const auto begins_with = [](const std::string& text, const std::string& begin) {
    EXPECT_EQ(text.substr(0, begin.size()), begin);
  };
  ForwardArgs to{};
  InversePoolArgs from{};
  const cta::OperandView view{memory.data(), Operand::f16, 32, 0};
  std::fill(std::begin(to.bins), std::end(to.bins), view);
  std::fill(std::begin(from.bins), std::end(from.bins), view);
  to.x = from.out = view;
  to.imaginary_offset = from.imaginary_offset = 16;
  to.twiddle = from.twiddle = from.bias = static_cast<const float*>(memory.data());
  to.num_records = from.num_records = 1;
  to.channels = from.num_features = 16;
  to.positions = from.positions = 16;
  from.filters = 8;
  from.num_widths = 2;
  from.widths[0] = from.widths[1] = 3;
  const auto forward_error = [&](auto change) {
    ForwardArgs args = to;
    change(args);
    return error_of([&] { forward(args, nullptr); });
  };
  begins_with(forward_error([](auto& args) { args.num_records = -1; }), "forward num_records: got -1");
  begins_with(forward_error([](auto& args) { args.positions = 1; }), "forward positions: got 1");
  begins_with(forward_error([](auto& args) { args.positions = 33; }), "forward positions: got 33");
  begins_with(forward_error([](auto& args) { args.channels = 12; }), "forward channels: got 12");
  begins_with(forward_error([](auto& args) { args.x.data = nullptr; }), "forward x.data: got a null");
  begins_with(forward_error([](auto& args) { args.x.stride = 8; }), "forward x.stride: got 8");
  begins_with(forward_error([](auto& args) { args.imaginary_offset = 8; }), "forward imaginary_offset: got 8");
  begins_with(forward_error([](auto& args) { args.imaginary_offset = 20; }), "forward imaginary_offset: got 20");
  begins_with(forward_error([](auto& args) { args.bins[3].stride = 24; }), "forward bins[3].stride: got 24");
  begins_with(forward_error([](auto& args) { args.bins[8].data = nullptr; }), "forward bins[8].data");
  begins_with(forward_error([](auto& args) { args.twiddle = nullptr; }), "forward twiddle");
  EXPECT_NE(forward_error([](auto& args) { args.bins[2].kind = Operand::bf16; }), "no error");
  EXPECT_NE(forward_error([](auto& args) { args.x.kind = Operand::bf16; }), "no error");
  begins_with(forward_error([](auto& args) {
                for (auto& bin : args.bins) bin.kind = Operand::f32;
                args.x.kind = Operand::f32;
              }),
              "forward x.kind: got f32");
  const auto inverse_error = [&](auto change) {
    InversePoolArgs args = from;
    change(args);
    return error_of([&] { inverse_pool(args, nullptr); });
  };
  begins_with(inverse_error([](auto& args) { args.num_widths = 0; }), "inverse_pool num_widths: got 0");
  begins_with(inverse_error([](auto& args) { args.num_widths = 17; }), "inverse_pool num_widths: got 17");
  begins_with(inverse_error([](auto& args) { args.filters = 7; }), "inverse_pool num_features: got 16");
  begins_with(inverse_error([](auto& args) { args.widths[1] = 0; }), "inverse_pool widths[1]: got 0");
  begins_with(inverse_error([](auto& args) { args.widths[0] = 17; }), "inverse_pool widths[0]: got 17");
  begins_with(inverse_error([](auto& args) { args.bias = nullptr; }), "inverse_pool bias");
  begins_with(inverse_error([](auto& args) { args.out.stride = 12; }), "inverse_pool out.stride: got 12");
  begins_with(inverse_error([](auto& args) {
                for (auto& bin : args.bins) bin = {bin.data, Operand::split, 32, 32};
              }),
              "inverse_pool bins[0].kind: got split");
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (const uint8_t byte : memory.download<uint8_t>(memory.bytes())) ASSERT_EQ(byte, GuardedBuffer::kPoisonByte);
}

TEST(Spectrum, ComparisonSeesPlantedErrors) {
  ForwardRun to({Operand::f16, 3, 24, 16, 8});
  to.run();
  ASSERT_EQ(to.judge(), "");
  OperandBuffer& bin = to.spectrum().bin(5);
  const auto expect_seen = [&](int64_t row, int64_t column, uint32_t wrong) {
    const uint32_t right = bin.bits(0, row, column);
    bin.set_bits(0, row, column, wrong);
    EXPECT_NE(to.judge(), "") << row << " " << column;
    bin.set_bits(0, row, column, right);
    ASSERT_EQ(to.judge(), "");
  };
  expect_seen(1, 3, 0);  // a zeroed value
  expect_seen(2, to.spectrum().imaginary_offset() + 3, bin.bits(0, 2, to.spectrum().imaginary_offset() + 3) ^ 0x8000u);
  expect_seen(0, 7, bin.bits(0, 0, 7) + 2);  // two units in the last place
  expect_seen(0, 26, 1);                     // padding
  expect_seen(0, 2, bin.bits(0, 1, 2));      // another record's value

  InverseRun from({Operand::f16, Operand::f16, 3, 16, 8, {1, 9}});
  from.run();
  ASSERT_EQ(from.judge(), "");
  int32_t positive = 0;
  for (int32_t f = 0; f < 8; ++f) {
    if (from.got(1, f) > 0.1) positive = f;
  }
  ASSERT_GT(from.got(1, positive), 0.1);
  const uint32_t right = from.out().bits(0, 1, positive);
  for (const uint32_t wrong : {0u, right + 2, right - 2}) {
    from.out().set_bits(0, 1, positive, wrong);
    EXPECT_NE(from.judge(), "");
  }
}

// Small enough for the sanitizers: both kernels of each, whole and partial columns.
TEST(ClassifierSmall, Spectrum) {
  for (const Operand kind : {Operand::f16, Operand::bf16, Operand::split}) {
    for (const int32_t positions : {5, 16, 32}) expect_forward({kind, 3, 24, positions, 8});
  }
  for (const Operand kind : {Operand::f16, Operand::bf16, Operand::f32}) {
    for (const int32_t positions : {5, 16, 32}) {
      expect_inverse({kind, Operand::f16, 3, positions, 5, {1, 3, positions}, 8});
      expect_inverse({kind, Operand::split, 3, positions, 8, {2, 5}});
    }
  }
  ForwardRun run({Operand::f16, 2, 8, 16});
  GuardedBuffer finite(2);
  finite.upload(std::vector<uint8_t>{1, 1});
  run.set_x(std::vector<float>(2 * 16 * 8, 60000.0f));
  run.run(static_cast<uint8_t*>(finite.data()));
  EXPECT_EQ(finite.download<uint8_t>(2), (std::vector<uint8_t>{0, 0}));
}

}  // namespace
}  // namespace tessera::testing
