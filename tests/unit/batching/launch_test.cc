#include "tessera/batching/launch.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <stdexcept>
#include <vector>

namespace tessera::batching {
namespace {

// Counts visits of every tile of ragged tasks; a tile can be told to throw.
struct CountVisits {
  struct Params {
    std::vector<int32_t> tiles_per_task;
    std::vector<std::deque<std::atomic<int>>>* visits = nullptr;
    TileCoord throw_at{-1, -1};
    std::atomic<int>* max_worker = nullptr;
  };
  static int32_t num_tasks(const Params& params) { return static_cast<int32_t>(params.tiles_per_task.size()); }
  static int32_t num_tiles(const Params& params, int32_t task) {
    return params.tiles_per_task[static_cast<size_t>(task)];
  }
  static void run_tile(const Params& params, TileCoord tile, int worker) {
    if (tile == params.throw_at) throw std::runtime_error("planted");
    ++(*params.visits)[static_cast<size_t>(tile.task_idx)][static_cast<size_t>(tile.tile_idx)];
    int seen = params.max_worker->load();
    while (worker > seen && !params.max_worker->compare_exchange_weak(seen, worker)) {
    }
  }
};

class LaunchTest : public ::testing::TestWithParam<int> {
 protected:
  LaunchTest() : params_{{3, 0, 1, 17, 0, 64}, &visits_, {-1, -1}, &max_worker_} { reset(); }

  void reset() {
    visits_.clear();
    for (const int32_t tiles : params_.tiles_per_task) visits_.emplace_back(static_cast<size_t>(tiles));
  }
  void expect_each_tile_once() const {
    for (size_t task = 0; task < visits_.size(); ++task) {
      for (size_t tile = 0; tile < visits_[task].size(); ++tile) {
        ASSERT_EQ(visits_[task][tile].load(), 1) << "task " << task << " tile " << tile;
      }
    }
  }

  std::vector<std::deque<std::atomic<int>>> visits_;
  std::atomic<int> max_worker_{0};
  CountVisits::Params params_;
};

TEST_P(LaunchTest, EveryTileOnceWhateverOrderAndGrid) {
  ThreadPool pool(GetParam());
  for (const TaskOrder order : {TaskOrder::natural, TaskOrder::heavy_first, TaskOrder::interleaved}) {
    reset();
    launch<CountVisits>(params_, pool, order);
    expect_each_tile_once();
    for (const int32_t num_ctas : {1, 2, 84, 85, 86, 200}) {
      reset();
      launch<CountVisits>(make_plan<CountVisits>(params_, order), params_, pool, num_ctas);
      expect_each_tile_once();
    }
  }
  EXPECT_LT(max_worker_.load(), GetParam());
}

TEST_P(LaunchTest, AnExceptionOfATileEndsTheLaunchAndThePoolLivesOn) {
  ThreadPool pool(GetParam());
  params_.throw_at = {3, 5};
  EXPECT_THROW(launch<CountVisits>(params_, pool), std::runtime_error);
  params_.throw_at = {-1, -1};
  reset();
  launch<CountVisits>(params_, pool);
  expect_each_tile_once();
}

TEST_P(LaunchTest, NothingToDo) {
  ThreadPool pool(GetParam());
  params_.tiles_per_task = {0, 0};
  reset();
  launch<CountVisits>(params_, pool);
  params_.tiles_per_task = {};
  reset();
  launch<CountVisits>(params_, pool);
}

INSTANTIATE_TEST_SUITE_P(Threads, LaunchTest, ::testing::Values(1, 2, 4, 9));

// A workload that knows its costs is ordered by them.
struct Costed {
  struct Params {};
  static int32_t num_tasks(const Params&) { return 3; }
  static int32_t num_tiles(const Params&, int32_t) { return 1; }
  static double task_cost(const Params&, int32_t task) { return task == 1 ? 10.0 : 1.0; }
  static void run_tile(const Params&, TileCoord, int) {}
};
static_assert(CostedWorkload<Costed> && !CostedWorkload<CountVisits>);

TEST(Plan, UsesTheWorkloadsOwnCost) {
  EXPECT_EQ(make_plan<Costed>({}, TaskOrder::heavy_first).task_order()[0], 1);
  EXPECT_EQ(make_plan<Costed>({}, TaskOrder::natural).task_order()[0], 0);
}

}  // namespace
}  // namespace tessera::batching
