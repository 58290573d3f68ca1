// Into a GPU through two page-locked windows: one is filled from disk while the other is copied.
#include <array>
#include <vector>

#include "checkpoint/target.h"
#include "cuda/core/memory.h"
#include "cuda/core/stream.h"

namespace tessera::checkpoint {
namespace {

class CudaTarget final : public Target {
 public:
  void* allocate(size_t bytes) override { return owned_.emplace_back(bytes).data(); }

  void fill(void* destination, size_t bytes, const WriteWindow& write) override {
    Window& window = windows_[next_];
    next_ = 1 - next_;
    window.copied.synchronize();  // of an event that was never recorded: at once
    if (window.memory.bytes() < bytes) {
      window.memory = cuda::PinnedBytes();  // before the larger one: beside the weights there is one tensor
      window.memory = cuda::PinnedBytes(bytes);
    }
    write({window.memory.as<std::byte>(), bytes});
    TESSERA_CUDA_CHECK(
        cudaMemcpyAsync(destination, window.memory.data(), bytes, cudaMemcpyHostToDevice, stream_.get()));
    window.copied.record(stream_);
  }

  void finish() override { stream_.synchronize(); }

  // Copies that are under way read the windows.
  ~CudaTarget() override { cudaStreamSynchronize(stream_.get()); }

 private:
  struct Window {
    cuda::PinnedBytes memory;
    cuda::Event copied;
  };
  std::vector<cuda::DeviceBytes> owned_;
  std::array<Window, 2> windows_;
  size_t next_ = 0;
  cuda::Stream stream_;
};

}  // namespace

std::unique_ptr<Target> make_cuda_target() { return std::make_unique<CudaTarget>(); }

}  // namespace tessera::checkpoint
