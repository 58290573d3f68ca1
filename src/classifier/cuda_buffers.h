// Device memory with one owner: arrays taken one by one, given back together. The owner knows how much they are.
//
//   float* logits = buffers.take<float>(num_sentences * num_classes);
//   cta::OperandView rows = buffers.take_matrix(cta::Operand::f16, num_rows, stride);
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/core/memory.h"
#include "cuda/core/operand.h"

namespace tessera::classifier {

class CudaBuffers {
 public:
  /// [count], zero-filled; null if count is 0. Throws std::bad_alloc when there is too little memory.
  template <class T>
  T* take(int64_t count) {
    arrays_.push_back(cuda::DeviceBytes::zeros(static_cast<size_t>(count) * sizeof(T)));
    bytes_ += arrays_.back().bytes();
    return arrays_.back().as<T>();
  }
  /// [planes][rows][stride] elements of the kind.
  cta::OperandView take_matrix(cta::Operand kind, int64_t rows, int64_t stride) {
    const int64_t plane = rows * stride;
    return {take<std::byte>(plane * cta::num_planes(kind) * cta::element_bytes(kind)), kind, stride, plane};
  }
  size_t bytes() const { return bytes_; }

 private:
  std::vector<cuda::DeviceBytes> arrays_;
  size_t bytes_ = 0;
};

}  // namespace tessera::classifier
