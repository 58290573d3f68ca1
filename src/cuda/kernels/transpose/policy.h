// Tuning numbers of the transposing kernel.
#pragma once

#include <ostream>

namespace tessera::kernels::transpose {

struct Policy {
  int tile;     // rows and columns that a CTA exchanges
  int threads;  // of a CTA

  friend constexpr bool operator==(const Policy&, const Policy&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Policy& p) {
    return out << p.tile << "x" << p.tile << " tile, " << p.threads << " threads";
  }
};

// 64 elements are a full 128-byte line in both directions; two chunks of 16 bytes a thread.
constexpr Policy default_policy() { return {64, 256}; }

}  // namespace tessera::kernels::transpose
