// SGLang's kernel for FP8 quantisation by groups of 128 columns, as tvm-ffi functions with the types that its fused MoE
// uses. Its header comes from the wheel (pack/lay.py); the engine compiles the same instances when it starts.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <gemm/per_token_group_quant.cuh>
namespace sglang {
TVM_FFI_DLL_EXPORT_TYPED_FUNC(
    per_token_group_quant,
    (PerTokenGroupQuantFlatKernel<bf16_t, fp8_e4m3_t, 128, false, true, true, false, true>::run));
TVM_FFI_DLL_EXPORT_TYPED_FUNC(
    per_token_group_quant_sorted,
    (PerTokenGroupQuantSortedKernel<bf16_t, fp8_e4m3_t, 128, false, true, true, false, true>::run));
}  // namespace sglang
