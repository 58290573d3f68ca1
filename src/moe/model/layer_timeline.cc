#include "moe/model/layer_timeline.h"

#include <algorithm>
#include <array>

#include "moe/formats.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

constexpr double kNanosecond = 1e-9;

struct Kernel {
  const char* name;
  cuda::KernelMarks cuda::LayerMarks::*marks;
  bool always_launched;
};

constexpr std::array<Kernel, 5> kKernels = {{{"plan_count", &cuda::LayerMarks::count, false},
                                             {"plan_place", &cuda::LayerMarks::place, false},
                                             {"gemm1", &cuda::LayerMarks::gate_up, true},
                                             {"gemm2", &cuda::LayerMarks::down, true},
                                             {"combine", &cuda::LayerMarks::combine, true}}};

bool is_cleared(const cuda::KernelMarks& marks) { return marks == cuda::KernelMarks{}; }

void validate(const Kernel& kernel, size_t run, const cuda::KernelMarks& marks) {
  const std::string where = str_cat("marks of ", kernel.name, ", run ", run);
  for (const auto& [name, range] : {std::pair{"begin", marks.begin}, {"work", marks.work}, {"end", marks.end}}) {
    if (range.first > range.last)
      throw Error(where, str_cat(name, " first ", range.first, ", last ", range.last), "the first not after the last");
  }
  if (marks.work.first < marks.begin.first || marks.work.last < marks.begin.last)
    throw Error(where, str_cat("work at ", marks.work.first, ", begin at ", marks.begin.first), "begin before work");
  if (marks.end.first < marks.work.first || marks.end.last < marks.work.last)
    throw Error(where, str_cat("end at ", marks.end.last, ", work at ", marks.work.last), "work before the end");
}

/// Where every run launched the same kernels, those; Error where not.
std::vector<Kernel> launched_kernels(std::span<const cuda::LayerMarks> runs) {
  std::vector<Kernel> launched;
  for (const Kernel& kernel : kKernels) {
    const bool expected = kernel.always_launched || !is_cleared(runs.front().*kernel.marks);
    for (size_t run = 0; run < runs.size(); ++run) {
      const cuda::KernelMarks& marks = runs[run].*kernel.marks;
      if (is_cleared(marks) == expected)
        throw Error(str_cat("marks of ", kernel.name, ", run ", run), expected ? "none" : "some",
                    expected ? "some" : "none, as in run 0");
      if (expected) validate(kernel, run, marks);
    }
    if (expected) launched.push_back(kernel);
  }
  return launched;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

/// The first CTA of all: the second kernel may begin before the first one's last CTA, but not before its first.
uint64_t layer_begin(const cuda::LayerMarks& run) {
  uint64_t begin = UINT64_MAX;
  for (const Kernel& kernel : kKernels) begin = std::min(begin, (run.*kernel.marks).begin.first);
  return begin;
}

}  // namespace

LayerTimeline timeline_of(std::span<const cuda::LayerMarks> runs) {
  TESSERA_CHECK(!runs.empty(), runs.size());
  const auto instant = [&](const Kernel& kernel, cuda::MarkRange cuda::KernelMarks::*range,
                           uint64_t cuda::MarkRange::*side) {
    std::vector<double> seconds;
    for (const cuda::LayerMarks& run : runs)
      seconds.push_back(static_cast<double>(run.*kernel.marks.*range.*side - layer_begin(run)) * kNanosecond);
    return median(std::move(seconds));
  };
  const auto range = [&](const Kernel& kernel, cuda::MarkRange cuda::KernelMarks::*which) {
    return TimelineRange{instant(kernel, which, &cuda::MarkRange::first),
                         instant(kernel, which, &cuda::MarkRange::last)};
  };
  LayerTimeline timeline;
  double previous_end = 0.0;
  for (const Kernel& kernel : launched_kernels(runs)) {
    KernelTimeline line;
    line.name = kernel.name;
    line.begin = range(kernel, &cuda::KernelMarks::begin);
    line.work = range(kernel, &cuda::KernelMarks::work);
    line.end = range(kernel, &cuda::KernelMarks::end);
    line.gap_seconds = line.work.first - previous_end;
    line.work_seconds = line.end.last - line.work.first;
    line.early_seconds = std::max(0.0, previous_end - line.begin.first);
    previous_end = line.end.last;
    timeline.kernels.push_back(std::move(line));
  }
  return timeline;
}

double active_weight_bytes(const LayerConfig& config, int32_t num_tasks) {
  const FormatRow& format = format_row(config.weight_format);
  const auto bytes = [&](int64_t rows, int64_t columns) {
    return static_cast<double>(weight_bytes(format, config.dtype, rows, columns) + scale_bytes(format, rows, columns));
  };
  const int32_t hidden = config.hidden_size, width = config.intermediate_size;
  return num_tasks * ((config.gated ? 2 : 1) * bytes(width, hidden) + bytes(hidden, width));
}

}  // namespace tessera::moe
