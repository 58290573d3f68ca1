// A progress line on standard error: count, share, rate, time left. Only where standard error is a terminal.
#pragma once

#include <chrono>
#include <cstdint>

#include "io/records.h"

namespace tessera::cli {

class Progress {
 public:
  /// `reader` tells how much there is in all, where that is known; it must outlive this.
  Progress(bool enabled, const io::RecordReader& reader);
  /// Removes the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Redraws at most ten times a second.
  void update(int64_t num_done);

 private:
  using Clock = std::chrono::steady_clock;
  /// Share of the input that is done, in [0, 1], or -1 when unknown.
  double share(int64_t num_done) const;

  bool enabled_;
  const io::RecordReader& reader_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_drawn_{};
  bool drawn_ = false;
};

/// Whether standard error is a terminal.
bool stderr_is_terminal();

}  // namespace tessera::cli
