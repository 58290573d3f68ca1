// Tuning numbers of the gather-add-max kernel.
#pragma once

#include <cstdint>
namespace tessera::kernels::gather_pool {

struct Policy {
  int threads;             // of a CTA
  int min_ctas;            // on a multiprocessor, table of 16-bit elements
  int min_ctas_f32;        // the same, table of fp32: twice the registers hold the same number of loads
  int taps_in_flight;      // table rows a thread loads before it adds the first
  int max_unrolled_width;  // wider filters take their taps taps_in_flight at a time
  int max_slice_chunks;    // chunks of 8 filters of a slice
};

// HBM needs about 25 KB in flight a multiprocessor (3 TB/s over 132, 1 us under load), L2 about the same. 5 CTAs of 128
// threads (at most 96 registers, which the loads of width 10 need) with 7 to 10 loads of 16 bytes a thread are 72 to
// 102 KB, so that warps that are adding do not leave the memory idle. A warp's 32 chunks are 512 bytes of a row, whole
// DRAM bursts; a slice no wider than that keeps four times as many tokens of a 1024-filter table in L2 as whole rows
// would.
constexpr Policy default_policy() { return {128, 5, 4, 10, 10, 32}; }

// Windows of a filter that are loaded together.
constexpr int windows_at_a_time(const Policy& policy, int width) {
  return width >= policy.taps_in_flight ? 1 : policy.taps_in_flight / width;
}

}  // namespace tessera::kernels::gather_pool
