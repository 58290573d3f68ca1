// Who takes which flat tile: CTA c of n takes tiles c, c + n, c + 2n, ... Any number of CTAs >= 1 covers every tile
// exactly once, so a launch may be as small or as large as the device likes.
#pragma once

#include <cstdint>

#include "tessera/core/host_device.h"

namespace tessera::batching {

struct Schedule {
  int32_t cta_idx = 0;
  int32_t num_ctas = 1;
  int32_t num_tiles = 0;

  template <class Body>
  TESSERA_HOST_DEVICE constexpr void for_each_tile(Body body) const {
    // 64-bit: the last step may pass 2^31 when both counts are large.
    for (int64_t flat_tile = cta_idx; flat_tile < num_tiles; flat_tile += num_ctas) {
      body(static_cast<int32_t>(flat_tile));
    }
  }
};

}  // namespace tessera::batching
