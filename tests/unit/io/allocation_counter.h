// Bytes that this thread has asked operator new for: what hostile input must not make large.
#pragma once

#include <cstddef>

namespace tessera::testing {

/// Since the thread started; never falls. The difference of two readings bounds the memory taken in between.
size_t allocated_bytes();

}  // namespace tessera::testing
