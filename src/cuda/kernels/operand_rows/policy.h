// Tuning numbers of the kernels that bring inputs into operand form.
#pragma once

namespace tessera::kernels::operand_rows {

struct Policy {
  int warps;             // of a CTA
  int position_lanes;    // convert: lanes of a warp side by side along positions, at most; the others along channels
  int chunks_in_flight;  // gather: 16-byte chunks a lane loads before it stores the first
};

// 4 lanes along positions leave 8 along channels: a warp reads 64 bytes of a channel at a time (two whole sectors) and
// writes 128 bytes of a row (a whole line). 4 chunks of 16 bytes and 2048 threads an SM are 128 KiB in flight, more
// than HBM latency x bandwidth asks for; convert has 8 loads of 16 bytes a thread in flight by its shape.
constexpr Policy default_policy() { return {8, 4, 4}; }

}  // namespace tessera::kernels::operand_rows
