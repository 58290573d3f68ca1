// What a device can do, for measurements to be judged against: how fast it reads memory, how finely its timer counts.
//
// Enqueued on `stream`; nothing is allocated. Not part of any layer.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace tessera::kernels::probe {

struct ReadArgs {
  const void* data;  // [num_bytes], 16-byte aligned; read once, as fast as one launch can
  size_t num_bytes;  // a positive multiple of 16
  // *found becomes 1 if the words of one thread (its 16-byte chunks lie 4 KiB apart) have this exclusive or. Keeps the
  // read from being left out, and lets a test see that all of it is done.
  uint32_t key;
  uint32_t* found;  // [1]
};

void read(const ReadArgs& args, cudaStream_t stream);

// *step [1]: nanoseconds, the smallest step of the global timer that was seen (ptx::global_timer).
void timer_step(uint64_t* step, cudaStream_t stream);

}  // namespace tessera::kernels::probe
