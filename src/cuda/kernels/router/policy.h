// Tuning numbers of the router kernel.
#pragma once

namespace tessera::kernels::router {

struct Policy {
  int warps;  // of a CTA: tokens it routes
};

// A warp holds a whole token, so only the launch and the tail depend on this. Eight keep the scores of a grouped choice
// over 1024 experts within the 48 KiB of shared memory that need no permission.
constexpr Policy default_policy() { return {8}; }

}  // namespace tessera::kernels::router
