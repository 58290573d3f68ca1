// SGLang's kernel for aligning the slots of each expert to whole tiles, as tvm-ffi functions with the types that its
// fused MoE uses. Its header comes from the wheel (pack/lay.py); the engine compiles the same instances when it starts.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <moe/moe_align_kernel.cu>
namespace sglang {
TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_align_block_size, (MoeAlignBlockSizeKernel<int32_t, false, false, false>::run));
}
