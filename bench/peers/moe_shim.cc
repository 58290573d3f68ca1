// tessera::moe::CudaLayer as C functions, so that a Python process can run it beside torch through ctypes.
//
// All pointers are device memory and must outlive the layer; sizes as in LayerConfig. A function that fails returns
// null, 0 or 1 and leaves its message in tessera_moe_last_error, one per thread.
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>

#include "tessera/moe/cuda_layer.h"

#define TESSERA_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using tessera::moe::CudaLayer;

thread_local std::string last_error;

// What `work` returns, or `failed` with the message kept.
template <class Result, class Work>
Result guarded(Result failed, Work work) {
  try {
    return work();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception that is no std::exception";
  }
  return failed;
}

}  // namespace

/// SwiGLU experts. `is_f16` 0: bf16. `gate_up` [E, 2I, H], gate rows first; `down` [E, H, I]. Null on failure.
TESSERA_EXPORT void* tessera_moe_create(int32_t hidden_size, int32_t intermediate_size, int32_t num_experts,
                                        int32_t top_k, int32_t is_f16, const void* gate_up, const void* down) {
  return guarded<void*>(nullptr, [&] {
    tessera::moe::LayerConfig config;
    config.hidden_size = hidden_size;
    config.intermediate_size = intermediate_size;
    config.num_experts = num_experts;
    config.top_k = top_k;
    config.dtype = is_f16 != 0 ? tessera::DType::f16 : tessera::DType::bf16;
    tessera::moe::LayerWeights weights;
    weights.gate_up = gate_up;
    weights.down = down;
    return static_cast<void*>(new CudaLayer(config, weights));
  });
}

TESSERA_EXPORT void tessera_moe_destroy(void* layer) { delete static_cast<CudaLayer*>(layer); }

/// 0 on failure.
TESSERA_EXPORT size_t tessera_moe_workspace_bytes(const void* layer, int32_t max_tokens) {
  return guarded<size_t>(0, [&] { return static_cast<const CudaLayer*>(layer)->workspace_bytes(max_tokens); });
}

/// x, out [T, H]; topk_ids [T, k] int32 or int64; topk_weights [T, k] f32; `stream` a cudaStream_t. 0 on success.
TESSERA_EXPORT int32_t tessera_moe_run(const void* layer, const void* x, const void* topk_ids, int32_t ids_are_64_bit,
                                       const float* topk_weights, void* out, int32_t num_tokens, void* workspace,
                                       size_t workspace_bytes, CUstream_st* stream) {
  return guarded<int32_t>(1, [&] {
    tessera::moe::LayerInputs inputs;
    inputs.x = x;
    inputs.topk_ids = topk_ids;
    inputs.ids_are_64_bit = ids_are_64_bit != 0;
    inputs.topk_weights = topk_weights;
    inputs.out = out;
    inputs.num_tokens = num_tokens;
    static_cast<const CudaLayer*>(layer)->run(inputs, workspace, workspace_bytes, stream);
    return 0;
  });
}

/// Of this thread; valid until its next failure.
TESSERA_EXPORT const char* tessera_moe_last_error() { return last_error.c_str(); }
