// The transforms in frequency space on inputs made up from a small description, and the judgement of their results by
// sums in fp64.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <memory>
#include <numbers>
#include <random>

#include "cuda/kernels/spectrum/launch.h"
#include "gpu/classifier/operand_buffer.h"

namespace tessera::testing {

using kernels::spectrum::forward;
using kernels::spectrum::ForwardArgs;
using kernels::spectrum::inverse_pool;
using kernels::spectrum::InversePoolArgs;
using kernels::spectrum::is_real_bin;
using kernels::spectrum::num_bins;
using kernels::spectrum::twiddle_table;

inline constexpr double kUnit = 0x1p-24;  // of fp32, round to nearest

inline std::vector<float> normal_numbers(size_t count, uint32_t seed) {
  std::vector<float> numbers(count);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  for (float& number : numbers) number = normal(rng);
  return numbers;
}

inline std::vector<float> small_integers(size_t count, uint32_t seed) {
  std::vector<float> numbers(count);
  std::mt19937 rng(seed);
  for (float& number : numbers) number = static_cast<float>(static_cast<int>(rng() % 17) - 8);
  return numbers;
}

/// e^(i 2 pi k / S)
inline std::complex<double> unit_circle(int64_t k, int32_t positions) {
  return std::polar(1.0, 2.0 * std::numbers::pi * static_cast<double>(k % positions) / positions);
}

/// What both transforms need: the factors and a row of bins of one kind, of unequal strides.
class Spectrum {
 public:
  Spectrum(Operand kind, int64_t records, int32_t columns, int32_t positions, int32_t gap)
      : columns_(columns),
        positions_(positions),
        imaginary_offset_(static_cast<int32_t>(cta::padded_stride(columns)) + gap),
        twiddle_(static_cast<size_t>(positions) * 2 * sizeof(float)) {
    twiddle_.upload(twiddle_table(positions));
    for (int32_t b = 0; b < num_bins(positions); ++b) {
      const int64_t row = is_real_bin(b, positions) ? columns : imaginary_offset_ + columns;
      const int64_t stride = cta::padded_stride(row) + (b % 3 == 1 ? 16 : 0);
      bins_.push_back(std::make_unique<OperandBuffer>(kind, records, row, stride));
    }
  }

  template <class Args>
  void fill(Args& args) const {
    for (size_t b = 0; b < bins_.size(); ++b) args.bins[b] = bins_[b]->view();
    args.imaginary_offset = imaginary_offset_;
    args.twiddle = static_cast<const float*>(twiddle_.data());
    args.num_records = bins_[0]->rows();
    args.positions = positions_;
  }
  void fetch() {
    for (const auto& bin : bins_) bin->fetch();
  }
  OperandBuffer& bin(int32_t b) const { return *bins_[static_cast<size_t>(b)]; }
  bool is_real(int32_t b) const { return is_real_bin(b, positions_); }
  std::complex<double> value(int32_t b, int64_t record, int64_t column) const {
    return {bin(b).value(record, column), is_real(b) ? 0.0 : bin(b).value(record, imaginary_offset_ + column)};
  }
  int32_t count() const { return num_bins(positions_); }
  int32_t positions() const { return positions_; }
  int32_t columns() const { return columns_; }
  int32_t imaginary_offset() const { return imaginary_offset_; }
  /// How many of the S bins bin b stands for.
  double multiplicity(int32_t b) const { return is_real(b) ? 1.0 : 2.0; }

  /// Guards, gaps and the columns that hold no value.
  std::string margin_problem() const {
    for (int32_t b = 0; b < count(); ++b) {
      const OperandBuffer& rows = bin(b);
      std::string problem = rows.margin_problem(rows.columns(), rows.stride());
      if (problem.empty() && !is_real(b)) problem = rows.margin_problem(columns_, imaginary_offset_);
      if (!problem.empty()) return str_cat("bin ", b, ": ", problem);
    }
    return twiddle_.guards_intact() ? "" : "a guard of the factors was written";
  }

 private:
  int32_t columns_, positions_, imaginary_offset_;
  GuardedBuffer twiddle_;
  std::vector<std::unique_ptr<OperandBuffer>> bins_;
};

struct ForwardCase {
  Operand kind = Operand::f16;
  int64_t records = 1;
  int32_t channels = 8;
  int32_t positions = 16;
  int32_t gap = 0;      // columns between real and imaginary parts
  int32_t x_extra = 0;  // columns of x's stride beyond C
  bool integers = false;

  friend std::ostream& operator<<(std::ostream& out, const ForwardCase& c) {
    return out << operand_name(c.kind) << " N " << c.records << " C " << c.channels << " S " << c.positions << " gap "
               << c.gap;
  }
};

class ForwardRun {
 public:
  explicit ForwardRun(const ForwardCase& c, uint32_t seed = 1)
      : case_(c),
        x_(c.kind, c.records * c.positions, c.channels, c.channels + c.x_extra),
        spectrum_(c.kind, c.records, c.channels, c.positions, c.gap) {
    const auto count = static_cast<size_t>(c.records * c.positions * c.channels);
    set_x(c.integers ? small_integers(count, seed) : normal_numbers(count, seed));
  }
  void set_x(const std::vector<float>& values) {
    values_ = values;
    x_.upload(values, false);
  }

  void run(uint8_t* finite = nullptr) {
    ForwardArgs args{};
    args.x = x_.view();
    args.channels = case_.channels;
    args.finite = finite;
    spectrum_.fill(args);
    forward(args, nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    x_.fetch();
    spectrum_.fetch();
  }

  /// Exact bin of the operand's values, and how far fp32 and the kind's rounding may be from it: a fold, the rounding
  /// of a factor and at most S / 2 + 1 fused steps, each relative to the sum of magnitudes, then one rounding. The
  /// real part's share is that of the whole sum.
  std::complex<double> expected(int32_t b, int64_t record, int64_t channel, double& bound) const {
    std::complex<double> sum = 0.0;
    double magnitude = 0.0;
    for (int32_t s = 0; s < case_.positions; ++s) {
      const double value = x_.value(record * case_.positions + s, channel);
      sum += value * std::conj(unit_circle(int64_t{b} * s, case_.positions));
      magnitude += std::fabs(value);
    }
    const double fp32 = (case_.positions / 2 + 4) * kUnit * magnitude;
    bound = fp32 + operand_rounding(case_.kind, std::max(std::fabs(sum.real()), std::fabs(sum.imag())) + fp32);
    return sum;
  }

  /// First value that is off; empty when all are right and everything was written.
  std::string judge() const {
    for (int32_t b = 0; b < spectrum_.count(); ++b) {
      for (int64_t n = 0; n < case_.records; ++n) {
        for (int64_t c = 0; c < case_.channels; ++c) {
          double bound = 0.0;
          const std::complex<double> right = expected(b, n, c, bound), got = spectrum_.value(b, n, c);
          const double imaginary = spectrum_.is_real(b) ? 0.0 : right.imag();
          if (std::fabs(got.real() - right.real()) <= bound && std::fabs(got.imag() - imaginary) <= bound) continue;
          return str_cat("bin ", b, " record ", n, " channel ", c, ": got ", got, ", expected ", right, " +- ", bound);
        }
      }
    }
    return spectrum_.margin_problem();
  }
  /// Every bit must be that of the exact integer; for small integers and quarter turns.
  std::string judge_exact() const {
    for (int32_t b = 0; b < spectrum_.count(); ++b) {
      for (int64_t n = 0; n < case_.records; ++n) {
        for (int64_t c = 0; c < case_.channels; ++c) {
          double bound = 0.0;
          const std::complex<double> right = expected(b, n, c, bound), got = spectrum_.value(b, n, c);
          if (got.real() != std::round(right.real()) ||
              got.imag() != (spectrum_.is_real(b) ? 0.0 : std::round(right.imag())))
            return str_cat("bin ", b, " record ", n, " channel ", c, ": got ", got, ", expected ", right);
        }
      }
    }
    return spectrum_.margin_problem();
  }

  Spectrum& spectrum() { return spectrum_; }
  const OperandBuffer& x() const { return x_; }
  const std::vector<float>& values() const { return values_; }

 private:
  ForwardCase case_;
  std::vector<float> values_;
  OperandBuffer x_;
  Spectrum spectrum_;
};

struct InverseCase {
  Operand bin_kind = Operand::f32;
  Operand out_kind = Operand::f32;
  int64_t records = 1;
  int32_t positions = 16;
  int32_t filters = 8;
  std::vector<int32_t> widths;
  int32_t gap = 0;
  bool integers = false;

  int32_t features() const { return filters * static_cast<int32_t>(widths.size()); }
  friend std::ostream& operator<<(std::ostream& out, const InverseCase& c) {
    out << operand_name(c.bin_kind) << " to " << operand_name(c.out_kind) << " N " << c.records << " S " << c.positions
        << " F " << c.filters << " widths";
    for (const int32_t width : c.widths) out << " " << width;
    return out;
  }
};

class InverseRun {
 public:
  explicit InverseRun(const InverseCase& c, uint32_t seed = 1)
      : case_(c),
        spectrum_(c.bin_kind, c.records, c.features(), c.positions, c.gap),
        bias_(static_cast<size_t>(c.features()) * sizeof(float)),
        out_(c.out_kind, c.records, c.features(), cta::padded_stride(c.features()) + 8) {
    for (int32_t b = 0; b < spectrum_.count(); ++b) {
      OperandBuffer& bin = spectrum_.bin(b);
      const auto count = static_cast<size_t>(bin.rows() * bin.columns());
      const uint32_t bin_seed = seed * 100 + static_cast<uint32_t>(b);
      set_bin(b, c.integers ? small_integers(count, bin_seed) : normal_numbers(count, bin_seed));
    }
    const auto features = static_cast<size_t>(c.features());
    set_bias(c.integers ? small_integers(features, seed + 50) : normal_numbers(features, seed + 50));
  }

  /// [N, columns of the bin's row]; what lies between real and imaginary parts stays poisoned.
  void set_bin(int32_t b, const std::vector<float>& values) {
    OperandBuffer& bin = spectrum_.bin(b);
    bin.upload(values, false);
    if (!spectrum_.is_real(b)) {
      for (int64_t n = 0; n < bin.rows(); ++n) {
        for (int64_t c = spectrum_.columns(); c < spectrum_.imaginary_offset(); ++c) bin.set_bits(0, n, c, 0xFFFFFFFFu);
      }
      bin.upload_fetched();
    }
  }
  void set_bias(const std::vector<float>& bias) {
    host_bias_ = bias;
    bias_.upload(bias);
  }
  void run() {
    InversePoolArgs args{};
    spectrum_.fill(args);
    args.bias = static_cast<const float*>(bias_.data());
    args.out = out_.view();
    args.num_features = case_.features();
    args.filters = case_.filters;
    args.num_widths = static_cast<int32_t>(case_.widths.size());
    std::copy(case_.widths.begin(), case_.widths.end(), args.widths);
    inverse_pool(args, nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    out_.fetch();
    spectrum_.fetch();
  }

  /// Exact result of the stored bins, and how far fp32 and the kind's rounding may be from it: at most S / 2 + 2 fused
  /// steps, the rounding of a factor, the sum of both halves and of the bias, then one rounding. A maximum is off by no
  /// more than its worst term.
  double expected(int64_t record, int32_t feature, double& bound) const {
    const auto place = static_cast<size_t>(feature);
    const int32_t width = case_.widths[static_cast<size_t>(feature / case_.filters)];
    double best = -INFINITY, magnitude = std::fabs(host_bias_[place]);
    for (int32_t b = 0; b < spectrum_.count(); ++b) {
      const std::complex<double> bin = spectrum_.value(b, record, feature);
      magnitude += spectrum_.multiplicity(b) * (std::fabs(bin.real()) + std::fabs(bin.imag()));
    }
    for (int32_t j = 0; j + width <= case_.positions; ++j) {
      double y = 0.0;
      for (int32_t b = 0; b < spectrum_.count(); ++b) {
        const std::complex<double> turned =
            spectrum_.value(b, record, feature) * unit_circle(int64_t{b} * j, case_.positions);
        y += spectrum_.multiplicity(b) * turned.real();
      }
      best = std::max(best, y);
    }
    const double fp32 = (case_.positions / 2 + 6) * kUnit * magnitude;
    const double value = std::max(0.0, best + host_bias_[place]);
    bound = fp32 + operand_rounding(case_.out_kind, value + fp32);
    return value;
  }
  double got(int64_t record, int32_t feature) const { return out_.value(record, feature); }

  std::string judge() const {
    for (int64_t n = 0; n < case_.records; ++n) {
      for (int32_t f = 0; f < case_.features(); ++f) {
        double bound = 0.0;
        const double right = expected(n, f, bound);
        if (case_.integers ? got(n, f) == std::round(right) : std::fabs(got(n, f) - right) <= bound) continue;
        return str_cat("record ", n, " feature ", f, ": got ", got(n, f), ", expected ", right, " +- ", bound);
      }
    }
    if (!bias_.guards_intact()) return "a guard of the bias was written";
    return out_.margin_problem(case_.features(), out_.stride());
  }
  OperandBuffer& out() { return out_; }
  Spectrum& spectrum() { return spectrum_; }

 private:
  InverseCase case_;
  Spectrum spectrum_;
  std::vector<float> host_bias_;
  GuardedBuffer bias_;
  OperandBuffer out_;
};

}  // namespace tessera::testing
