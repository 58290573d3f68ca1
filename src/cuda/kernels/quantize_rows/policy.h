// Tuning numbers of the quantising kernel.
#pragma once

#include <ostream>

namespace tessera::kernels::quantize_rows {

struct Policy {
  int threads;  // of a CTA

  friend std::ostream& operator<<(std::ostream& out, const Policy& p) { return out << p.threads << " threads"; }
};

// A thread has 32 bytes in flight: 2048 threads an SM, 64 KiB of them.
constexpr Policy default_policy() { return {256}; }

}  // namespace tessera::kernels::quantize_rows
