// Tuning numbers of the kernels around the products in frequency space.
#pragma once

namespace tessera::kernels::spectrum {

struct Policy {
  int threads;             // of a CTA
  int unrolled_columns;    // neighbouring columns of one record a thread takes, of 16 positions
  int any_length_columns;  // of any other number of positions
};

// A thread holds all positions of its columns as fp32, so columns are registers: 4 x 16 values leave room for about 20
// warps an SM, each with 16 loads of 256 bytes in flight (80 KiB an SM). 8 columns (16-byte loads) would halve the
// warps, and the two planes of a split would no longer fit. Up to 32 positions need 2 columns for the same reason.
constexpr Policy default_policy() { return {128, 4, 2}; }

}  // namespace tessera::kernels::spectrum
