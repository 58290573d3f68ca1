// Tuning numbers of the distinct-rows kernels.
#pragma once

namespace tessera::kernels::distinct_rows {

struct Policy {
  int row_threads;   // of a CTA whose warps take a row each
  int tile_threads;  // of a CTA whose threads take a row each
};

// A lane has four loads of 16 bytes in flight, 64 warps a multiprocessor 128 KB. Large tiles keep the one CTA that
// scans their counts short: 262,144 rows are 256 tiles, one step of it.
constexpr Policy default_policy() { return {256, 1024}; }

}  // namespace tessera::kernels::distinct_rows
