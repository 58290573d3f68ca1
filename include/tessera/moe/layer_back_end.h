// What Layer needs of a back end; CpuLayer and CudaLayer are it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/moe/layer_config.h"

struct CUstream_st;

namespace tessera::moe {

class LayerBackEnd {
 public:
  virtual ~LayerBackEnd() = default;

  /// Exact size of the workspace for up to `max_tokens` tokens.
  virtual size_t workspace_bytes(int32_t max_tokens) const = 0;

  /// Throws Error for arguments that cannot be right (null, misaligned, overlapping, workspace too small) before any
  /// work. A back end without streams refuses one.
  virtual void run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const = 0;

 protected:  // copied and moved as what it is
  LayerBackEnd() = default;
  LayerBackEnd(const LayerBackEnd&) = default;
  LayerBackEnd(LayerBackEnd&&) = default;
  LayerBackEnd& operator=(const LayerBackEnd&) = default;
  LayerBackEnd& operator=(LayerBackEnd&&) = default;
};

}  // namespace tessera::moe
