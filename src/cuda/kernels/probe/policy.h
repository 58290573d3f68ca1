// Tuning numbers of the streaming read.
#pragma once

#include <ostream>

namespace tessera::kernels::probe {

struct Policy {
  int threads;          // of a CTA
  int loads;            // 16-byte loads of a thread, all in flight at once
  int ctas_per_sm_min;  // keeps ptxas from giving a thread so few registers that the loads wait for one another

  friend constexpr bool operator==(const Policy&, const Policy&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Policy& p) {
    return out << p.threads << " threads, " << p.loads << " loads of 16 bytes each in flight";
  }
};

// 5 CTAs x 256 threads x 8 x 16 bytes are 160 KiB in flight a multiprocessor: more than HBM's latency times its rate.
constexpr Policy default_policy() { return {256, 8, 5}; }

}  // namespace tessera::kernels::probe
