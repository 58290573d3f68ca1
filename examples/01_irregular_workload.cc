// Three kinds of ragged work in one launch: sums of rows of unequal length, element-wise scaling of vectors of unequal
// length, and small matrix products of unequal shape. No padding, no queue, one plan.
#include <cstdio>
#include <numeric>
#include <vector>

#include "tessera/batching/launch.h"

using tessera::batching::ceil_div;
using tessera::batching::TileCoord;

enum class Kind { sum_rows, scale, multiply };

struct Task {
  Kind kind;
  int rows, cols, depth;  // sum_rows: [rows, cols] -> [rows]; scale: [rows]; multiply: [rows, depth] x [depth, cols]
  std::vector<float> a, b, out;
};

struct RaggedWork {
  struct Params {
    std::vector<Task>& tasks;
  };
  static constexpr int kTileRows = 16;  // one tile = 16 rows of its task, whatever the kind

  static int num_tasks(const Params& params) { return static_cast<int>(params.tasks.size()); }
  static int num_tiles(const Params& params, int task) {
    return ceil_div(params.tasks[static_cast<size_t>(task)].rows, kTileRows);
  }
  static void run_tile(const Params& params, TileCoord tile, int /*worker*/) {
    Task& task = params.tasks[static_cast<size_t>(tile.task_idx)];
    const int end = std::min(task.rows, (tile.tile_idx + 1) * kTileRows);
    for (int row = tile.tile_idx * kTileRows; row < end; ++row) {
      const float* a = task.a.data() + row * (task.kind == Kind::multiply ? task.depth : task.cols);
      switch (task.kind) {
        case Kind::sum_rows: task.out[static_cast<size_t>(row)] = std::accumulate(a, a + task.cols, 0.0f); break;
        case Kind::scale: task.out[static_cast<size_t>(row)] = 2.0f * *a; break;
        case Kind::multiply:
          for (int col = 0; col < task.cols; ++col) {
            float sum = 0;
            for (int k = 0; k < task.depth; ++k) sum += a[k] * task.b[static_cast<size_t>(k * task.cols + col)];
            task.out[static_cast<size_t>(row * task.cols + col)] = sum;
          }
      }
    }
  }
};

int main() {
  std::vector<Task> tasks;
  const auto ones = [](int count) { return std::vector<float>(static_cast<size_t>(count), 1.0f); };
  for (const int rows : {1000, 0, 3}) tasks.push_back({Kind::sum_rows, rows, 70, 0, ones(rows * 70), {}, ones(rows)});
  for (const int rows : {5000, 17}) tasks.push_back({Kind::scale, rows, 1, 0, ones(rows), {}, ones(rows)});
  for (const int rows : {64, 200}) {
    tasks.push_back({Kind::multiply, rows, 48, 31, ones(rows * 31), ones(31 * 48), ones(rows * 48)});
  }

  tessera::ThreadPool pool(tessera::available_processors());
  tessera::batching::launch<RaggedWork>({tasks}, pool);

  for (const Task& task : tasks) {
    const float expected = task.kind == Kind::sum_rows ? 70.0f : task.kind == Kind::scale ? 2.0f : 31.0f;
    for (const float value : task.out) {
      if (value != expected) return std::printf("wrong result: %g, expected %g\n", value, expected), 1;
    }
  }
  std::printf("%zu tasks of 3 kinds in one launch: all results right\n", tasks.size());
}
