#include "cuda/kernels/spectrum/launch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <type_traits>

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/core/operand_check.h"
#include "cuda/kernels/spectrum/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::spectrum {
namespace {

// cos(2 pi eighths / (8 S)) by way of the first eighth of the circle: quarter turns are exact, and what is equal or
// opposite by symmetry is so to the bit.
double cosine_of_eighths(int32_t eighths, int32_t positions) {
  const int32_t circle = 8 * positions;
  int32_t angle = (eighths % circle + circle) % circle;
  if (angle > circle / 2) angle = circle - angle;
  const double sign = angle > circle / 4 ? -1.0 : 1.0;
  if (angle > circle / 4) angle = circle / 2 - angle;
  const double step = 2.0 * std::numbers::pi / circle;
  if (angle > circle / 8) return sign * std::sin(step * (circle / 4 - angle));
  return sign * std::cos(step * angle);
}

template <int kPositions>
using Positions = std::integral_constant<int, kPositions>;

// Calls `function` with the compiled number of positions: 0 for all but one.
template <class Function>
void with_positions(int32_t positions, const Function& function) {
  if (positions == kUnrolledPositions) return function(Positions<kUnrolledPositions>{});
  function(Positions<0>{});
}

template <class Params>
void launch_threads(void (*kernel)(Params), const Params& params, cudaStream_t stream) {
  cuda::launch_overlapping(kernel, (params.num_threads + kPolicy.threads - 1) / kPolicy.threads, kPolicy.threads,
                           params, stream);
}

void check_shape(const std::string& function, int64_t num_records, int32_t positions) {
  if (num_records < 0) throw Error(function + " num_records", str_cat(num_records), "0 or more");
  if (positions < 2 || positions > kMaxPositions)
    throw Error(function + " positions", str_cat(positions), str_cat("2 to ", kMaxPositions));
}

// Bins of one kind, each with room for `columns` values or for that many real and imaginary parts.
void check_bins(const std::string& function, const cta::OperandView (&bins)[kMaxBins], int64_t num_records,
                int32_t positions, int32_t columns, int32_t imaginary_offset) {
  if (imaginary_offset < columns || imaginary_offset % 8 != 0) {
    throw Error(function + " imaginary_offset", str_cat(imaginary_offset),
                str_cat("a multiple of 8, at least ", columns));
  }
  for (int32_t b = 0; b < num_bins(positions); ++b) {
    const int64_t row = is_real_bin(b, positions) ? columns : int64_t{imaginary_offset} + columns;
    cuda::check_operand(str_cat(function, " bins[", b, "]"), bins[b], num_records, row);
    TESSERA_CHECK(bins[b].kind == bins[0].kind, b, static_cast<int>(bins[b].kind), static_cast<int>(bins[0].kind));
  }
}

// Columns that one thread row must cover so that every column of every bin is written.
int64_t widest_part(const ForwardArgs& args) {
  int64_t columns = args.channels;
  for (int32_t b = 0; b < num_bins(args.positions); ++b) {
    if (is_real_bin(b, args.positions)) {
      columns = std::max(columns, args.bins[b].stride);
    } else {
      columns = std::max({columns, int64_t{args.imaginary_offset}, args.bins[b].stride - args.imaginary_offset});
    }
  }
  TESSERA_CHECK(columns <= std::numeric_limits<int32_t>::max(), columns);
  return columns;
}

template <class Params>
void set_threads(Params& params, int64_t num_records, int64_t columns, int32_t thread_columns) {
  params.record_threads = static_cast<int32_t>((columns + thread_columns - 1) / thread_columns);
  params.num_threads = num_records * params.record_threads;
}

}  // namespace

std::vector<float> twiddle_table(int32_t positions) {
  TESSERA_CHECK(positions >= 1 && positions <= kMaxPositions, positions);
  std::vector<float> table;
  for (int32_t i = 0; i < positions; ++i) table.push_back(static_cast<float>(cosine_of_eighths(8 * i, positions)));
  for (int32_t i = 0; i < positions; ++i)
    table.push_back(static_cast<float>(cosine_of_eighths(8 * i - 2 * positions, positions)));
  return table;
}

void forward(const ForwardArgs& args, cudaStream_t stream) {
  check_shape("forward", args.num_records, args.positions);
  if (args.num_records == 0) return;
  if (args.channels < 1 || args.channels % 8 != 0)
    throw Error("forward channels", str_cat(args.channels), "a positive multiple of 8");
  cuda::check_operand("forward x", args.x, args.num_records * args.positions, args.channels);
  cuda::check_pointer("forward twiddle", args.twiddle, alignof(float));
  check_bins("forward", args.bins, args.num_records, args.positions, args.channels, args.imaginary_offset);
  TESSERA_CHECK(args.x.kind == args.bins[0].kind, static_cast<int>(args.x.kind), static_cast<int>(args.bins[0].kind));

  ForwardParams params{};
  params.x = args.x;
  std::copy(std::begin(args.bins), std::end(args.bins), params.bins);
  params.twiddle = args.twiddle;
  params.finite = args.finite;
  params.imaginary_offset = args.imaginary_offset;
  params.channels = args.channels;
  params.positions = args.positions;
  with_positions(args.positions, [&](auto positions) {
    constexpr int kPositions = decltype(positions)::value;
    set_threads(params, args.num_records, widest_part(args), Shape<kPositions>::kColumns);
    switch (args.x.kind) {
      case Operand::f16: return launch_threads(forward_kernel<Operand::f16, kPositions>, params, stream);
      case Operand::bf16: return launch_threads(forward_kernel<Operand::bf16, kPositions>, params, stream);
      case Operand::split: return launch_threads(forward_kernel<Operand::split, kPositions>, params, stream);
      default: throw Error("forward x.kind", "f32", "f16, bf16 or split");
    }
  });
}

void inverse_pool(const InversePoolArgs& args, cudaStream_t stream) {
  check_shape("inverse_pool", args.num_records, args.positions);
  if (args.num_records == 0) return;
  if (args.num_widths < 1 || args.num_widths > kMaxWidths)
    throw Error("inverse_pool num_widths", str_cat(args.num_widths), str_cat("1 to ", kMaxWidths));
  if (args.filters < 1) throw Error("inverse_pool filters", str_cat(args.filters), "1 or more");
  if (args.num_features != int64_t{args.filters} * args.num_widths) {
    throw Error("inverse_pool num_features", str_cat(args.num_features),
                str_cat(int64_t{args.filters} * args.num_widths, ", filters times widths"));
  }
  InverseParams params{};
  for (int32_t width = 0; width < args.num_widths; ++width) {
    const int32_t taps = args.widths[width];
    if (taps < 1 || taps > args.positions)
      throw Error(str_cat("inverse_pool widths[", width, "]"), str_cat(taps), str_cat("1 to ", args.positions));
    params.last_pool[width] = args.positions - taps;
  }
  cuda::check_pointer("inverse_pool twiddle", args.twiddle, alignof(float));
  cuda::check_pointer("inverse_pool bias", args.bias, alignof(float));
  check_bins("inverse_pool", args.bins, args.num_records, args.positions, args.num_features, args.imaginary_offset);
  cuda::check_operand("inverse_pool out", args.out, args.num_records, args.num_features);

  std::copy(std::begin(args.bins), std::end(args.bins), params.bins);
  params.out = args.out;
  params.twiddle = args.twiddle;
  params.bias = args.bias;
  params.imaginary_offset = args.imaginary_offset;
  params.num_features = args.num_features;
  params.filters = args.filters;
  params.positions = args.positions;
  TESSERA_CHECK(args.out.stride <= std::numeric_limits<int32_t>::max(), args.out.stride);
  with_positions(args.positions, [&](auto positions) {
    constexpr int kPositions = decltype(positions)::value;
    set_threads(params, args.num_records, args.out.stride, Shape<kPositions>::kColumns);
    switch (args.bins[0].kind) {
      case Operand::f16: return launch_threads(inverse_pool_kernel<Operand::f16, kPositions>, params, stream);
      case Operand::bf16: return launch_threads(inverse_pool_kernel<Operand::bf16, kPositions>, params, stream);
      case Operand::f32: return launch_threads(inverse_pool_kernel<Operand::f32, kPositions>, params, stream);
      default: throw Error("inverse_pool bins[0].kind", "split", "f16, bf16 or f32");
    }
  });
}

}  // namespace tessera::kernels::spectrum
