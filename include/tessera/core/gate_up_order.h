// How the rows of a gated first weight lie, and where gate row i and up row i of an expert are.
#pragma once

#include <cstdint>

#include "tessera/core/host_device.h"

namespace tessera {

/// Of [2I] rows of an expert. Checkpoints have all of them; none is copied.
enum class GateUpOrder : uint8_t {
  gate_first,   ///< [E, 2, I, H]: all gate rows, then all up rows
  interleaved,  ///< [E, I, 2, H]: gate row 0, up row 0, gate row 1, ...
  up_first,     ///< [E, 2, I, H]: all up rows, then all gate rows
};

/// Row of an expert's [2I] that is gate row i, 0 <= i < I; up_row the same for up.
TESSERA_HOST_DEVICE constexpr int64_t gate_row(GateUpOrder order, int64_t i, int64_t intermediate_size) {
  if (order == GateUpOrder::interleaved) return 2 * i;
  return order == GateUpOrder::up_first ? intermediate_size + i : i;
}
TESSERA_HOST_DEVICE constexpr int64_t up_row(GateUpOrder order, int64_t i, int64_t intermediate_size) {
  if (order == GateUpOrder::interleaved) return 2 * i + 1;
  return order == GateUpOrder::up_first ? i : intermediate_size + i;
}

}  // namespace tessera
