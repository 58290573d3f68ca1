// Ids of a record that go wrong in the process of fake_worker.cc.
#pragma once

#include <cstdint>

namespace tessera::classifier::testing {

enum class Poison : int32_t {
  segmentation = 1001,  ///< the process ends by SIGSEGV
  kill,                 ///< by SIGKILL
  exit,                 ///< with exit code 7
  hang,                 ///< it never answers
  device,               ///< its device is lost, and it says so
};

}  // namespace tessera::classifier::testing
