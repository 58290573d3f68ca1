// Dense products by cuBLASLt: what the layer is compared with. The library is found at run time, so that the program
// needs none to be built or started.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cuda_device.h"
#include "tessera/core/dtype.h"

namespace tessera::cli {

class CublasLt {
 public:
  CublasLt();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  bool is_available() const;
  /// "libcublasLt.so.13, version 13.1.0", or why there is none.
  const std::string& description() const { return description_; }

  struct Library;
  const Library& library() const { return *library_; }

 private:
  std::unique_ptr<Library> library_;
  std::string description_;
};

enum class DenseOperands : uint8_t {
  as_result,  ///< 16-bit elements of the result's type
  e4m3,       ///< k and n are multiples of 16; no scales
};

/// D[m, n] = A[m, k] * B[n, k]^T, all row-major, D of 16-bit elements, fp32 sums.
class DenseProduct {
 public:
  /// The fastest of the library's heuristics, found by running each on these operands. `lt` must be available and
  /// outlive this, as must `workspace`. Throws Incomplete if the library has no way to compute it.
  DenseProduct(const CublasLt& lt, DType dtype, int64_t m, int64_t n, int64_t k, const DeviceMemory& workspace,
               const void* a, const void* b, void* d, DenseOperands operands = DenseOperands::as_result);
  ~DenseProduct();
  DenseProduct(const DenseProduct&) = delete;
  DenseProduct& operator=(const DenseProduct&) = delete;

  /// Enqueued on the default stream. Any operands of the sizes given, 16-byte aligned.
  void run(const void* a, const void* b, void* d) const;

 private:
  struct State;
  bool try_run(const void* a, const void* b, void* d) const;

  const CublasLt::Library& library_;
  const DeviceMemory& workspace_;
  std::unique_ptr<State> state_;
};

}  // namespace tessera::cli
