// Tuning numbers of the combine kernel.
#pragma once

#include <ostream>

namespace tessera::kernels::combine {

struct Policy {
  int threads;          // of a CTA
  int slots_in_flight;  // rows a thread loads before it adds the first

  friend std::ostream& operator<<(std::ostream& out, const Policy& p) {
    return out << p.threads << " threads, " << p.slots_in_flight << " slots in flight";
  }
};

// 4 x 16 bytes a thread and 2048 threads an SM keep 128 KiB in flight, more than HBM latency x bandwidth asks for.
constexpr Policy default_policy() { return {256, 4}; }

}  // namespace tessera::kernels::combine
