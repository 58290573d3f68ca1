// When the kernels of a layer begin, may work and end, as they run together: what a measurement of each alone hides.
//
// A launch that gets a pointer to its KernelMarks runs an instance of the kernel that writes them, one thread a CTA;
// one that gets null runs the instance that knows nothing of them. Results are the same bits. Times are nanoseconds of
// the device's global timer.
#pragma once

#include <cstdint>

namespace tessera::cuda {

// The first and the last CTA at which something happened. Cleared: first is the largest number, last is 0.
struct MarkRange {
  uint64_t first = UINT64_MAX;
  uint64_t last = 0;

  friend constexpr bool operator==(const MarkRange&, const MarkRange&) = default;
};

struct KernelMarks {
  MarkRange begin;  // a CTA's first instruction
  MarkRange work;   // the kernels before have finished and their results are visible (griddepcontrol.wait)
  MarkRange end;    // a CTA has nothing left to do; its last stores may still be on their way

  friend constexpr bool operator==(const KernelMarks&, const KernelMarks&) = default;
};

// In device memory, cleared before a run. Kernels that a run does not launch stay cleared: `count` where one CTA plans.
struct LayerMarks {
  KernelMarks count, place, gate_up, down, combine;

  friend constexpr bool operator==(const LayerMarks&, const LayerMarks&) = default;
};

}  // namespace tessera::cuda
