#include <vector>

#include "checkpoint/target.h"
#include "tessera/core/buffer.h"

namespace tessera::checkpoint {
namespace {

class HostTarget final : public Target {
 public:
  void* allocate(size_t bytes) override { return owned_.emplace_back(bytes).data(); }
  void fill(void* destination, size_t bytes, const WriteWindow& write) override {
    write({static_cast<std::byte*>(destination), bytes});
  }
  void finish() override {}

 private:
  std::vector<Buffer<std::byte>> owned_;
};

}  // namespace

std::unique_ptr<Target> make_host_target() { return std::make_unique<HostTarget>(); }

}  // namespace tessera::checkpoint
