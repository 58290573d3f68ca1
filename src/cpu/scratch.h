// Scratch memory of a launch's workers: one aligned region each, so that no two workers share a cache line.
//
//   WorkerScratch scratch(pool.num_threads(), product_bytes);
//   std::byte* mine = scratch.of(worker);
#pragma once

#include <cstddef>

#include "cpu/page_buffer.h"
#include "tessera/core/buffer.h"

namespace tessera::cpu {

constexpr size_t aligned_bytes(size_t bytes) { return (bytes + kHostAlignment - 1) / kHostAlignment * kHostAlignment; }

class WorkerScratch {
 public:
  WorkerScratch() = default;
  WorkerScratch(int num_workers, size_t bytes_each)
      : bytes_each_(aligned_bytes(bytes_each)), memory_(bytes_each_ * static_cast<size_t>(num_workers)) {}

  std::byte* of(int worker) { return memory_.data() + static_cast<size_t>(worker) * bytes_each_; }
  size_t bytes() const { return memory_.size(); }

 private:
  size_t bytes_each_ = 0;
  PageBuffer memory_;
};

}  // namespace tessera::cpu
