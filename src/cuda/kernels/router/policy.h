// Tuning numbers of the router kernel.
#pragma once

#include <ostream>

namespace tessera::kernels::router {

struct Policy {
  int warps;  // of a CTA: tokens it routes

  friend constexpr bool operator==(const Policy&, const Policy&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Policy& p) {
    return out << p.warps << " warps, one a token";
  }
};

// A warp holds a whole token, so only the launch and the tail depend on this. Eight keep the scores of a grouped choice
// over 1024 experts within the 48 KiB of shared memory that need no permission.
constexpr Policy default_policy() { return {8}; }

}  // namespace tessera::kernels::router
