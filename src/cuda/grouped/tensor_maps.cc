#include "cuda/grouped/tensor_maps.h"

#include <array>

#include "cuda/core/tensor_map.h"

namespace tessera::grouped {
namespace {

constexpr uint32_t kBoxBytes = 128;

uint32_t box_columns(int32_t element_bytes) { return kBoxBytes / static_cast<uint32_t>(element_bytes); }

// One weight of one role: its elements [k, n, halves, experts] and how far apart they lie. A shared weight's experts
// are the slices of its one expert.
struct Weight {
  const char* argument;
  const void* data;
  uint64_t k, n, halves, experts;
  uint64_t row_stride, half_stride, expert_stride;  // in elements
};

Weight weight_of(const Problem& problem, Role role, bool is_shared) {
  const bool is_gated = role == Role::gate_up;
  Weight w{};
  w.argument = is_shared ? "shared weight" : "weight";
  w.data = is_shared ? problem.shared_weight(role) : problem.weight(role);
  w.k = static_cast<uint64_t>(problem.sum_length(role) - problem.first_of_sum(role));
  w.n = static_cast<uint64_t>(problem.out_columns(role) - problem.first_column(role));
  w.halves = is_gated ? 2 : 1;
  w.experts = static_cast<uint64_t>(is_shared ? problem.num_shared_experts : problem.num_experts);
  const uint64_t slices = is_shared ? w.experts : 1;  // side by side in one weight
  if (role == Role::down && is_shared) {              // in its rows: each has a part of every sum
    w.row_stride = w.half_stride = slices * w.k;
    w.expert_stride = w.k;
  } else if (is_gated && problem.gate_up_order == GateUpOrder::interleaved) {
    w.row_stride = w.halves * w.k;
    w.half_stride = w.k;
    w.expert_stride = w.halves * w.n * w.k;
  } else {
    w.row_stride = w.k;
    w.half_stride = slices * w.n * w.k;
    w.expert_stride = is_shared ? w.n * w.k : w.halves * w.n * w.k;
  }
  return w;
}

CUtensorMap map_of_rows(const Problem& problem, const Weight& w, uint32_t box_rows) {
  const std::array<uint64_t, 4> extents = {w.k, w.n, w.halves, w.experts};
  const std::array<uint64_t, 3> strides = {w.row_stride, w.half_stride, w.expert_stride};
  const std::array<uint32_t, 4> box = {box_columns(problem.operand_bytes), box_rows, 1, 1};
  return cuda::make_tensor_map(w.argument, problem.operand_bytes, w.data, extents, box, strides);
}

CUtensorMap map_of_slabs(const Problem& problem, const Weight& w, int32_t box_slabs) {
  constexpr uint32_t kRows = 8;  // of a swizzle atom: n is a multiple of it
  const std::array<uint64_t, 5> extents = {w.k, kRows, w.halves, w.n / kRows, w.experts};
  const std::array<uint64_t, 4> strides = {w.row_stride, w.half_stride, kRows * w.row_stride, w.expert_stride};
  const auto halves = static_cast<uint32_t>(w.halves);
  const uint32_t blocks = static_cast<uint32_t>(box_slabs * kSlabRows) / (kRows * halves);
  const std::array<uint32_t, 5> box = {box_columns(problem.operand_bytes), kRows, halves, blocks, 1};
  // Read once, with many boxes in flight: asking L2 for 256 bytes around each piece made layers 1 to 3 % slower.
  return cuda::make_tensor_map(w.argument, problem.operand_bytes, w.data, extents, box, strides, cuda::L2Fetch::exact);
}

CUtensorMap row_map(const char* argument, const Problem& problem, const void* data, int32_t columns,
                    int32_t element_bytes, uint32_t box_rows) {
  const std::array<uint64_t, 2> extents = {static_cast<uint64_t>(columns), static_cast<uint64_t>(problem.max_rows)};
  const std::array<uint32_t, 2> box = {box_columns(element_bytes), box_rows};
  return cuda::make_tensor_map(argument, element_bytes, data, extents, box);
}

}  // namespace

CUtensorMap weight_map(const Problem& problem, Role role, uint32_t box_rows) {
  return map_of_rows(problem, weight_of(problem, role, false), box_rows);
}

CUtensorMap shared_weight_map(const Problem& problem, Role role, uint32_t box_rows) {
  if (problem.num_shared_experts == 0) return {};
  return map_of_rows(problem, weight_of(problem, role, true), box_rows);
}

CUtensorMap slab_map(const Problem& problem, Role role, int32_t box_slabs) {
  return map_of_slabs(problem, weight_of(problem, role, false), box_slabs);
}

CUtensorMap shared_slab_map(const Problem& problem, Role role, int32_t box_slabs) {
  if (problem.num_shared_experts == 0) return {};
  return map_of_slabs(problem, weight_of(problem, role, true), box_slabs);
}

CUtensorMap a_map(const Problem& problem, Role role, uint32_t box_rows) {
  const bool is_down = role == Role::down;
  return row_map(is_down ? "intermediate" : "tokens", problem, is_down ? problem.intermediate : problem.tokens,
                 problem.sum_length(role), problem.operand_bytes, box_rows);
}

CUtensorMap out_map(const Problem& problem, Role role, uint32_t box_rows) {
  const int32_t bytes = role == Role::down ? 2 : problem.operand_bytes;
  return row_map("out", problem, problem.out(role), problem.out_columns(role), bytes, box_rows);
}

}  // namespace tessera::grouped
