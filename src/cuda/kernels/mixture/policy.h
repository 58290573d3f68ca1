// Tuning numbers of the mixture's kernels.
#pragma once

#include <cstdint>
namespace tessera::kernels::mixture {

struct Policy {
  int weigh_threads;      // of a CTA; all of them share each record's features
  int weigh_min_ctas;     // on a multiprocessor
  int records_at_a_time;  // records of a CTA: each router weight read serves so many
  int experts_at_a_time;  // experts whose sums a thread holds
  int combine_threads;    // of a CTA
  int experts_in_flight;  // rows a thread loads before it adds the first
};

// 4 x 4 sums cost 16 registers, the chunks of 4 records and 4 experts 48 more: 128 registers, 4 CTAs a multiprocessor,
// 32 KB of features in flight. A router weight is read once for 4 records, mostly from L1 (16 KB a record at D = 4096,
// E = 4). 4,096 records are 1,024 CTAs, two full waves on 132 multiprocessors. Combine: 4 loads of 16 bytes a thread,
// as in the layer's combine.
constexpr Policy default_policy() { return {128, 4, 4, 4, 256, 4}; }

}  // namespace tessera::kernels::mixture
