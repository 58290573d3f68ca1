// decode_warp on the device: the 32 lanes of the calling warp, as the Warp of decode.h.
//
//   TileCoord c = decode_warp(DeviceWarp{}, prefix, flat_tile);     // all 32 lanes, same arguments, same answer
#pragma once

#include "tessera/batching/decode.h"

namespace tessera::batching {

struct DeviceWarp {
  // Callable on the device only; decode_warp is also a host function, hence the marks.
  template <class Predicate>
  TESSERA_HOST_DEVICE uint32_t ballot(Predicate predicate) const {
#ifdef __CUDA_ARCH__
    constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
    return __ballot_sync(kAllLanes, predicate(static_cast<int32_t>(threadIdx.x) % kWarpSize));
#else
    return predicate(0) ? 0 : 0;
#endif
  }
};

}  // namespace tessera::batching
