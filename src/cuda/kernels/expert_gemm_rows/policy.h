// Tuning numbers of the expert GEMM for few rows an expert, and how its work is cut. Host only and free of CUDA.
#pragma once

#include <cstdint>
#include <ostream>

#include "cuda/grouped/problem.h"
#include "cuda/grouped/tiling.h"

namespace tessera::kernels::expert_gemm_rows {

struct Policy {
  int max_columns;   // rows of an expert that one pass over its weights multiplies
  int unit_slabs;    // at most: slabs of 16 weight rows that a CTA multiplies together, one a warp
  int shared_bytes;  // of a CTA: the plan, and the ring that gets the rest
  int max_pairs;     // T * (k + S) that a CTA can sort
  int ctas_per_sm;   // that share a multiprocessor

  friend std::ostream& operator<<(std::ostream& out, const Policy& p) {
    return out << "units of at most " << 16 * p.unit_slabs << " weight rows x " << p.max_columns << " rows, "
               << p.ctas_per_sm << " CTAs a multiprocessor with " << p.shared_bytes / 1024 << " KiB each, at most "
               << p.max_pairs << " pairs";
  }
};

// Two CTAs: one reads while the other begins or ends. Their shared memory is all that a multiprocessor has, since bytes
// in flight are what a read costs. A CTA sorts 8192 pairs in 24 KiB, which leaves 88 for the ring.
constexpr Policy default_policy() { return {64, 4, 112 * 1024, 8192, 2}; }

// Where it is the faster of a format's two kernels, measured, see README.md: up to so many tokens whatever the layer,
// up to so many rows an expert on average, and of at most small_tokens up to so many more.
struct FewRows {
  int32_t always_tokens;
  double most_mean_rows;
  int32_t small_tokens;
  double most_mean_rows_of_small;

  constexpr bool has(int64_t num_tokens, double mean_rows) const {
    return num_tokens <= always_tokens ||
           mean_rows <= (num_tokens <= small_tokens ? most_mean_rows_of_small : most_mean_rows);
  }
};
inline constexpr FewRows kFewDenseRows = {16, 8.0, 16, 8.0};
inline constexpr FewRows kFewE4m3Rows = {32, 3.0, 64, 4.0};

// One token's rows of e4m3 in blocks are quantised by each CTA that reads them: a launch before the products, and
// looking at what other CTAs have written, cost more than doing it many times. Of short rows, up to four tokens' are.
constexpr bool is_quantized_when_read(int32_t num_tokens, int32_t hidden_size, int32_t intermediate_size) {
  return num_tokens == 1 || (num_tokens <= 4 && hidden_size <= 2048 && intermediate_size <= 2048);
}

// Of H and I: units are numbered in 32 bits, times the number of CTAs.
inline constexpr int32_t kMaxWidth = 64 * 1024;

inline constexpr int32_t kStageRowBytes = 128;  // of K, of each row, that a stage of the ring holds

// The tiles that the work is cut into, where units have all their slabs.
constexpr grouped::Tiling tiling(grouped::Role role, int32_t out_columns, int32_t /*cluster_size*/) {
  const int32_t rows = 16 * default_policy().unit_slabs;
  const int32_t columns = role == grouped::Role::gate_up ? rows / 2 : rows;
  return {1, (out_columns + columns - 1) / columns, 1, default_policy().max_columns};
}

}  // namespace tessera::kernels::expert_gemm_rows
