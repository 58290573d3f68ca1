// SGLang's kernel for SiLU of the gate times up, as tvm-ffi functions with the types that its fused MoE uses. Its
// header comes from the wheel (pack/lay.py); the engine compiles the same instances when it starts.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <elementwise/activation.cuh>
namespace sglang {
TVM_FFI_DLL_EXPORT_TYPED_FUNC(run_activation, (ActivationKernel<bf16_t, true>::run_activation));
TVM_FFI_DLL_EXPORT_TYPED_FUNC(run_activation_sorted_filtered,
                              (ActivationKernel<bf16_t, true>::run_activation_sorted_filtered));
}  // namespace sglang
