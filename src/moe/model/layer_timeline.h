// What the marks of a layer's kernels (cuda/core/marks.h) say about where its time goes.
//
//   const LayerTimeline timeline = timeline_of(marks_of_several_runs);
//   timeline.kernels[1].gap_seconds      // nothing of the layer works: the kernel before has ended, this one waits
//   timeline.kernels[1].work_seconds     // from its first CTA that may work to the end of its last
//   timeline.kernels[1].early_seconds    // it had begun before the one before ended, to make its prologue ready
//
// The gaps and the work of all kernels add up to seconds().
#pragma once

#include <span>
#include <string>
#include <vector>

#include "cuda/core/marks.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

/// Seconds after the layer began, at its first and its last CTA.
struct TimelineRange {
  double first = 0.0;
  double last = 0.0;
};

struct KernelTimeline {
  std::string name;                ///< "plan_count", "plan_place", "gemm1", "gemm2", "combine"
  TimelineRange begin, work, end;  ///< as in cuda::KernelMarks
  double gap_seconds = 0.0;        ///< work.first less the end of the kernel before (of the first: less its own begin)
  double work_seconds = 0.0;       ///< end.last - work.first
  double early_seconds = 0.0;      ///< end of the kernel before less begin.first, where that is positive
};

struct LayerTimeline {
  std::vector<KernelTimeline> kernels;  ///< in order; plan_count only where it was launched

  double seconds() const { return kernels.empty() ? 0.0 : kernels.back().end.last; }
};

/// Medians over the runs, each mark relative to the begin of its own run. Throws Error, naming kernel and run, where a
/// kernel is not marked that every run launches, where runs did not launch the same kernels, or where marks contradict
/// one another (a first after a last, work before begin, an end before work). At least one run.
LayerTimeline timeline_of(std::span<const cuda::LayerMarks> runs);

/// Bytes of weights and scales, without biases, of `num_tasks` experts with rows: what a layer reads at least once.
double active_weight_bytes(const LayerConfig& config, int32_t num_tasks);

}  // namespace tessera::moe
