#include "cuda_classify_limits.h"

#include <algorithm>
#include <memory>

#include "cuda_dense.h"
#include "moe_data.h"

namespace tessera::cli {
namespace {

constexpr int kStreamsADevice = 2;  // a copy waits in one while the other's runs
constexpr size_t kCopyBytes = size_t{128} << 20;
constexpr size_t kMemoryBytes = size_t{512} << 20;  // ten times an L2
constexpr int kMemoryCopies = 32;                   // of a step: about 10 ms
constexpr int64_t kDenseSize = 8192;                // rows, columns and depth: 1.1 TFLOP
constexpr int kDenseProducts = 16;                  // of a step: about 25 ms
constexpr size_t kPatternElements = size_t{1} << 22;
constexpr size_t kLtWorkspaceBytes = size_t{64} << 20;

/// A stream of its own on one device.
class DeviceStream {
 public:
  explicit DeviceStream(int device) : device_(device), stream_(made_on(device)) {}

  /// Of the calling thread.
  void use_device() const { require_cuda(cudaSetDevice(device_), "use a device"); }
  cudaStream_t get() const { return stream_->get(); }
  void wait() const { require_cuda(cudaStreamSynchronize(stream_->get()), "finish copies"); }

 private:
  static std::unique_ptr<const cuda::Stream> made_on(int device) {
    require_cuda(cudaSetDevice(device), "use a device");
    return std::make_unique<const cuda::Stream>();
  }

  int device_;
  std::unique_ptr<const cuda::Stream> stream_;
};

struct HostCopies {
  HostCopies(int device, const std::byte* from, size_t bytes)
      : stream(device), source(from), source_bytes(bytes), target(std::min(kCopyBytes, bytes)) {}

  double run(int64_t i) const {
    stream.use_device();
    const size_t num_parts = std::max<size_t>(1, source_bytes / target.bytes());
    const size_t offset = static_cast<size_t>(i) % num_parts * target.bytes();
    require_cuda(cudaMemcpyAsync(target.get(), source + offset, target.bytes(), cudaMemcpyHostToDevice, stream.get()),
                 "copy to a device");
    stream.wait();
    return static_cast<double>(target.bytes());
  }

  DeviceStream stream;
  const std::byte* source;
  size_t source_bytes;
  DeviceMemory target;
};

struct MemoryCopies {
  explicit MemoryCopies(int device) : stream(device), from(kMemoryBytes), to(kMemoryBytes) {
    require_cuda(cudaMemset(from.get(), 1, kMemoryBytes), "fill memory");
    require_cuda(cudaDeviceSynchronize(), "fill memory");
  }

  double run() const {
    stream.use_device();
    for (int i = 0; i < kMemoryCopies; ++i)
      require_cuda(cudaMemcpyAsync(to.get(), from.get(), kMemoryBytes, cudaMemcpyDeviceToDevice, stream.get()),
                   "copy within a device");
    stream.wait();
    return 2.0 * kMemoryCopies * static_cast<double>(kMemoryBytes);
  }

  DeviceStream stream;
  DeviceMemory from, to;
};

/// [size, size] x [size, size]^T on the default stream of a device.
class DenseProducts {
 public:
  DenseProducts(int device, DType dtype) : device_(device) {
    require_cuda(cudaSetDevice(device), "use a device");
    lt_ = std::make_unique<CublasLt>();
    if (!lt_->is_available()) return;
    const size_t bytes = elements(kDenseSize, kDenseSize) * sizeof(uint16_t);
    workspace_ = DeviceMemory(kLtWorkspaceBytes);
    a_ = DeviceMemory(bytes);
    b_ = DeviceMemory(bytes);
    d_ = DeviceMemory(bytes);
    fill(a_, dtype, 1);
    fill(b_, dtype, 2);
    product_ = std::make_unique<DenseProduct>(*lt_, dtype, kDenseSize, kDenseSize, kDenseSize, workspace_, a_.get(),
                                              b_.get(), d_.get());
  }

  bool is_available() const { return product_ != nullptr; }
  const std::string& description() const { return lt_->description(); }

  double run() const {
    require_cuda(cudaSetDevice(device_), "use a device");
    for (int i = 0; i < kDenseProducts; ++i) product_->run(a_.get(), b_.get(), d_.get());
    require_cuda(cudaStreamSynchronize(nullptr), "finish products");
    constexpr auto kSize = static_cast<double>(kDenseSize);
    return 2.0 * kSize * kSize * kSize * kDenseProducts;
  }

 private:
  static void fill(const DeviceMemory& matrix, DType dtype, uint64_t seed) {
    const NormalPattern pattern(kPatternElements, seed);
    std::vector<uint16_t> part(kPatternElements);
    pattern.fill(dtype, part.data(), part.size(), 1.0f, 0);
    const size_t part_bytes = part.size() * sizeof(uint16_t);
    for (size_t offset = 0; offset < matrix.bytes(); offset += part_bytes)
      require_cuda(cudaMemcpy(matrix.at(offset), part.data(), std::min(part_bytes, matrix.bytes() - offset),
                              cudaMemcpyHostToDevice),
                   "copy data");
  }

  int device_;
  std::unique_ptr<CublasLt> lt_;
  DeviceMemory workspace_, a_, b_, d_;
  std::unique_ptr<DenseProduct> product_;
};

}  // namespace

std::vector<Worker> copy_limit(const std::vector<int>& devices, const PinnedMemory& pinned) {
  std::vector<Worker> workers;
  const size_t share = pinned.bytes() / (devices.size() * kStreamsADevice);
  for (const int device : devices) {
    for (int i = 0; i < kStreamsADevice; ++i) {
      const std::byte* const source = static_cast<const std::byte*>(pinned.get()) + workers.size() * share;
      const auto copies = std::make_shared<HostCopies>(device, source, share);
      workers.push_back({.step = [copies](int64_t step) { return copies->run(step); }});
    }
  }
  return workers;
}

std::vector<Worker> memory_limit(const std::vector<int>& devices) {
  std::vector<Worker> workers;
  for (const int device : devices) {
    const auto copies = std::make_shared<MemoryCopies>(device);
    workers.push_back({.step = [copies](int64_t) { return copies->run(); }});
  }
  return workers;
}

std::vector<Worker> dense_limit(const std::vector<int>& devices, DType dtype, std::string& description) {
  std::vector<Worker> workers;
  for (const int device : devices) {
    const auto products = std::make_shared<DenseProducts>(device, dtype);
    description = products->description();
    if (!products->is_available()) return {};
    workers.push_back({.step = [products](int64_t) { return products->run(); }});
  }
  return workers;
}

}  // namespace tessera::cli
