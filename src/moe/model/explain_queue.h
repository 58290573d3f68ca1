// When each tile of a launch runs, predicted: clusters take tiles from a queue with two ends, as the expert GEMM's do,
// and share the memory's bandwidth while they work.
//
//   const std::vector<TileRun> runs = simulate_queue(costs, {.num_lanes = 66, .bytes_per_second = 2.95e12, ...});
//
// A tile asks for bandwidth at the rate at which it could use it: its bytes over the time it takes alone. While all
// rates together exceed the memory's, it is shared fairly: who asks for less than an equal part gets all of it, the
// others share the rest and slow down. So tiles bound by memory beside tiles bound by tensor cores cost less than tiles
// of one kind after the other: what an interleaved order is for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tessera::moe {

struct TileCost {
  double compute_seconds = 0.0;  ///< of the tensor cores
  double bytes = 0.0;            ///< from and to memory
};

struct QueueOptions {
  int32_t num_lanes = 1;               ///< clusters (or CTAs) that take tiles
  double bytes_per_second = 0.0;       ///< of the memory
  double lane_bytes_per_second = 0.0;  ///< most that one lane can draw
  int32_t back_every = 0;              ///< 1 of this many lanes takes from the back of the queue; 0: none
};

struct TileRun {
  int32_t lane = 0;
  double begin = 0.0;  ///< seconds
  double end = 0.0;
};

/// What the tile takes with the device for itself.
double seconds_alone(const TileCost& tile, const QueueOptions& options);

/// One run a tile, in the order of `tiles` (the front of the queue first). O(tiles * lanes).
std::vector<TileRun> simulate_queue(std::span<const TileCost> tiles, const QueueOptions& options);

}  // namespace tessera::moe
