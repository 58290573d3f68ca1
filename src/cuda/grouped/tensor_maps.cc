#include "cuda/grouped/tensor_maps.h"

#include <array>

#include "cuda/core/tensor_map.h"

namespace tessera::grouped {
namespace {

constexpr uint32_t kBoxBytes = 128;

uint32_t box_columns(int32_t element_bytes) { return kBoxBytes / static_cast<uint32_t>(element_bytes); }

struct WeightSizes {
  uint64_t k, n, halves;
};

WeightSizes sizes_of(const Problem& problem, Role role) {
  return {static_cast<uint64_t>(problem.sum_length(role)), static_cast<uint64_t>(problem.out_columns(role)),
          role == Role::gate_up ? uint64_t{2} : uint64_t{1}};
}

bool is_interleaved(const Problem& problem, Role role) {
  return role == Role::gate_up && problem.gate_up_order == GateUpOrder::interleaved;
}

CUtensorMap row_map(const char* argument, const Problem& problem, const void* data, int32_t columns,
                    int32_t element_bytes, uint32_t box_rows) {
  const std::array<uint64_t, 2> extents = {static_cast<uint64_t>(columns), static_cast<uint64_t>(problem.max_rows)};
  const std::array<uint32_t, 2> box = {box_columns(element_bytes), box_rows};
  return cuda::make_tensor_map(argument, element_bytes, data, extents, box);
}

struct SlabExtents {
  uint64_t k, n, halves, experts;
};

// In elements.
struct SlabStrides {
  uint64_t row, half, expert;
};

CUtensorMap make_slab_map(const char* argument, const Problem& problem, const void* data, const SlabExtents& size,
                          const SlabStrides& stride, int32_t box_slabs) {
  constexpr uint32_t kRows = 8;  // of a swizzle atom: n is a multiple of it
  const std::array<uint64_t, 5> extents = {size.k, kRows, size.halves, size.n / kRows, size.experts};
  const std::array<uint64_t, 4> strides = {stride.row, stride.half, kRows * stride.row, stride.expert};
  const auto halves = static_cast<uint32_t>(size.halves);
  const uint32_t blocks = static_cast<uint32_t>(box_slabs * kSlabRows) / (kRows * halves);
  const std::array<uint32_t, 5> box = {box_columns(problem.operand_bytes), kRows, halves, blocks, 1};
  // Read once, with many boxes in flight: asking L2 for their neighbours only doubles its work.
  return cuda::make_tensor_map(argument, problem.operand_bytes, data, extents, box, strides, cuda::L2Fetch::exact);
}

}  // namespace

CUtensorMap weight_map(const Problem& problem, Role role, uint32_t box_rows) {
  const auto [k, n, halves] = sizes_of(problem, role);
  const std::array<uint64_t, 4> extents = {k, n, halves, static_cast<uint64_t>(problem.num_experts)};
  const bool interleaved = is_interleaved(problem, role);
  const std::array<uint64_t, 3> strides = {interleaved ? halves * k : k, interleaved ? k : n * k, halves * n * k};
  const std::array<uint32_t, 4> box = {box_columns(problem.operand_bytes), box_rows, 1, 1};
  return cuda::make_tensor_map("weight", problem.operand_bytes, problem.weight(role), extents, box, strides);
}

CUtensorMap shared_weight_map(const Problem& problem, Role role, uint32_t box_rows) {
  if (problem.num_shared_experts == 0) return {};
  const auto [k, n, halves] = sizes_of(problem, role);
  const auto slices = static_cast<uint64_t>(problem.num_shared_experts);
  const std::array<uint64_t, 4> extents = {k, n, halves, slices};
  std::array<uint64_t, 3> strides = {k, slices * n * k, n * k};
  if (is_interleaved(problem, role)) strides = {halves * k, k, halves * n * k};
  if (role == Role::down) strides = {slices * k, slices * k, k};
  const std::array<uint32_t, 4> box = {box_columns(problem.operand_bytes), box_rows, 1, 1};
  return cuda::make_tensor_map("shared weight", problem.operand_bytes, problem.shared_weight(role), extents, box,
                               strides);
}

CUtensorMap slab_map(const Problem& problem, Role role, int32_t box_slabs) {
  const auto [k, n, halves] = sizes_of(problem, role);
  const bool interleaved = is_interleaved(problem, role);
  const SlabStrides strides{interleaved ? halves * k : k, interleaved ? k : n * k, halves * n * k};
  return make_slab_map("weight", problem, problem.weight(role),
                       {k, n, halves, static_cast<uint64_t>(problem.num_experts)}, strides, box_slabs);
}

CUtensorMap shared_slab_map(const Problem& problem, Role role, int32_t box_slabs) {
  if (problem.num_shared_experts == 0) return {};
  const auto [k, n, halves] = sizes_of(problem, role);
  const auto slices = static_cast<uint64_t>(problem.num_shared_experts);
  SlabStrides strides{k, slices * n * k, n * k};
  if (is_interleaved(problem, role)) strides = {halves * k, k, halves * n * k};
  if (role == Role::down) strides = {slices * k, slices * k, k};
  return make_slab_map("shared weight", problem, problem.shared_weight(role), {k, n, halves, slices}, strides,
                       box_slabs);
}

CUtensorMap intermediate_map(const Problem& problem, uint32_t box_rows) {
  return row_map("intermediate", problem, problem.intermediate, problem.intermediate_size, problem.operand_bytes,
                 box_rows);
}

CUtensorMap out_map(const Problem& problem, Role role, uint32_t box_rows) {
  const int32_t bytes = role == Role::down ? 2 : problem.operand_bytes;
  return row_map("out", problem, problem.out(role), problem.out_columns(role), bytes, box_rows);
}

}  // namespace tessera::grouped
