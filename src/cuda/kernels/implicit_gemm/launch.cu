#include "cuda/kernels/implicit_gemm/launch.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/core/tensor_map.h"
#include "cuda/kernels/implicit_gemm/kernel.cuh"
#include "tessera/batching/plan.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::implicit_gemm {
namespace {

constexpr int32_t kOperandBytes = 2;

uint64_t planes_of(const cta::OperandView& view) { return static_cast<uint64_t>(cta::num_planes(view.kind)); }

// With one plane the distance of planes is never used, but must be a valid stride.
uint64_t plane_distance(const cta::OperandView& view, uint64_t matrix_elements) {
  return cta::num_planes(view.kind) > 1 ? static_cast<uint64_t>(view.plane_stride) : matrix_elements;
}

CUtensorMap x_map(const Task& task, const TileShape& shape, int64_t max_records) {
  const auto stride = static_cast<uint64_t>(task.x.stride);
  const auto positions = static_cast<uint64_t>(task.positions);
  const auto records = static_cast<uint64_t>(max_records);
  const std::array<uint64_t, 4> extents = {static_cast<uint64_t>(task.channels), positions, records, planes_of(task.x)};
  const std::array<uint64_t, 3> strides = {stride, positions * stride,
                                           plane_distance(task.x, records * positions * stride)};
  const std::array<uint32_t, 4> box = {64, static_cast<uint32_t>(shape.box_positions()),
                                       static_cast<uint32_t>(shape.box_records()), 1};
  return cuda::make_tensor_map("implicit GEMM input", kOperandBytes, task.x.data, extents, box, strides);
}

CUtensorMap weight_map(const Task& task) {
  const auto stride = static_cast<uint64_t>(task.weight.stride);
  const auto features = static_cast<uint64_t>(task.out_features);
  const auto columns = static_cast<uint64_t>(task.taps == 1 ? task.channels : weight_columns(task.channels, task.taps));
  const std::array<uint64_t, 4> extents = {columns, features, planes_of(task.weight), 1};
  const uint64_t plane = plane_distance(task.weight, features * stride);
  const std::array<uint64_t, 3> strides = {stride, plane, planes_of(task.weight) * plane};
  const std::array<uint32_t, 4> box = {64, static_cast<uint32_t>(kPolicy.tile_features), 1, 1};
  return cuda::make_tensor_map("implicit GEMM weight", kOperandBytes, task.weight.data, extents, box, strides);
}

void require(bool holds, const char* argument, int64_t value, const std::string& expected) {
  if (!holds) throw Error(str_cat("implicit GEMM ", argument), str_cat(value), expected);
}

void validate(const Task& task, cta::Operand kind) {
  if (kind == cta::Operand::f32 || task.x.kind != kind || task.weight.kind != kind) {
    throw Error("implicit GEMM operand", "f32, or kinds that differ", "f16, bf16 or split throughout");
  }
  require(task.channels > 0 && task.channels % 8 == 0, "channels", task.channels, "a positive multiple of 8");
  require(task.positions >= 1 && task.positions <= kMaxPositions, "positions", task.positions,
          str_cat("1..", kMaxPositions));
  require(task.taps >= 1 && task.taps <= task.positions, "taps", task.taps, str_cat("1..", task.positions));
  require(task.out_features >= 1, "out_features", task.out_features, "1 or more");
  require(task.x.stride % 8 == 0 && task.x.stride >= task.channels, "input stride", task.x.stride,
          "a multiple of 8, at least the channels");
  const int64_t columns = task.taps == 1 ? task.channels : weight_columns(task.channels, task.taps);
  require(task.weight.stride % 8 == 0 && task.weight.stride >= columns, "weight stride", task.weight.stride,
          str_cat("a multiple of 8, at least ", columns));
  require(task.out.stride % 8 == 0, "output stride", task.out.stride, "a multiple of 8");
}

template <class C>
void launch_config(const Params& params, int32_t num_ctas, cudaStream_t stream) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = C::kCluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(num_ctas));
  config.blockDim = dim3(C::kThreads);
  config.dynamicSmemBytes = sizeof(SharedStorage<C>);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&config, implicit_gemm_kernel<C>, params));
}

template <class C>
void allow_shared_memory() {
  cuda::allow_shared_memory<implicit_gemm_kernel<C>>(sizeof(SharedStorage<C>));
}

}  // namespace

struct ImplicitGemm::State {
  Params params{};  // all but what a launch decides
  int64_t max_records = 0;
  int32_t num_multiprocessors = 0;
  bool is_bf16 = false;
};

ImplicitGemm::ImplicitGemm(std::span<const Task> tasks, int64_t max_records) : state_(std::make_unique<State>()) {
  TESSERA_CHECK(!tasks.empty() && tasks.size() <= kMaxTasks, tasks.size());
  TESSERA_CHECK(max_records >= 1 && max_records <= INT32_MAX, max_records);
  State& state = *state_;
  const cta::Operand kind = tasks.front().x.kind;
  state.max_records = max_records;
  state.is_bf16 = kind == cta::Operand::bf16;
  Params& params = state.params;
  params.num_tasks = static_cast<int32_t>(tasks.size());
  params.num_products = kind == cta::Operand::split ? kMaxProducts : 1;
  std::vector<double> tile_costs;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const Task& task = tasks[i];
    validate(task, kind);
    const TileShape shape = tile_shape(task.positions - task.taps + 1, task.out_features);
    params.x_maps[i] = x_map(task, shape, max_records);
    params.weight_maps[i] = weight_map(task);
    params.tasks[i] = {.shape = shape,
                       .channel_steps = (task.channels + kPolicy.tile_k - 1) / kPolicy.tile_k,
                       .taps = task.taps,
                       .out_features = task.out_features,
                       .pooled = shape.windows > 1 ? 1 : 0,
                       .scale = task.scale,
                       .relu = task.relu ? 1 : 0,
                       .bias = task.bias,
                       .out = task.out};
    tile_costs.push_back(static_cast<double>(params.tasks[i].channel_steps) * task.taps * shape.num_passes *
                         shape.num_columns());
  }
  // Every task of a launch has tiles, and what one costs does not depend on the number of records: nor does the order.
  const std::vector<int32_t> one_tile_each(tasks.size(), 1);
  const std::vector<int32_t> order = batching::task_order(one_tile_each, batching::TaskOrder::heavy_first, tile_costs);
  std::copy(order.begin(), order.end(), params.task_order);
  int device = 0;
  TESSERA_CUDA_CHECK(cudaGetDevice(&device));
  TESSERA_CUDA_CHECK(cudaDeviceGetAttribute(&state.num_multiprocessors, cudaDevAttrMultiProcessorCount, device));
  state.is_bf16 ? allow_shared_memory<Config<__nv_bfloat16>>() : allow_shared_memory<Config<__half>>();
}

ImplicitGemm::~ImplicitGemm() = default;

void ImplicitGemm::launch(int64_t num_records, cudaStream_t stream, const int32_t* device_num_records,
                          int32_t num_ctas) const {
  TESSERA_CHECK(num_records >= 0 && num_records <= state_->max_records, num_records, state_->max_records);
  TESSERA_CHECK(device_num_records == nullptr || state_->params.num_tasks == 1, state_->params.num_tasks);
  if (num_records == 0) return;
  Params params = state_->params;
  params.num_records = num_records;
  params.device_num_records = device_num_records;
  params.num_tiles = 0;
  for (int32_t rank = 0; rank < params.num_tasks; ++rank) {
    params.num_tiles += params.tasks[params.task_order[rank]].shape.num_tiles(num_records);
    params.tile_end[rank] = params.num_tiles;
  }
  int32_t ctas = num_ctas > 0 ? num_ctas : state_->num_multiprocessors;
  ctas = std::max(ctas / kPolicy.cluster_size, 1) * kPolicy.cluster_size;
  state_->is_bf16 ? launch_config<Config<__nv_bfloat16>>(params, ctas, stream)
                  : launch_config<Config<__half>>(params, ctas, stream);
}

}  // namespace tessera::kernels::implicit_gemm
