// Tuning numbers of the transposing kernel.
#pragma once

namespace tessera::kernels::transpose {

struct Policy {
  int tile;     // rows and columns that a CTA exchanges
  int threads;  // of a CTA
};

// 64 elements are a full 128-byte line in both directions; two chunks of 16 bytes a thread.
constexpr Policy default_policy() { return {64, 256}; }

}  // namespace tessera::kernels::transpose
