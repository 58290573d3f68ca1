#include "core/stop.h"

#include <utility>

namespace tessera {
namespace {

const int32_t*& own_flag() noexcept {
  thread_local const int32_t* flag = nullptr;
  return flag;
}

}  // namespace

const int32_t* current_stop() noexcept { return own_flag(); }

StopScope::StopScope(const int32_t* flag) noexcept : previous_(std::exchange(own_flag(), flag)) {}
StopScope::~StopScope() { own_flag() = previous_; }

void throw_if_stopped() {
  const int32_t* const flag = own_flag();
  if (flag != nullptr && __atomic_load_n(flag, __ATOMIC_RELAXED) != 0) throw Stopped();
}

}  // namespace tessera
