// Blocks of measured work: threads that start together, work for some seconds and are timed to the end of the last one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moe_bench.h"

namespace tessera::cli {

/// One thread of a block. `step(i)` does its i-th piece of work, to the end, and returns how much that was.
struct Worker {
  std::function<double(int64_t i)> step;
  int64_t fewest_steps = 1;
};

struct Block {
  double amount = 0;   ///< all workers' together
  double seconds = 0;  ///< from the start of all to the end of the last

  double rate() const { return amount / seconds; }
};

/// Every worker makes steps until `seconds` have passed, its fewest in any case. What a step throws is thrown here,
/// after all have ended.
Block run_block(const std::vector<Worker>& workers, double seconds);

/// Seconds of one step of all workers at once, repeatedly: 3 to 9 times, as many as fit into two seconds, after one
/// that is not counted.
Spread repeated_seconds(const std::vector<Worker>& workers);

/// The classifier and what limits it, turn by turn: limit, classifier, limit, classifier.
struct Turns {
  int num_blocks = 0;          ///< of each
  double seconds_a_block = 0;  ///< of the classifier, median
  Spread rate, limit_rate, ratio;
  std::vector<DeviceState> states;  ///< during the last block of the classifier
};

/// Called around each block of the classifier; `end` returns the states of the devices meanwhile.
struct Watch {
  std::function<void()> begin;
  std::function<std::vector<DeviceState>()> end;
};

/// Without limit workers, limit_rate and ratio stay 0.
Turns take_turns(const std::vector<Worker>& workers, const std::vector<Worker>& limit, double seconds,
                 const Watch& watch);

}  // namespace tessera::cli
