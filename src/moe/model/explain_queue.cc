#include "moe/model/explain_queue.h"

#include <algorithm>

#include "tessera/core/check.h"

namespace tessera::moe {
namespace {

// Tiles that end within this part of a step end together: equal tiles differ by rounding only.
constexpr double kTogether = 1e-9;
constexpr int64_t kNoTile = -1;

struct Lane {
  int64_t tile = kNoTile;
  double seconds_left = 0.0;  // with the device for itself
  double rate = 0.0;          // bytes/s that it could use
  double speed = 1.0;         // of the speed alone
};

class Simulation {
 public:
  Simulation(std::span<const TileCost> tiles, const QueueOptions& options)
      : tiles_(tiles),
        options_(options),
        back_(static_cast<int64_t>(tiles.size())),
        lanes_(static_cast<size_t>(options.num_lanes)),
        runs_(tiles.size()) {}

  std::vector<TileRun> run() {
    for (size_t lane = 0; lane < lanes_.size(); ++lane) take_tile(lane);
    while (num_running_ > 0) {
      share_bandwidth();
      advance();
    }
    return std::move(runs_);
  }

 private:
  bool takes_from_back(size_t lane) const {
    const auto every = static_cast<size_t>(options_.back_every);
    return every > 0 && lane % every == every - 1;
  }

  void take_tile(size_t lane_idx) {
    if (front_ == back_) return;
    Lane& lane = lanes_[lane_idx];
    lane.tile = takes_from_back(lane_idx) ? --back_ : front_++;
    const TileCost& cost = tiles_[static_cast<size_t>(lane.tile)];
    lane.seconds_left = seconds_alone(cost, options_);
    lane.rate = lane.seconds_left > 0.0 ? cost.bytes / lane.seconds_left : 0.0;
    runs_[static_cast<size_t>(lane.tile)] = {static_cast<int32_t>(lane_idx), now_, now_};
    ++num_running_;
  }

  // From the most modest lane up: each gets what it asks for, or an equal part of what is left.
  void share_bandwidth() {
    by_rate_.clear();
    double wanted = 0.0;
    for (Lane& lane : lanes_) {
      if (lane.tile == kNoTile) continue;
      lane.speed = 1.0;
      wanted += lane.rate;
      by_rate_.push_back(&lane);
    }
    if (wanted <= options_.bytes_per_second) return;
    std::sort(by_rate_.begin(), by_rate_.end(), [](const Lane* a, const Lane* b) { return a->rate < b->rate; });
    double left = options_.bytes_per_second;
    for (size_t i = 0; i < by_rate_.size(); ++i) {
      const double part = left / static_cast<double>(by_rate_.size() - i);
      Lane& lane = *by_rate_[i];
      if (lane.rate > part) lane.speed = part / lane.rate;
      left -= std::min(lane.rate, part);
    }
  }

  // To the end of the tile that ends next.
  void advance() {
    double step = -1.0;
    for (const Lane& lane : lanes_) {
      if (lane.tile != kNoTile && (step < 0.0 || lane.seconds_left / lane.speed < step))
        step = lane.seconds_left / lane.speed;
    }
    now_ += step;
    for (size_t i = 0; i < lanes_.size(); ++i) {
      Lane& lane = lanes_[i];
      if (lane.tile == kNoTile) continue;
      const double total = lane.seconds_left;
      lane.seconds_left -= step * lane.speed;
      if (lane.seconds_left > kTogether * total) continue;
      runs_[static_cast<size_t>(lane.tile)].end = now_;
      lane.tile = kNoTile;
      --num_running_;
      take_tile(i);
    }
  }

  std::span<const TileCost> tiles_;
  QueueOptions options_;
  int64_t front_ = 0;  // tiles [front_, back_) wait
  int64_t back_;
  std::vector<Lane> lanes_;
  std::vector<TileRun> runs_;
  std::vector<Lane*> by_rate_;
  int64_t num_running_ = 0;
  double now_ = 0.0;
};

}  // namespace

double seconds_alone(const TileCost& tile, const QueueOptions& options) {
  const double most = std::min(options.lane_bytes_per_second, options.bytes_per_second);
  return std::max(tile.compute_seconds, tile.bytes / most);
}

std::vector<TileRun> simulate_queue(std::span<const TileCost> tiles, const QueueOptions& options) {
  TESSERA_CHECK(options.num_lanes >= 1, options.num_lanes);
  TESSERA_CHECK(options.bytes_per_second > 0 && options.lane_bytes_per_second > 0, options.bytes_per_second,
                options.lane_bytes_per_second);
  TESSERA_CHECK(options.back_every >= 0, options.back_every);
  for (const TileCost& tile : tiles) {
    TESSERA_CHECK(tile.compute_seconds >= 0 && tile.bytes >= 0, tile.compute_seconds, tile.bytes);
  }
  return Simulation(tiles, options).run();
}

}  // namespace tessera::moe
